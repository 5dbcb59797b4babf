"""A worker that is killed before or after any of its side effects leaves nothing that the next one does not finish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from supabase_bridge.settings.model import Settings
from tests.crash.driver import MODEL, UNMOUNTED
from tests.crash.matrix import Combination, check_points
from tests.support.databases import DatabaseServer
from tests.support.project_artifacts import settings_in_project, train_in_project
from tests.support.scene import MakeScene, Scene, files_below, supabase_environment
from tests.support.simulators.storage import StorageSimulator

EVERY, COPYING_EVERY, STEPS_EVERY = 60, 100, 160
"""Which points are taken without `--crash-every`."""


def combination(store: str, request: pytest.FixtureRequest) -> Combination:
    """A store."""
    if store == "directory":
        return Combination(environment={}, objects=lambda run: files_below(run / "supabase" / run.name))
    simulator: StorageSimulator = request.getfixturevalue("simulator")

    def objects(run: Path) -> dict[str, bytes]:
        return {key: simulator.object_bytes(run.name, key) for key in simulator.object_keys(run.name)}

    return Combination(environment=supabase_environment(simulator), objects=objects)


def register_unreadable(scene: Scene) -> None:
    """Register a version whose files are on a disk that is not mounted."""
    source = scene.settings.home / UNMOUNTED / "model"
    scene.client.create_model_version(MODEL, str(source))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("store", "database"),
    [(store, database) for store in ("directory", "simulator") for database in ("sqlite", "postgresql")],
)
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
    register_unreadable(scene)
    first = (2 * (store == "simulator") + (database == "postgresql")) % every
    count = check_points(stage, scene.settings.home, runs, first=first, every=every)
    tell(f"killed workers: {count} points covered on {store} and {database}")


@pytest.mark.exhaustive
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
    register_unreadable(scene)
    stage = replace(combination("simulator", request), environment={})
    every: int = request.config.getoption("--crash-every", None) or COPYING_EVERY
    count = check_points(stage, scene.settings.home, runs, first=0, every=every)
    assert simulator.count("POST", "/object/copy") >= 2 * count
    tell(f"killed workers: {count} points covered on the simulator, copying")


@pytest.mark.exhaustive
def test_a_killed_worker_with_a_step_is_made_good_by_the_next_one(
    make_scene: MakeScene,
    directory_settings: Settings,
    runs: Path,
    request: pytest.FixtureRequest,
    tell: Callable[[str], None],
) -> None:
    stage = replace(combination("directory", request), steps=True)
    scene = make_scene(directory_settings)
    for metrics in ({"recall_at_20": 0.25}, {"recall_at_20": 0.375}):
        scene.train(metrics=metrics)
    register_unreadable(scene)
    every: int = request.config.getoption("--crash-every", None) or STEPS_EVERY
    count = check_points(stage, scene.settings.home, runs, first=0, every=every)
    for effect in ("run test -e", "record load", "commit time"):
        assert any(effect in path.read_text() for path in runs.glob("undisturbed-*/effects"))
    tell(f"killed workers: {count} points covered with a step before each activation")
