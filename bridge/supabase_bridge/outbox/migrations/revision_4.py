"""When the models and versions of a remote registry came into being: a name may be used again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0004"
down_revision = "0003"


def upgrade(operations: Operations) -> None:
    """Add the columns; on MySQL, which commits every statement, what is there already is left."""
    inspector = sa.inspect(operations.get_bind())
    for table in ("supabase_watched_models", "supabase_watched_versions"):
        if "created_ms" not in {column["name"] for column in inspector.get_columns(table)}:
            operations.add_column(table, sa.Column("created_ms", sa.BigInteger))
