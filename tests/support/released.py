"""A home with two released versions, made once."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.databases import copy_sqlite
from tests.support.machine import made_once
from tests.support.processes import run, surroundings
from tests.support.simulators.storage import StorageSimulator

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Released:
    """A home with two released versions; see `two_releases`.

    Attributes:
        run_ids: The run_id of each version.
    """

    home: Path
    run_ids: dict[str, str]

    @property
    def database(self) -> str:
        return f"sqlite:///{self.home / 'mlflow.db'}"

    def fill(self, simulator: StorageSimulator) -> None:
        """Put the releases of the embedded store into a project."""
        bucket = self.home / "supabase" / "models"
        for path in bucket.rglob("*"):
            if path.is_file():
                simulator.put_object("models", path.relative_to(bucket).as_posix(), path.read_bytes())


@pytest.fixture(scope="session")
def released(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Released:
    """Make it once for reading only, because MLflow needs seconds to make a database."""

    def make(home: Path) -> None:
        elsewhere = tmp_path_factory.mktemp("releasing")
        copy_sqlite(empty_database, home / "mlflow.db")
        command = [sys.executable, "-m", "tests.support.two_releases", str(home)]
        out = run(command, cwd=elsewhere, env=surroundings(elsewhere, PYTHONPATH=str(ROOT)))
        (home / "run_ids.json").write_text(out.splitlines()[-1])

    home = made_once(tmp_path_factory, "released", make)
    return Released(home=home, run_ids=json.loads((home / "run_ids.json").read_text()))
