"""The outbox's tables in MLflow's database: columns, the invariants that the database itself keeps, indexes."""

from __future__ import annotations

import sqlalchemy as sa

from supabase_bridge.outbox.events import EventState

METADATA = sa.MetaData()
"""Not MLflow's: `mlflow db upgrade` neither sees nor touches these tables."""

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_NAME = sa.String(256)
_STATES = ", ".join(f"'{state.value}'" for state in EventState)


def _has_partial_indexes(*_: object, dialect: sa.Dialect, **_more: object) -> bool:
    return dialect.name in {"postgresql", "sqlite"}


def _has_no_partial_indexes(*_: object, dialect: sa.Dialect, **_more: object) -> bool:
    return dialect.name in {"mysql", "mariadb"}


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
    sa.CheckConstraint(f"state IN ({_STATES})", name="supabase_outbox_state"),
    sa.CheckConstraint("(state = 'pending') = (finished_ms IS NULL)", name="supabase_outbox_finished"),
    sa.CheckConstraint("(leased_by IS NULL) = (leased_until_ms IS NULL)", name="supabase_outbox_lease"),
    sa.CheckConstraint("leased_by IS NULL OR state = 'pending'", name="supabase_outbox_held"),
    sa.CheckConstraint("attempts >= 0", name="supabase_outbox_attempts"),
    sqlite_autoincrement=True,
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
    # Names compare as MLflow compares them only where they compare byte for byte; MySQL's default does not.
    mysql_collate="utf8mb4_bin",
    mariadb_collate="utf8mb4_bin",
)
"""Every change of the registry; see `Event` for the columns.

The constraints: an event is pending or has the time when it was finished; it has a holder and the end of the lease, or
neither; only a pending one is held.
"""

_PENDING = sa.text("state = 'pending'")
_HELD = sa.text("leased_by IS NOT NULL AND NOT model_deleted")

sa.Index(
    "supabase_outbox_pending",
    *(OUTBOX.c.workspace, OUTBOX.c.model, OUTBOX.c.id),
    postgresql_where=_PENDING,
    sqlite_where=_PENDING,
).ddl_if(callable_=_has_partial_indexes)
sa.Index("supabase_outbox_pending", OUTBOX.c.state, OUTBOX.c.workspace, OUTBOX.c.model, OUTBOX.c.id).ddl_if(
    callable_=_has_no_partial_indexes
)
sa.Index(
    "supabase_outbox_one_in_hand",
    *(OUTBOX.c.workspace, OUTBOX.c.model),
    unique=True,
    postgresql_where=_HELD,
    sqlite_where=_HELD,
).ddl_if(callable_=_has_partial_indexes)
sa.Index("supabase_outbox_model", OUTBOX.c.workspace, OUTBOX.c.model, OUTBOX.c.version)
sa.Index("supabase_outbox_finished_ms", OUTBOX.c.finished_ms)

IN_HAND_ON_MYSQL = (
    "ALTER TABLE supabase_outbox "
    "ADD COLUMN in_hand TINYINT AS (CASE WHEN leased_by IS NULL OR model_deleted THEN NULL ELSE 1 END) VIRTUAL, "
    "ADD UNIQUE INDEX supabase_outbox_one_in_hand (workspace, model, in_hand)"
)
"""MySQL and MariaDB have no partial indexes; but a unique index there lets any number of NULLs pass."""

META = sa.Table(
    "supabase_bridge_meta",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("registry_id", sa.String(36), nullable=False),
)
"""One row: the identity that tells this registry's events from another's in a release log."""

VERSION = sa.Table(
    "supabase_bridge_version",
    METADATA,
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="supabase_bridge_version_pkc"),
)
"""One row: the revision of these tables, as alembic keeps it; MLflow's own is in `alembic_version`."""
