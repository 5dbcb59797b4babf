"""What must hold of events becomes constraints and indexes; the revision stands in `supabase_bridge_version`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0002"
down_revision = "0001"

_CHECKS = {
    "supabase_outbox_state": "state IN ('pending', 'done', 'superseded', 'dead', 'discarded')",
    "supabase_outbox_finished": "(state = 'pending') = (finished_ms IS NULL)",
    "supabase_outbox_lease": "(leased_by IS NULL) = (leased_until_ms IS NULL)",
    "supabase_outbox_held": "leased_by IS NULL OR state = 'pending'",
    "supabase_outbox_attempts": "attempts >= 0",
}
_ONE_IN_HAND = "supabase_outbox_one_in_hand"
_PENDING_WHERE = sa.text("state = 'pending'")
_HELD_WHERE = sa.text("leased_by IS NOT NULL AND NOT model_deleted")
_IN_HAND = "TINYINT AS (CASE WHEN leased_by IS NULL OR model_deleted THEN NULL ELSE 1 END) VIRTUAL"


def upgrade(operations: Operations) -> None:
    """Change the tables of revision 1; on MySQL, which commits every statement, what is done already is left.

    No lease survives: who holds an event finds it lost, and it is done again, which changes nothing where it was done.
    """
    connection = operations.get_bind()
    held = sa.text("UPDATE supabase_outbox SET leased_by = NULL, leased_until_ms = NULL WHERE leased_by IS NOT NULL")
    connection.execute(held)
    if connection.dialect.name == "sqlite":
        _rebuild_on_sqlite(operations)
    else:
        _change_in_place(operations)


def _change_in_place(operations: Operations) -> None:
    inspector = sa.inspect(operations.get_bind())
    mysql = operations.get_bind().dialect.name in {"mysql", "mariadb"}
    checks = {check["name"] for check in inspector.get_check_constraints("supabase_outbox")}
    for name, condition in _CHECKS.items():
        if name not in checks:
            operations.create_check_constraint(name, "supabase_outbox", condition)
    indexes = {index["name"] for index in inspector.get_indexes("supabase_outbox")}
    if "supabase_outbox_open" in indexes:
        operations.drop_index("supabase_outbox_open", "supabase_outbox")
    _create_indexes(operations, have=indexes, partial=not mysql)
    if mysql and _ONE_IN_HAND not in indexes:
        unique = f"ADD UNIQUE INDEX {_ONE_IN_HAND} (workspace, model, in_hand)"
        operations.execute(f"ALTER TABLE supabase_outbox ADD COLUMN in_hand {_IN_HAND}, {unique}")
    if "schema_version" in {column["name"] for column in inspector.get_columns("supabase_bridge_meta")}:
        operations.drop_column("supabase_bridge_meta", "schema_version")


def _create_indexes(operations: Operations, *, have: set[str | None], partial: bool) -> None:
    def create(name: str, columns: list[str], where: sa.TextClause | None = None, *, unique: bool = False) -> None:
        if name not in have:
            operations.create_index(
                name, "supabase_outbox", columns, unique=unique, postgresql_where=where, sqlite_where=where
            )

    if partial:
        create("supabase_outbox_pending", ["workspace", "model", "id"], _PENDING_WHERE)
        create(_ONE_IN_HAND, ["workspace", "model"], _HELD_WHERE, unique=True)
    else:
        create("supabase_outbox_pending", ["state", "workspace", "model", "id"])
    create("supabase_outbox_model", ["workspace", "model", "version"])
    create("supabase_outbox_finished_ms", ["finished_ms"])


def _rebuild_on_sqlite(operations: Operations) -> None:
    """SQLite adds no constraint to a table: make another one, move the rows, and go on where its ids ended."""
    connection = operations.get_bind()
    columns = [
        sa.Column(column["name"], column["type"], nullable=column["nullable"], primary_key=column["name"] == "id")
        for column in sa.inspect(connection).get_columns("supabase_outbox")
    ]
    last = connection.scalar(sa.text("SELECT seq FROM sqlite_sequence WHERE name = 'supabase_outbox'"))
    operations.rename_table("supabase_outbox", "supabase_outbox_0001")
    for name in ("supabase_outbox_open", "supabase_outbox_model"):
        operations.drop_index(name, "supabase_outbox_0001")
    checks = [sa.CheckConstraint(condition, name=name) for name, condition in _CHECKS.items()]
    operations.create_table("supabase_outbox", *columns, *checks, sqlite_autoincrement=True)
    operations.execute("INSERT INTO supabase_outbox SELECT * FROM supabase_outbox_0001")
    operations.execute("DELETE FROM sqlite_sequence WHERE name = 'supabase_outbox'")
    if last is not None:
        sequence = sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES ('supabase_outbox', :last)")
        connection.execute(sequence, {"last": last})
    operations.drop_table("supabase_outbox_0001")
    _create_indexes(operations, have=set(), partial=True)
    identity = connection.execute(sa.text("SELECT id, registry_id FROM supabase_bridge_meta")).all()
    operations.drop_table("supabase_bridge_meta")
    made = operations.create_table(
        "supabase_bridge_meta",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("registry_id", sa.String(36), nullable=False),
    )
    operations.bulk_insert(made, [{"id": row.id, "registry_id": row.registry_id} for row in identity])
