"""A remote registry as it was last seen, in the same database as the outbox: what the next look is compared with."""

from __future__ import annotations

import sqlalchemy as sa

from supabase_bridge.outbox.tables import METADATA

_NAME = sa.String(256)


def _table(name: str, *columns: sa.Column[str] | sa.Column[int]) -> sa.Table:
    """A table whose names compare byte for byte, as the outbox's do."""
    return sa.Table(
        name,
        METADATA,
        *columns,
        mysql_charset="utf8mb4",
        mariadb_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mariadb_collate="utf8mb4_bin",
    )


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
"""A deleted version stays, in MLflow's own stage for that, until its model goes."""

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
"""Our own tags of versions, by which releases and channels are looked after."""

TABLES = (WATCHED_MODELS, WATCHED_VERSIONS, WATCHED_ALIASES, WATCHED_TAGS)
