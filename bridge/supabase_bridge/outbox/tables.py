"""Tables, constraints and indexes of the outbox and of the follower's snapshot."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from supabase_bridge.core.events import EventState

METADATA = sa.MetaData()
"""Not MLflow's: `mlflow db upgrade` neither sees nor touches these tables."""

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")

_NAME = sa.String(256)

_STATES = ", ".join(f"'{state.value}'" for state in EventState)


_OPTIONS = "options"
"""The key under which a table or index has its options of single databases; see `set_options`."""

# Any: `ddl_if` accepts a tuple of dialects, as documented, but its annotation does not.
_HAS_PARTIAL_INDEXES: Any = ("postgresql", "sqlite")
_HAS_NO_PARTIAL_INDEXES: Any = ("mysql", "mariadb")


def _table(name: str, *items: sa.schema.SchemaItem, **options: Any) -> sa.Table:
    """Define a table whose names compare byte for byte, as MLflow's do; MySQL's default collation does not."""
    for database in _HAS_NO_PARTIAL_INDEXES:
        options |= {f"{database}_charset": "utf8mb4", f"{database}_collate": "utf8mb4_bin"}
    return sa.Table(name, METADATA, *items, info={_OPTIONS: options})


def set_options() -> None:
    """Give tables and indexes their options of single databases, before one is created.

    Not where they are defined: SQLAlchemy imports the dialect of each option then, which takes each command 0.1 s.
    """
    for table in METADATA.tables.values():
        defined: list[sa.Table | sa.Index] = [table, *table.indexes]
        for item in defined:
            item.dialect_kwargs.update(item.info.get(_OPTIONS, {}))


OUTBOX = _table(
    "supabase_outbox",
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
    sa.Column("made_by", _NAME),
    sa.Column("model_deleted", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("not_before_ms", sa.BigInteger, nullable=False),
    sa.Column("started_ms", sa.BigInteger),
    sa.Column("finished_ms", sa.BigInteger),
    sa.Column("leased_by", sa.String(64)),
    sa.Column("leased_until_ms", sa.BigInteger),
    sa.Column("outcome", sa.String(2000)),
    sa.Column("uploading", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("claimed_ms", sa.BigInteger),
    sa.Column("failures", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("takeovers", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.CheckConstraint(f"state IN ({_STATES})", name="supabase_outbox_state"),
    sa.CheckConstraint("(state = 'pending') = (finished_ms IS NULL)", name="supabase_outbox_finished"),
    sa.CheckConstraint("(leased_by IS NULL) = (leased_until_ms IS NULL)", name="supabase_outbox_lease"),
    sa.CheckConstraint("leased_by IS NULL OR state = 'pending'", name="supabase_outbox_held"),
    sa.CheckConstraint("attempts >= 0", name="supabase_outbox_attempts"),
    sqlite_autoincrement=True,
)
"""Every change of the registry; `Event` documents the columns.

Constraints: an event is pending or has the time when it finished; it has a holder and the end of its lease, or neither;
only a pending event has a holder. `uploading` is the version whose files the holder uploads, and 0 while it holds the
whole model. `claimed_ms` is the time of the newest claim.
"""

_PENDING = sa.text("state = 'pending'")

LEASE_INDEX = "supabase_outbox_one_lease"
"""Unique: one event of a model holds the whole model, and one event uploads a version."""

_HELD = sa.text("leased_by IS NOT NULL AND NOT model_deleted")

sa.Index(
    "supabase_outbox_pending",
    *(OUTBOX.c.workspace, OUTBOX.c.model, OUTBOX.c.id),
    info={_OPTIONS: {"postgresql_where": _PENDING, "sqlite_where": _PENDING}},
).ddl_if(dialect=_HAS_PARTIAL_INDEXES)

sa.Index("supabase_outbox_pending", OUTBOX.c.state, OUTBOX.c.workspace, OUTBOX.c.model, OUTBOX.c.id).ddl_if(
    dialect=_HAS_NO_PARTIAL_INDEXES
)

sa.Index(
    LEASE_INDEX,
    *(OUTBOX.c.workspace, OUTBOX.c.model, OUTBOX.c.uploading),
    unique=True,
    info={_OPTIONS: {"postgresql_where": _HELD, "sqlite_where": _HELD}},
).ddl_if(dialect=_HAS_PARTIAL_INDEXES)

sa.Index("supabase_outbox_model", OUTBOX.c.workspace, OUTBOX.c.model, OUTBOX.c.version)

sa.Index("supabase_outbox_finished_ms", OUTBOX.c.finished_ms)

_HELD_ON_MYSQL = (
    "ALTER TABLE supabase_outbox "
    "ADD COLUMN in_hand TINYINT AS (CASE WHEN leased_by IS NULL OR model_deleted THEN NULL ELSE 1 END) VIRTUAL"
)


def create_lease_index_on_mysql(connection: Connection) -> None:
    """Create the unique index of claimed events on MySQL and MariaDB if it is missing; other databases have it.

    They have no partial indexes, but their unique indexes allow any number of NULLs.
    """
    if connection.dialect.name not in {"mysql", "mariadb"}:
        return
    inspector = sa.inspect(connection)
    if "in_hand" not in {column["name"] for column in inspector.get_columns(OUTBOX.name)}:
        connection.exec_driver_sql(_HELD_ON_MYSQL)
    if LEASE_INDEX not in {index["name"] for index in inspector.get_indexes(OUTBOX.name)}:
        columns = "workspace, model, uploading, in_hand"
        connection.exec_driver_sql(f"CREATE UNIQUE INDEX {LEASE_INDEX} ON {OUTBOX.name} ({columns})")


META = sa.Table(
    "supabase_bridge_meta",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("registry_id", sa.String(36), nullable=False),
    sa.Column("artifacts_destination", sa.Text),
    sa.Column("default_artifact_root", sa.Text),
)
"""One row: the identity of this registry in release logs, and `ArtifactRoots`."""

VERSION = sa.Table(
    "supabase_bridge_version",
    METADATA,
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="supabase_bridge_version_pkc"),
)
"""One row: alembic's revision of these tables; MLflow's own revision is in `alembic_version`."""


PERIODIC_TASKS = _table(
    "supabase_bridge_duties",
    sa.Column("name", sa.String(96), primary_key=True),
    sa.Column("due_ms", sa.BigInteger, nullable=False),
    sa.Column("place", sa.String(512), nullable=False),
)
"""Periodic tasks of the cluster: a row for each, made at its first use.

`place` is the cursor: where the last run stopped, in the task's own format; empty at the beginning.
"""

FREEZES = _table(
    "supabase_freezes",
    sa.Column("id", _ID, primary_key=True, autoincrement=True),
    sa.Column("workspace", sa.String(63), nullable=False),
    sa.Column("model", _NAME, nullable=False),
    sa.Column("channel", sa.String(250)),
    sa.Column("reason", sa.String(1000), nullable=False),
    sa.Column("frozen_by", _NAME, nullable=False),
    sa.Column("frozen_ms", sa.BigInteger, nullable=False),
    sa.Column("until_ms", sa.BigInteger),
    sa.Column("ended_by", _NAME),
    sa.Column("ended_ms", sa.BigInteger),
)
"""Every freeze of a model, or of one of its channels; those that ended stay, so that they can be looked up."""

sa.Index("supabase_freezes_model", FREEZES.c.workspace, FREEZES.c.model)

STEPS = _table(
    "supabase_bridge_steps",
    sa.Column("bucket", sa.String(100), primary_key=True),
    sa.Column("model_key", sa.String(120), primary_key=True),
    sa.Column("run_id", sa.String(96), primary_key=True),
    sa.Column("step", sa.String(64), primary_key=True),
    sa.Column("onnx_sha256", sa.String(64), primary_key=True),
    sa.Column("finished_ms", sa.BigInteger, nullable=False),
)
"""The steps that succeeded before an activation."""

ACTIVATIONS = _table(
    "supabase_bridge_activations",
    sa.Column("event_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("channel", sa.String(64), primary_key=True),
    sa.Column("published_ms", sa.BigInteger, nullable=False),
)
"""When the activation of an event was first about to be committed after steps: the same at every retry."""

DESTINATIONS = _table(
    "supabase_bridge_destinations",
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("since_ms", sa.BigInteger, nullable=False),
    sa.Column("ended_ms", sa.BigInteger),
    sa.Column("reason", sa.String(500)),
)
"""Every destination of announcements that a worker has had in its settings: it hears of what happened since then."""

ANNOUNCED = _table(
    "supabase_bridge_announced",
    sa.Column("bucket", sa.String(100), primary_key=True),
    sa.Column("model_key", sa.String(120), primary_key=True),
    sa.Column("channel", sa.String(64), primary_key=True),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("published_ms", sa.BigInteger, nullable=False),
    sa.Column("marked_ms", sa.BigInteger, nullable=False),
)
"""How far each channel's log is announced, and since when a worker should look at it; 0: nothing to look at."""

DELIVERIES = _table(
    "supabase_bridge_deliveries",
    sa.Column("id", _ID, primary_key=True, autoincrement=True),
    sa.Column("destination", sa.String(64), nullable=False),
    sa.Column("message_id", sa.String(64), nullable=False),
    sa.Column("bucket", sa.String(100), nullable=False),
    sa.Column("model", _NAME, nullable=False),
    sa.Column("channel", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("not_before_ms", sa.BigInteger, nullable=False),
    sa.Column("started_ms", sa.BigInteger),
    sa.Column("finished_ms", sa.BigInteger),
    sa.Column("leased_by", sa.String(64)),
    sa.Column("leased_until_ms", sa.BigInteger),
    sa.Column("outcome", sa.String(500)),
    sa.UniqueConstraint("destination", "message_id", name="supabase_bridge_deliveries_once"),
    sqlite_autoincrement=True,
)
"""One message to one destination. Those of a channel are delivered in the order of their ids."""

sa.Index("supabase_bridge_deliveries_state", DELIVERIES.c.state, DELIVERIES.c.destination, DELIVERIES.c.id)

WATCHED_MODELS = _table(
    "supabase_watched_models",
    sa.Column("model", _NAME, primary_key=True),
    sa.Column("model_key", sa.String(250)),
    sa.Column("created_ms", sa.BigInteger),
)

WATCHED_VERSIONS = _table(
    "supabase_watched_versions",
    sa.Column("model", _NAME, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("stage", sa.String(20), nullable=False),
    sa.Column("changed_ms", sa.BigInteger),
    sa.Column("created_ms", sa.BigInteger),
)
"""A deleted version stays, in MLflow's stage for deleted versions, until its model is deleted."""

WATCHED_ALIASES = _table(
    "supabase_watched_aliases",
    sa.Column("model", _NAME, primary_key=True),
    sa.Column("alias", _NAME, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("changed_ms", sa.BigInteger),
)

WATCHED_TAGS = _table(
    "supabase_watched_tags",
    sa.Column("model", _NAME, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("tag", sa.String(250), primary_key=True),
    sa.Column("value", sa.String(250), nullable=False),
)
"""The versions' tags `supabase.*`, from which the reconciler knows releases and channels."""
