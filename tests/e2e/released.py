"""A home with two released versions, made once."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.processes import run, surroundings
from tests.simulators.storage import StorageSimulator

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Released:
    """A home with two released versions; see `two_releases`.

    Attributes:
        run_ids: By version.
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
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    """Made once, and only read: MLflow takes seconds to set up a database."""
    home, elsewhere = tmp_path_factory.mktemp("released"), tmp_path_factory.mktemp("releasing")
    command = [sys.executable, "-m", "tests.e2e.two_releases", str(home)]
    out = run(command, cwd=elsewhere, env=surroundings(elsewhere, PYTHONPATH=str(ROOT)))
    return Released(home=home, run_ids=json.loads(out.splitlines()[-1]))
