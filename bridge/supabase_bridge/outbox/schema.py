"""The outbox's tables brought to the revision that this code knows; the writes of the transactions that capture."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from supabase_bridge.errors import OutboxNewerError
from supabase_bridge.outbox import duties as _duties  # noqa: F401 - its tables are made with the outbox's
from supabase_bridge.outbox import watched as _watched  # noqa: F401
from supabase_bridge.outbox.clock import DatabaseTime
from supabase_bridge.outbox.events import EventState, NewEvent
from supabase_bridge.outbox.statements import CHANNEL
from supabase_bridge.outbox.tables import IN_HAND_ON_MYSQL, META, METADATA, OUTBOX, VERSION

__all__ = ["META", "OUTBOX", "REVISION", "append", "ensure_schema", "rename_model", "retire_model"]

logger = logging.getLogger(__name__)

REVISION = "0004"
"""Of these tables; `migrations` leads there from every earlier one."""

_FIRST_REVISION = "0001"
_LOCK_ID = 7_305_808_869_232_650
"""Of the PostgreSQL advisory lock under which the tables are made; the number means nothing."""
_LOCK_SECONDS = 600

# Statements are made once: SQLAlchemy takes longer to put one together than a database to carry it out.
_FACTS = ("workspace", "model", "version", "stage", "previous_stage", "alias", "previous_version", "previous_model")
_APPEND = OUTBOX.insert().values(
    **{name: sa.bindparam(name, type_=OUTBOX.c[name].type) for name in ("kind", *_FACTS)},
    created_ms=sa.func.coalesce(sa.bindparam("changed_ms", type_=sa.BigInteger), DatabaseTime()),
    model_deleted=False,
    state=EventState.PENDING.value,
    attempts=0,
    not_before_ms=0,
)
_APPENDED = _APPEND.returning(OUTBOX.c.id).cte("appended")
_APPEND_AND_RING = sa.select(sa.func.pg_notify(CHANNEL, "")).select_from(_APPENDED)


def ensure_schema(engine: Engine) -> None:
    """Make the outbox's tables where they are missing, and bring those of an earlier revision up to date.

    Idempotent; one query where there is nothing to do. Safe when several servers start at once: one does it, the others
    wait for it. On SQLite the file is switched to the write-ahead log besides.

    Raises:
        OutboxNewerError: a later release of the bridge has migrated the tables.
    """
    if engine.dialect.name == "sqlite":
        _use_write_ahead_log(engine)
    if _revision_at_start(engine) == REVISION:
        return
    with _alone(engine) as connection:
        revision = _revision(connection)
        if revision is None:
            METADATA.create_all(connection)
            _complete_on_mysql(connection)
            if connection.execute(sa.select(META.c.id)).first() is None:
                connection.execute(META.insert().values(id=1, registry_id=str(uuid.uuid4())))
            # Last: MySQL commits every statement that makes a table, and whoever finds the revision expects the rest.
            connection.execute(VERSION.insert().values(version_num=REVISION))
        elif revision != REVISION:
            # Alembic takes a while to import; nearly every start has nothing to migrate.
            from supabase_bridge.outbox.migrating import migrate

            migrate(connection, revision)


def _revision_at_start(engine: Engine) -> str | None:
    try:
        with engine.connect() as connection:
            found: str | None = connection.execute(sa.select(VERSION.c.version_num)).scalar_one_or_none()
    except DBAPIError:
        # No such table, most likely; anything else comes again, under its own name.
        return None
    return found


def _revision(connection: Connection) -> str | None:
    """The tables' revision; None where there are none, or where somebody's attempt to make them was cut short."""
    inspector = sa.inspect(connection)
    if inspector.has_table(VERSION.name):
        found: str | None = connection.execute(sa.select(VERSION.c.version_num)).scalar_one_or_none()
        if found is not None and found > REVISION:
            raise OutboxNewerError(found, REVISION)
        return found
    if not inspector.has_table(META.name):
        return None
    columns = {column["name"] for column in inspector.get_columns(META.name)}
    return _FIRST_REVISION if "schema_version" in columns else None


def _complete_on_mysql(connection: Connection) -> None:
    if connection.dialect.name in {"mysql", "mariadb"}:
        columns = {column["name"] for column in sa.inspect(connection).get_columns(OUTBOX.name)}
        if "in_hand" not in columns:
            connection.exec_driver_sql(IN_HAND_ON_MYSQL)


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A transaction during which no other server makes or changes the tables."""
    with engine.connect() as connection, _lock_on_mysql(connection), connection.begin():
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        elif connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_ID)))
        yield connection


@contextmanager
def _lock_on_mysql(connection: Connection) -> Iterator[None]:
    """A lock of MySQL's around a transaction, which knows none that ends with one; nothing on other databases."""
    if connection.dialect.name not in {"mysql", "mariadb"}:
        yield
        return
    # Named after the database: MySQL's locks are the whole server's, and a name has 64 characters at most.
    name = sa.func.concat("supabase_bridge.", sa.func.md5(sa.func.database()))
    if connection.scalar(sa.select(sa.func.get_lock(name, _LOCK_SECONDS))) != 1:
        raise TimeoutError("another server has been making the outbox's tables for ten minutes")
    connection.commit()
    try:
        yield
    except BaseException:
        # The lock goes with the connection, whatever state that is in.
        connection.invalidate()
        raise
    connection.execute(sa.select(sa.func.release_lock(name)))


def _use_write_ahead_log(engine: Engine) -> None:
    """Let readers and the writer of a SQLite file work at once; where its file system cannot, all goes on without."""
    try:
        with engine.connect() as connection:
            if connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal":
                return
            mode = connection.exec_driver_sql("PRAGMA journal_mode = WAL").scalar()
    except DBAPIError as error:
        mode = str(error.orig)
    if mode != "wal":
        logger.info("SQLite does without its write-ahead log", extra={"mode": mode})


def append(connection: Connection, event: NewEvent, *, changed_ms: int | None = None) -> None:
    """Record a change, in the transaction `connection` is in: both are committed, or neither is.

    On PostgreSQL the same statement wakes the workers when the transaction is committed.

    Args:
        changed_ms: When the change was made, in milliseconds since 1970, where that was not now.
    """
    statement = _APPEND_AND_RING if connection.dialect.name == "postgresql" else _APPEND
    facts = {name: getattr(event, name) for name in _FACTS}
    connection.execute(statement, {**facts, "kind": event.kind.value, "changed_ms": changed_ms})


def rename_model(connection: Connection, *, workspace: str, old: str, new: str) -> None:
    """Let a renamed model keep its events, in the transaction `connection` is in.

    A worker that has one in hand has lost it: it would look for a version, or an arrival, by a name that is gone. The
    event is due at once, under the new name.
    """
    named = (OUTBOX.c.workspace == workspace) & (OUTBOX.c.model == old)
    connection.execute(OUTBOX.update().where(named).values(model=new, leased_by=None, leased_until_ms=None))


def retire_model(connection: Connection, *, workspace: str, model: str) -> None:
    """Mark a deleted model's events, so that they say nothing of a later model of the same name."""
    named = (OUTBOX.c.workspace == workspace) & (OUTBOX.c.model == model)
    connection.execute(OUTBOX.update().where(named).values(model_deleted=True))
