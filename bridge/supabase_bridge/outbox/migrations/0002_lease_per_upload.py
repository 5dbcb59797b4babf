"""Let a worker upload the files of a version without holding the model: columns, and the unique index of leases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.operations import Operations

from supabase_bridge.outbox.tables import LEASE_INDEX, OUTBOX, create_lease_index_on_mysql

revision = "0005"
down_revision = "0004"

_COLUMNS = ("uploading", "claimed_ms", "failures", "takeovers")
_FORMER_INDEX = "supabase_outbox_one_in_hand"


def upgrade(operations: Operations) -> None:
    """Add what is missing: a new database has all of it, and on MySQL an earlier attempt may have been cut short."""
    connection = operations.get_bind()
    inspector = sa.inspect(connection)
    present = {column["name"] for column in inspector.get_columns(OUTBOX.name)}
    indexes = {index["name"] for index in inspector.get_indexes(OUTBOX.name)}
    for name in _COLUMNS:
        if name not in present:
            column = OUTBOX.c[name]
            added = sa.Column(name, column.type, nullable=column.nullable, server_default=column.server_default)
            operations.add_column(OUTBOX.name, added)
    if connection.dialect.name in {"mysql", "mariadb"}:
        create_lease_index_on_mysql(connection)
    elif LEASE_INDEX not in indexes:
        found = [index for index in OUTBOX.indexes if index.name == LEASE_INDEX]
        found[0].create(connection)
    if _FORMER_INDEX in indexes:
        operations.drop_index(_FORMER_INDEX, OUTBOX.name)
