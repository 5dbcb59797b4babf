"""A project whose data API has the table of usage reports, made by the documented SQL in a real PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.support.databases import DatabaseServer
from tests.support.simulators.postgrest import Postgrest
from tests.support.simulators.storage import StorageSimulator

DOCUMENT = (Path(__file__).parents[2] / "docs/consumers.md").read_text()
(SQL,) = [one for one in re.findall(r"```sql\n(.*?)```", DOCUMENT, re.DOTALL) if "release_usage" in one]


class UsageProject:
    """A simulated project, and the database behind its data API."""

    def __init__(self, simulator: StorageSimulator, database: str) -> None:
        self.simulator = simulator
        self.database = database
        simulator.serve_rest(Postgrest(database).handle)
        with psycopg.connect(database) as connection:
            # As Supabase does: a new table in `public` is open to the roles of the API until it is revoked.
            connection.execute("alter default privileges in schema public grant all on tables to anon, authenticated")
            connection.execute(SQL.encode())

    def rows(self) -> list[dict[str, Any]]:
        """The reports in the order of their arrival."""
        with psycopg.connect(self.database, row_factory=dict_row) as connection:
            return connection.execute("select * from public.release_usage order by id").fetchall()

    def environment(self, **more: str) -> dict[str, str]:
        """The variables of a consumer of this project that reports."""
        return {
            "SUPABASE_URL": self.simulator.url,
            "SUPABASE_PUBLISHABLE_KEY": self.simulator.anon_key,
            "SUPABASE_BRIDGE_USAGE_REPORTS": "true",
            "SUPABASE_BRIDGE_CONSUMER_NAME": "api",
            **more,
        }


@pytest.fixture
def usage_project(pgvector: DatabaseServer) -> Iterator[UsageProject]:
    """A project with the table of reports, whose publishable key may read the bucket."""
    database = pgvector.create().replace("postgresql+psycopg://", "postgresql://")
    with StorageSimulator() as simulator:
        project = UsageProject(simulator, database)
        yield project
