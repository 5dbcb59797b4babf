"""Create or migrate the tables of the outbox, under a lock."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from supabase_bridge.outbox.errors import DatabaseError
from supabase_bridge.outbox.tables import VERSION, set_options

logger = logging.getLogger(__name__)

REVISION = "0010"
"""The newest revision in `migrations`."""

_FORMER = {"0004", "0005", "0006", "0007", "0008", "0009"}
"""The revisions that `migrations` starts from."""

_MIGRATIONS = Path(__file__).parent / "migrations"

_LOCK_ID = 7_305_808_869_232_650
"""Key of the PostgreSQL advisory lock that protects the migration; the number is arbitrary."""

_LOCK_SECONDS = 600


def ensure_schema(engine: Engine) -> None:
    """Create the outbox's tables if they are missing, or migrate those of an earlier revision.

    Idempotent; one query if nothing is to be done. Several servers may start at once: one migrates, the others wait.
    A SQLite file is also switched to the write-ahead log.

    Raises:
        DatabaseError: a later release of the bridge has migrated the tables.
    """
    if engine.dialect.name == "sqlite":
        _use_write_ahead_log(engine)
    if _revision_at_start(engine) == REVISION:
        return
    with _exclusive_transaction(engine) as connection:
        revision = installed_revision(connection)
        if revision is None or revision in _FORMER:
            _migrate(connection, revision)
        elif revision != REVISION:
            problem = (
                f"has the outbox's tables at revision {revision}, and this release of the bridge knows {REVISION}; "
                "install the release that migrated them, or a later one, wherever this database is used"
            )
            raise DatabaseError(engine.url.set(query={}).render_as_string(hide_password=True), problem)


def _revision_at_start(engine: Engine) -> str | None:
    try:
        with engine.connect() as connection:
            found: str | None = connection.execute(sa.select(VERSION.c.version_num)).scalar_one_or_none()
    except DBAPIError:
        # The table is most likely missing. Any other error occurs again under the lock and is raised there.
        return None
    return found


def installed_revision(connection: Connection) -> str | None:
    """Return the revision of the tables; None if they are missing, or if an attempt to create them was cut short."""
    if not sa.inspect(connection).has_table(VERSION.name):
        return None
    found: str | None = connection.execute(sa.select(VERSION.c.version_num)).scalar_one_or_none()
    return found


def _migrate(connection: Connection, revision: str | None) -> None:
    """Run all revisions after this one in the caller's transaction.

    PostgreSQL and SQLite commit all or nothing. MySQL commits each statement, so a revision must be able to run again.
    """
    # Alembic takes a while to import, and nearly every start has nothing to migrate.
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext, MigrationStep
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(_MIGRATIONS), version_locations=[str(_MIGRATIONS)])

    def steps(_: object, _context: MigrationContext) -> Iterator[MigrationStep]:
        found = list(script.iterate_revisions("head", revision or "base", implicit_base=True))
        return (MigrationStep.upgrade_from_script(script.revision_map, item) for item in reversed(found))

    set_options()
    VERSION.create(connection, checkfirst=True)
    context = MigrationContext.configure(connection, opts={"version_table": VERSION.name, "fn": steps})
    # Each revision gets its operations as an argument: alembic's `op` is global, and servers have threads.
    context.run_migrations(operations=Operations(context))


@contextmanager
def _exclusive_transaction(engine: Engine) -> Iterator[Connection]:
    """Open a transaction during which no other server creates or changes the tables."""
    with engine.connect() as connection, _lock_on_mysql(connection), connection.begin():
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        elif connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_ID)))
        yield connection


@contextmanager
def _lock_on_mysql(connection: Connection) -> Iterator[None]:
    """Hold a named lock of MySQL's around a transaction; MySQL has no advisory lock that ends with the transaction."""
    if connection.dialect.name not in {"mysql", "mariadb"}:
        yield
        return
    # The name contains the database: MySQL's locks are global to the server, and a name has 64 characters at most.
    name = sa.func.concat("supabase_bridge.", sa.func.md5(sa.func.database()))
    if connection.scalar(sa.select(sa.func.get_lock(name, _LOCK_SECONDS))) != 1:
        raise TimeoutError("another server has been creating the outbox's tables for ten minutes")
    connection.commit()
    try:
        yield
    except BaseException:
        # The lock ends with the connection, whatever state that is in.
        connection.invalidate()
        raise
    connection.execute(sa.select(sa.func.release_lock(name)))


def _use_write_ahead_log(engine: Engine) -> None:
    """Let readers and the writer of a SQLite file work concurrently, if its file system allows it."""
    try:
        with engine.connect() as connection:
            if connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal":
                return
            mode = connection.exec_driver_sql("PRAGMA journal_mode = WAL").scalar()
    except DBAPIError as error:
        mode = str(error.orig)
    if mode != "wal":
        logger.info("SQLite cannot use its write-ahead log here", extra={"mode": mode})
