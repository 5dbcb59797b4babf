"""Create the tables. The id is `0004`, so that databases of revisions before the first release open unchanged."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from alembic.operations import Operations

from supabase_bridge.outbox.tables import META, METADATA

revision = "0004"
down_revision = None


def upgrade(operations: Operations) -> None:
    """Create each table that is missing: on MySQL an earlier attempt may have been cut short."""
    connection = operations.get_bind()
    METADATA.create_all(connection)
    if connection.execute(sa.select(META.c.id)).first() is None:
        connection.execute(META.insert().values(id=1, registry_id=str(uuid.uuid4())))
