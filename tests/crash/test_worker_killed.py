"""A worker that is killed before or after any of its side effects leaves nothing that the next one does not finish."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from supabase_bridge.config import Settings
from tests.crash.matrix import Combination, check_points
from tests.databases import DatabaseServer
from tests.e2e.served import until
from tests.project_artifacts import settings_in_project, train_in_project
from tests.registry_fixtures import MakeScene, files_below, supabase_environment
from tests.simulators.faults import Fault, Hang
from tests.simulators.storage import StorageSimulator

EVERY = 8
"""Which points are taken where nothing else is asked for: every eighth, others on each of the four combinations."""
COPYING_EVERY = 15

_COPY = """
import sys
from datetime import timedelta
from supabase_bridge.secret import Secret
from supabase_bridge.object_store import PutOptions
from supabase_bridge.object_store.digest import digests_of
from supabase_bridge.object_store.supabase import SupabaseStore
releases, artifacts = [
    SupabaseStore(url=sys.argv[1], key=Secret(sys.argv[2]), bucket=bucket, timeout=timedelta(seconds=60))
    for bucket in ("models", "artifacts")
]
known = digests_of(b"weights")
releases.copy_in("artifacts", artifacts.stat("a"), "m/a", PutOptions(sha256=known.sha256, md5=known.md5))
"""


def combination(store: str, request: pytest.FixtureRequest) -> Combination:
    """A store."""
    if store == "directory":
        return Combination(environment={}, objects=lambda run: files_below(run / "supabase" / run.name))
    simulator: StorageSimulator = request.getfixturevalue("simulator")

    def objects(run: Path) -> dict[str, bytes]:
        return {key: simulator.object_bytes(run.name, key) for key in simulator.object_keys(run.name)}

    return Combination(environment=supabase_environment(simulator), objects=objects)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize("store", ["directory", "simulator"])
def test_a_killed_worker_is_made_good_by_the_next_one(
    store: str,
    database: str,
    make_scene: MakeScene,
    directory_settings: Settings,
    runs: Path,
    request: pytest.FixtureRequest,
    tell: Callable[[str], None],
) -> None:
    every: int = request.config.getoption("--crash-every", None) or EVERY
    stage = combination(store, request)
    changes = {}
    if database == "postgresql":
        server: DatabaseServer = request.getfixturevalue("postgresql")
        changes = {"database_url": server.create()}
        stage = replace(stage, database=("--template", changes["database_url"], "--admin-url", server.admin_url))
    scene = make_scene(directory_settings, **changes)
    for metrics in ({"recall_at_20": 0.25}, {"recall_at_20": 0.375}):
        scene.train(metrics=metrics)
    first = (2 * (store == "simulator") + (database == "postgresql")) % every
    count = check_points(stage, scene.settings.home, runs, first=first, every=every)
    tell(f"killed workers: {count} points covered on {store} and {database}")


def test_a_killed_worker_that_copies_within_the_project_is_made_good_by_the_next_one(
    make_scene: MakeScene,
    directory_settings: Settings,
    simulator: StorageSimulator,
    tmp_path: Path,
    runs: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tell: Callable[[str], None],
) -> None:
    scene = make_scene(settings_in_project(directory_settings, simulator, monkeypatch))
    for metrics in ({"recall_at_20": 0.25}, {"recall_at_20": 0.375}):
        train_in_project(scene, tmp_path / "trainings", metrics=metrics)
    stage = replace(combination("simulator", request), environment={})
    every: int = request.config.getoption("--crash-every", None) or COPYING_EVERY
    count = check_points(stage, scene.settings.home, runs, first=0, every=every)
    assert simulator.count("POST", "/object/copy") >= 2 * count
    tell(f"killed workers: {count} points covered on the simulator, copying")


def test_a_worker_killed_between_copy_and_move_leaves_nothing_that_the_next_one_trips_over(
    simulator: StorageSimulator,
) -> None:
    simulator.put_object("models", "other", b"")
    simulator.put_object("artifacts", "a", b"weights")
    simulator.inject(Fault(action=Hang(), path_contains="/object/move"))
    command = [sys.executable, "-c", _COPY, simulator.url, simulator.service_key]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        until(lambda: bool(simulator.object_keys("models", "_tmp/")), "the copy to be made", limit_seconds=60)
        process.kill()
    simulator.clear_faults()
    assert simulator.object_keys("models", "m/") == []
    assert subprocess.run(command, check=False, cwd=Path(__file__).parents[2]).returncode == 0
    assert simulator.object_bytes("models", "m/a") == b"weights"
