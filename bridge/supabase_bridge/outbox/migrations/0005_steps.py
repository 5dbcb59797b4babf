"""Remember the steps that succeeded before an activation, and the time of an activation's commit."""

from __future__ import annotations

from alembic.operations import Operations

from supabase_bridge.outbox.tables import ACTIVATIONS, STEPS

revision = "0008"
down_revision = "0007"


def upgrade(operations: Operations) -> None:
    """Create what is missing: a new database has both, and on MySQL an earlier attempt may have been cut short."""
    for table in (STEPS, ACTIVATIONS):
        table.create(operations.get_bind(), checkfirst=True)
