"""A worker that is killed before or after any of its side effects leaves nothing that the next one does not finish."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from supabase_bridge.config import Settings
from tests.e2e.served import until
from tests.project_artifacts import settings_in_project, train_in_project
from tests.registry_fixtures import MakeScene, Scene, files_below, supabase_environment
from tests.simulators.faults import Fault, Hang
from tests.simulators.storage import StorageSimulator

_LIMIT_SECONDS = 300
_QUERIES = {
    "events": "SELECT id, kind, version, stage, state, outcome FROM supabase_outbox ORDER BY id",
    "tags of versions": "SELECT version, key, value FROM model_version_tags ORDER BY version, key",
    "tags of models": "SELECT name, key, value FROM registered_model_tags ORDER BY name, key",
    "stages": "SELECT version, current_stage FROM model_versions ORDER BY version",
}

_COPY = """
import sys
from datetime import timedelta
from supabase_bridge.config import Secret
from supabase_bridge.object_store import PutOptions
from supabase_bridge.object_store.supabase import SupabaseStore
releases, artifacts = [
    SupabaseStore(url=sys.argv[1], key=Secret(sys.argv[2]), bucket=bucket, timeout=timedelta(seconds=60))
    for bucket in ("models", "artifacts")
]
releases.copy_in("artifacts", artifacts.stat("a"), "m/a", PutOptions())
"""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: what is in the store, and what the database says."""

    objects: Mapping[str, bytes]
    rows: Mapping[str, list[tuple[Any, ...]]]

    def differences(self, other: Outcome) -> list[str]:
        """Where another outcome differs, in words."""
        keys = sorted(self.objects.keys() | other.objects.keys())
        found = [key for key in keys if self.objects.get(key) != other.objects.get(key)]
        return found + [f"{name}: {other.rows[name]}" for name in self.rows if self.rows[name] != other.rows[name]]


def test_a_killed_worker_is_made_good_by_the_next_one(
    directory_scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def objects(run: Path) -> dict[str, bytes]:
        return files_below(run / "supabase" / run.name)

    count = check_every_point(directory_scene, tmp_path / "runs", objects, environment={}, every=1)
    with capsys.disabled():
        sys.stdout.write(f"\n{count} points covered on the directory store\n")


def test_a_killed_worker_is_made_good_by_the_next_one_on_supabase(
    directory_scene: Scene, simulator: StorageSimulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def objects(run: Path) -> dict[str, bytes]:
        return {key: simulator.object_bytes(run.name, key) for key in simulator.object_keys(run.name)}

    environment = supabase_environment(simulator)
    count = check_every_point(directory_scene, tmp_path / "runs", objects, environment=environment, every=7)
    with capsys.disabled():
        sys.stdout.write(f"\n{count} points covered on the simulator\n")


def test_a_killed_worker_that_copies_within_the_project_is_made_good_by_the_next_one(
    make_scene: MakeScene,
    directory_settings: Settings,
    simulator: StorageSimulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def objects(run: Path) -> dict[str, bytes]:
        return {key: simulator.object_bytes(run.name, key) for key in simulator.object_keys(run.name)}

    def train(metrics: Mapping[str, float]) -> None:
        train_in_project(scene, tmp_path / "trainings", metrics=metrics)

    scene = make_scene(settings_in_project(directory_settings, simulator, monkeypatch))
    count = check_every_point(scene, tmp_path / "runs", objects, environment={}, every=9, train=train)
    assert simulator.count("POST", "/object/copy") >= 2 * count
    with capsys.disabled():
        sys.stdout.write(f"\n{count} points covered on the simulator, copying\n")


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


def check_every_point(
    scene: Scene,
    runs: Path,
    objects: Callable[[Path], dict[str, bytes]],
    *,
    environment: Mapping[str, str],
    every: int,
    train: Callable[[Mapping[str, float]], object] | None = None,
) -> int:
    """Run the driver, and compare every run with the one that was not disturbed; returns how many were killed."""
    for metrics in ({"recall_at_20": 0.25}, {"recall_at_20": 0.375}):
        (train or (lambda found: scene.train(metrics=found)))(metrics)
    ended = drive(scene.settings.home, runs, environment=environment, every=every)
    assert (ended.pop("rehearsal"), ended.pop("undisturbed")) == ([0], [0])
    assert ended
    assert {name: codes for name, codes in ended.items() if codes != [-signal.SIGKILL, 0]} == {}
    undisturbed = outcome(runs / "undisturbed", objects)
    check_story(undisturbed)
    different = {
        f"{name} {last_effect(runs / name)}": differences
        for name in ended
        if (differences := undisturbed.differences(outcome(runs / name, objects)))
    }
    assert different == {}
    return len(ended)


def check_story(undisturbed: Outcome) -> None:
    """What the runs are compared with is the whole story, so that nothing is proven by its absence."""
    manifest = json.loads(undisturbed.objects["two_tower/latest/manifest.json"])
    assert (manifest["sequence"], manifest["current"]["model_version"]) == (2, 2)
    assert [pointer["model_version"] for pointer in manifest["previous"]] == [1]
    assert {row[4] for row in undisturbed.rows["events"]} <= {"done", "superseded"}
    assert {(1, "supabase.status", "superseded"), (2, "supabase.status", "active")} <= set(
        undisturbed.rows["tags of versions"]
    )


def drive(home: Path, runs: Path, *, environment: Mapping[str, str], every: int) -> dict[str, list[int]]:
    """Run the driver; returns the exit codes of each run's processes, by the run's name."""
    command = [sys.executable, "-m", "tests.crash.driver", str(home), str(runs), "--every", str(every)]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["name"]: line["codes"] for line in lines}


def outcome(run: Path, objects: Callable[[Path], dict[str, bytes]]) -> Outcome:
    """How a run ended; temporary objects do not count."""
    with closing(sqlite3.connect(run / "mlflow.db")) as database:
        rows = {name: database.execute(query).fetchall() for name, query in _QUERIES.items()}
    lasting = {key: data for key, data in objects(run).items() if not key.startswith("_tmp/")}
    return Outcome(objects=lasting, rows=rows)


def last_effect(run: Path) -> str:
    """The side effect at which a run was killed."""
    return (run / "effects").read_text().splitlines()[-1]
