"""Record who made a change of the registry: a column."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.operations import Operations

from supabase_bridge.outbox.tables import OUTBOX

revision = "0010"
down_revision = "0009"


def upgrade(operations: Operations) -> None:
    """Add what is missing: a new database has the column, and on MySQL an earlier attempt may have been cut short."""
    present = {column["name"] for column in sa.inspect(operations.get_bind()).get_columns(OUTBOX.name)}
    if "made_by" not in present:
        operations.add_column(OUTBOX.name, sa.Column("made_by", OUTBOX.c.made_by.type))
