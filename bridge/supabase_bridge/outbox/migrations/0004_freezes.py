"""Let an operator freeze the channels of a model: a table."""

from __future__ import annotations

from alembic.operations import Operations

from supabase_bridge.outbox.tables import FREEZES

revision = "0007"
down_revision = "0006"


def upgrade(operations: Operations) -> None:
    """Create the table: a new database has it, and on MySQL an earlier attempt may have been cut short."""
    FREEZES.create(operations.get_bind(), checkfirst=True)
