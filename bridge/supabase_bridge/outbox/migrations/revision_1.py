"""The outbox and its identity; the revision stood in `supabase_bridge_meta.schema_version`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0001"
down_revision = None


def upgrade(operations: Operations) -> None:
    """Make the tables."""
    name = sa.String(256)
    operations.create_table(
        "supabase_outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("workspace", sa.String(63), nullable=False),
        sa.Column("model", name, nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("stage", sa.String(20)),
        sa.Column("previous_stage", sa.String(20)),
        sa.Column("alias", name),
        sa.Column("previous_version", sa.Integer),
        sa.Column("previous_model", name),
        sa.Column("model_deleted", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("not_before_ms", sa.BigInteger, nullable=False),
        sa.Column("started_ms", sa.BigInteger),
        sa.Column("finished_ms", sa.BigInteger),
        sa.Column("leased_by", sa.String(64)),
        sa.Column("leased_until_ms", sa.BigInteger),
        sa.Column("outcome", sa.String(2000)),
        sqlite_autoincrement=True,
        mysql_charset="utf8mb4",
        mariadb_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mariadb_collate="utf8mb4_bin",
    )
    operations.create_index("supabase_outbox_open", "supabase_outbox", ["state", "workspace", "model", "id"])
    operations.create_index("supabase_outbox_model", "supabase_outbox", ["workspace", "model", "version"])
    operations.create_table(
        "supabase_bridge_meta",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("schema_version", sa.Integer, nullable=False),
        sa.Column("registry_id", sa.String(36), nullable=False),
    )
