"""Announce switches: destinations, how far each log is announced, and the deliveries."""

from __future__ import annotations

from alembic.operations import Operations

from supabase_bridge.outbox.tables import ANNOUNCED, DELIVERIES, DESTINATIONS

revision = "0009"
down_revision = "0008"


def upgrade(operations: Operations) -> None:
    """Create what is missing: a new database has all, and on MySQL an earlier attempt may have been cut short."""
    for table in (DESTINATIONS, ANNOUNCED, DELIVERIES):
        table.create(operations.get_bind(), checkfirst=True)
