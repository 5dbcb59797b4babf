"""Workers, people and CI jobs that move one pointer at once, each a real process: the log has every switch once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from supabase_bridge.core.documents import Manifest
from supabase_bridge.core.events import EventState
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.core.release_log import PREVIOUS_KEPT
from tests.support.processes import surroundings
from tests.support.scene import BUCKET, MODEL, Scene, supabase_environment
from tests.support.served import until
from tests.support.simulators.storage import StorageSimulator
from tests.support.worker_scenes import LIMIT_SECONDS, MakeWorkerScene, worker_process

TIMES = 4
"""How often each command is given."""
LATEST = ChannelPaths(model_key=MODEL, channel="latest")


def commands(scene: Scene, simulator: StorageSimulator, directory: Path) -> Callable[..., None]:
    """What runs a command of the bridge, as a person or a CI job would; it must succeed."""
    environ = surroundings(directory, **supabase_environment(simulator))

    def run(*arguments: str) -> None:
        command = [sys.executable, "-m", "supabase_bridge.cli", *arguments, "--home", str(scene.settings.home)]
        done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return run


def taken_up(scene: Scene) -> bool:
    """Whether a worker has begun with the newest event."""
    return scene.events()[-1].attempts > 0


@pytest.mark.exhaustive
def test_workers_people_and_ci_jobs_at_once_lose_no_switch(
    make_worker_scene: MakeWorkerScene, simulator: StorageSimulator, tmp_path: Path
) -> None:
    scene = make_worker_scene()
    versions = [scene.train() for _ in range(4)]
    for version in versions[:2]:
        scene.promote(version)
        scene.work()
    releases = [scene.tags(version)["run_id"] for version in versions]
    run = commands(scene, simulator, tmp_path)

    def promote_now_and_then() -> None:
        for number in range(4 * TIMES):
            scene.promote(versions[number % 4])
            until(partial(taken_up, scene), "a worker to take it", limit_seconds=LIMIT_SECONDS)

    with ExitStack() as stack:
        for number in range(2):
            stack.enter_context(worker_process(scene, simulator, tmp_path / f"worker-{number}"))
        with ThreadPoolExecutor(4) as pool:
            jobs: list[Future[Any]] = [
                pool.submit(lambda: [run("activate", MODEL, releases[number % 4]) for number in range(TIMES)]),
                pool.submit(lambda: [run("activate", MODEL, releases[-number % 4]) for number in range(TIMES)]),
                pool.submit(lambda: [run("rollback", MODEL, "--without-mlflow") for _ in range(TIMES)]),
                pool.submit(promote_now_and_then),
            ]
        for job in jobs:
            job.result()
        scene.promote(versions[2])
        until(
            lambda: all(event.state is not EventState.PENDING for event in scene.events()),
            "every event to be done with",
            limit_seconds=LIMIT_SECONDS,
        )
    assert {event.state for event in scene.events()} <= {EventState.DONE, EventState.SUPERSEDED}
    written = [simulator.object_bytes(BUCKET, key) for key in simulator.object_keys(BUCKET, LATEST.history_prefix)]
    log = [Manifest.parse(entry) for entry in written]
    assert [entry.sequence for entry in log] == list(range(1, len(log) + 1))
    for before, after in pairwise(log):
        earlier = [before.current.run_id, *(pointer.run_id for pointer in before.previous)]
        kept = [old for old in earlier if old != after.current.run_id][:PREVIOUS_KEPT]
        assert [pointer.run_id for pointer in after.previous] == kept
    events = [entry.cause.event_id for entry in log if entry.cause is not None and entry.cause.event_id is not None]
    by_hand = [entry for entry in log if entry.cause is not None and entry.cause.by_hand]
    assert len(events) == len(set(events))
    assert 0 < len(by_hand) <= 3 * TIMES
    assert simulator.object_bytes(BUCKET, LATEST.manifest) == written[-1]
    assert scene.current() == versions[2]
