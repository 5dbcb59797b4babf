"""Runs alembic over the outbox's tables: apart from MLflow's own migrations, in its own version table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, MigrationStep
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from supabase_bridge.outbox.tables import VERSION

_REVISIONS = Path(__file__).parent / "migrations"


def migrate(connection: Connection, revision: str, *, to: str = "head") -> None:
    """Lead the tables from a revision to a later one, in the transaction `connection` is in.

    PostgreSQL and SQLite keep all of it or nothing; MySQL commits step by step, and a migration that was cut short goes
    on where it stopped.

    Args:
        revision: What the tables are at now; "base" where there are none.
    """
    script = ScriptDirectory(str(_REVISIONS), version_locations=[str(_REVISIONS)])

    def steps(_: object, _context: MigrationContext) -> Iterator[MigrationStep]:
        found = list(script.iterate_revisions(to, revision, implicit_base=True))
        return (MigrationStep.upgrade_from_script(script.revision_map, item) for item in reversed(found))

    VERSION.create(connection, checkfirst=True)
    if revision != "base" and connection.execute(sa.select(VERSION.c.version_num)).first() is None:
        connection.execute(VERSION.insert().values(version_num=revision))
    options = {"version_table": VERSION.name, "fn": steps}
    context = MigrationContext.configure(connection, opts=options)
    # Handed to each revision: alembic's `op` is one for the whole process, and servers have threads.
    context.run_migrations(operations=Operations(context))
