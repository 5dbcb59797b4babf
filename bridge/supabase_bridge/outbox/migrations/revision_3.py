"""Tables of their own for duties done now and then, and for a remote registry as it was last seen."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0003"
down_revision = "0002"

_NAME = sa.String(256)


def upgrade(operations: Operations) -> None:
    """Make the tables; on MySQL, which commits every statement, what is there already is left."""
    have = set(sa.inspect(operations.get_bind()).get_table_names())
    for name, columns in _tables().items():
        if name not in have:
            operations.create_table(
                name,
                *columns,
                mysql_charset="utf8mb4",
                mariadb_charset="utf8mb4",
                mysql_collate="utf8mb4_bin",
                mariadb_collate="utf8mb4_bin",
            )


def _tables() -> dict[str, list[sa.Column[str] | sa.Column[int]]]:
    return {
        "supabase_bridge_duties": [
            sa.Column("name", sa.String(96), primary_key=True),
            sa.Column("due_ms", sa.BigInteger, nullable=False),
            sa.Column("place", sa.String(512), nullable=False),
        ],
        "supabase_watched_models": [
            sa.Column("model", _NAME, primary_key=True),
            sa.Column("model_key", sa.String(250)),
        ],
        "supabase_watched_versions": [
            sa.Column("model", _NAME, primary_key=True),
            sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("stage", sa.String(20), nullable=False),
            sa.Column("changed_ms", sa.BigInteger),
        ],
        "supabase_watched_aliases": [
            sa.Column("model", _NAME, primary_key=True),
            sa.Column("alias", _NAME, primary_key=True),
            sa.Column("version", sa.Integer, nullable=False),
            sa.Column("changed_ms", sa.BigInteger),
        ],
        "supabase_watched_tags": [
            sa.Column("model", _NAME, primary_key=True),
            sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("tag", sa.String(250), primary_key=True),
            sa.Column("value", sa.String(250), nullable=False),
        ],
    }
