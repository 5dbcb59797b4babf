"""Let the MLflow server record where its artifacts are: two columns beside the registry's identity."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.operations import Operations

from supabase_bridge.outbox.tables import META

revision = "0006"
down_revision = "0005"


def upgrade(operations: Operations) -> None:
    """Add what is missing: a new database has both columns, and on MySQL an earlier attempt may have been cut short."""
    present = {column["name"] for column in sa.inspect(operations.get_bind()).get_columns(META.name)}
    for name in ("artifacts_destination", "default_artifact_root"):
        if name not in present:
            operations.add_column(META.name, sa.Column(name, META.c[name].type))
