"""The outbox's tables in MLflow's database: their definition, their creation, and the insert that capture makes."""

from __future__ import annotations

import time
import uuid

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError

from supabase_bridge.outbox.events import EventState, NewEvent

SCHEMA_VERSION = 1
METADATA = sa.MetaData()
"""Not MLflow's: `mlflow db upgrade` neither sees nor touches these tables."""

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_NAME = sa.String(256)

OUTBOX = sa.Table(
    "supabase_outbox",
    METADATA,
    sa.Column("id", _ID, primary_key=True, autoincrement=True),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("workspace", sa.String(63), nullable=False),
    sa.Column("model", _NAME, nullable=False),
    sa.Column("version", sa.Integer),
    sa.Column("stage", sa.String(20)),
    sa.Column("previous_stage", sa.String(20)),
    sa.Column("alias", _NAME),
    sa.Column("previous_version", sa.Integer),
    sa.Column("previous_model", _NAME),
    sa.Column("model_deleted", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("not_before_ms", sa.BigInteger, nullable=False),
    sa.Column("started_ms", sa.BigInteger),
    sa.Column("finished_ms", sa.BigInteger),
    sa.Column("leased_by", sa.String(64)),
    sa.Column("leased_until_ms", sa.BigInteger),
    sa.Column("outcome", sa.String(2000)),
    sa.Index("supabase_outbox_open", "state", "workspace", "model", "id"),
    sa.Index("supabase_outbox_model", "workspace", "model", "version"),
    sqlite_autoincrement=True,
    mysql_charset="utf8mb4",
    # Names compare as MLflow compares them only where they compare byte for byte; MySQL's default does not.
    mysql_collate="utf8mb4_bin",
)

META = sa.Table(
    "supabase_bridge_meta",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("registry_id", sa.String(36), nullable=False),
)
"""One row: the schema's version, and the identity that tells this registry's events from another's in a release log."""


def ensure_schema(engine: Engine) -> None:
    """Create the outbox's tables where they are missing.

    Idempotent, and safe when several servers start at once: whoever loses the race finds the winner's tables.
    """
    # A table that came into being since we looked makes this fail, and there are not more such tables than tables.
    for failures_left in reversed(range(len(METADATA.tables) + 1)):
        try:
            METADATA.create_all(engine)
            break
        except DBAPIError:
            if failures_left == 0:
                raise
    try:
        with engine.begin() as connection:
            if connection.execute(sa.select(META.c.id)).first() is None:
                row = {"id": 1, "schema_version": SCHEMA_VERSION, "registry_id": str(uuid.uuid4())}
                connection.execute(META.insert().values(row))
    except IntegrityError:
        return


def append(connection: Connection, event: NewEvent) -> None:
    """Record a change, in the transaction `connection` is in: both are committed, or neither is."""
    connection.execute(
        OUTBOX.insert().values(
            created_ms=time.time_ns() // 1_000_000,
            kind=event.kind.value,
            workspace=event.workspace,
            model=event.model,
            version=event.version,
            stage=event.stage,
            previous_stage=event.previous_stage,
            alias=event.alias,
            previous_version=event.previous_version,
            previous_model=event.previous_model,
            model_deleted=False,
            state=EventState.PENDING.value,
            attempts=0,
            not_before_ms=0,
        )
    )


def rename_model(connection: Connection, *, workspace: str, old: str, new: str) -> None:
    """Let a renamed model keep its events, in the transaction `connection` is in."""
    named = (OUTBOX.c.workspace == workspace) & (OUTBOX.c.model == old)
    connection.execute(OUTBOX.update().where(named).values(model=new))


def retire_model(connection: Connection, *, workspace: str, model: str) -> None:
    """Mark a deleted model's events, so that they say nothing of a later model of the same name."""
    named = (OUTBOX.c.workspace == workspace) & (OUTBOX.c.model == model)
    connection.execute(OUTBOX.update().where(named).values(model_deleted=True))
