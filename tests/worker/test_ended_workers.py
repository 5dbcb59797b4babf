"""An event that ends each worker that processes it is tried alone, last and rarely, and given up after that."""

from __future__ import annotations

import signal
import threading
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from supabase_bridge.core.events import LONE_AFTER, Event, EventKind, EventState
from supabase_bridge.outbox.tables import OUTBOX
from tests.support.scene import Scene
from tests.support.served import until
from tests.support.simulators.storage import Delay, Fault, Hang, StorageSimulator
from tests.support.worker_scenes import LIMIT_SECONDS, MakeWorkerScene, worker_process, working

KILLER = "a_killer"


def ended_workers(scene: Scene, event_id: int, times: int) -> None:
    """Let an event have ended so many workers."""
    with scene.runtime.outbox.engine.begin() as connection:
        connection.execute(sa.update(OUTBOX).where(OUTBOX.c.id == event_id).values(takeovers=times))


def met(simulator: StorageSimulator) -> int:
    """How many requests have met a fault."""
    return sum(count for _, count in simulator.struck())


def test_an_event_that_also_ended_a_worker_that_did_nothing_else_is_dead_with_the_likely_cause_and_the_remedy(
    directory_scene: Scene,
) -> None:
    version = directory_scene.train()
    ended_workers(directory_scene, directory_scene.events()[0].id, LONE_AFTER + 1)
    directory_scene.work()
    (event,) = directory_scene.events()
    assert (event.state, directory_scene.tags(version)["status"]) == (EventState.DEAD, "failed")
    error = directory_scene.tags(version)["error"]
    assert error == event.outcome
    assert "4 worker processes ended" in error
    assert "ran out of memory" in error
    assert f"run `supabase-bridge outbox retry {event.id}`" in error
    directory_scene.runtime.outbox.retry(event.id)
    directory_scene.work()
    assert directory_scene.tags(version)["status"] == "mirrored"


def test_an_innocent_event_among_those_that_ended_their_worker_is_tried_last_and_finished(
    directory_scene: Scene,
) -> None:
    directory_scene.train(model=KILLER)
    directory_scene.train(model="other")
    ended_workers(directory_scene, directory_scene.events()[0].id, LONE_AFTER)
    assert [result.event.model for result in directory_scene.work()] == ["other", KILLER]
    assert {event.state for event in directory_scene.events()} == {EventState.DONE}
    assert {event.takeovers for event in directory_scene.events()} == {0, LONE_AFTER}


def test_a_worker_that_is_stopped_gives_back_what_takes_longer_and_counts_nothing(
    make_worker_scene: MakeWorkerScene, simulator: StorageSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supabase_bridge.worker.worker._STOP_PAUSE", timedelta(seconds=0.2))
    scene = make_worker_scene()
    version = scene.train()
    over = threading.Event()
    kept_waiting = Fault(action=Delay(LIMIT_SECONDS, over), method="POST", path_contains="_tmp/", times=1)
    simulator.inject(kept_waiting)
    with working(scene):
        until(lambda: simulator.struck() == [(kept_waiting, 1)], "the upload to begin", limit_seconds=LIMIT_SECONDS)
    (event,) = scene.events()
    assert (event.state, event.leased_by, event.attempts, event.takeovers) == (EventState.PENDING, None, 0, 0)
    assert event.outcome == "the worker was stopped"
    over.set()  # A process that exits ends its upload; here it goes on, and its result does not count.

    def mirrored() -> bool:
        scene.work_later(timedelta(seconds=2))
        return scene.tags(version).get("status") == "mirrored"

    until(mirrored, "the next attempt", limit_seconds=LIMIT_SECONDS)
    assert (scene.events()[0].state, scene.events()[0].attempts) == (EventState.DONE, 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("make_worker_scene", ["sqlite"], indirect=True)
def test_a_worker_process_that_gets_sigterm_during_an_upload_ends_in_time_and_gives_its_event_back(
    make_worker_scene: MakeWorkerScene, simulator: StorageSimulator, tmp_path: Path
) -> None:
    scene = make_worker_scene()
    scene.train()
    hung = Fault(action=Hang(), method="POST", path_contains="_tmp/")
    simulator.inject(hung)
    with worker_process(scene, simulator, tmp_path / "said") as process:
        until(lambda: met(simulator) > 0, "the upload to begin", limit_seconds=LIMIT_SECONDS)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    (event,) = scene.events()
    assert (event.state, event.leased_by, event.attempts, event.takeovers) == (EventState.PENDING, None, 0, 0)
    assert b"Traceback" not in (tmp_path / "said").read_bytes()


@pytest.mark.exhaustive
@pytest.mark.parametrize("make_worker_scene", ["sqlite"], indirect=True)
def test_an_event_that_ends_each_worker_is_dead_after_four_and_the_other_models_are_served(
    make_worker_scene: MakeWorkerScene, simulator: StorageSimulator, tmp_path: Path
) -> None:
    scene = make_worker_scene()
    (scene.settings.home / "supabase-bridge.toml").write_text("lease = 1\nretry_cap = 2\n")
    scene.train(model=KILLER)
    others = [scene.train(model=model) for model in ("b", "c")]
    simulator.inject(Fault(action=Hang(), path_contains=f"{KILLER}/"))

    def event_of(model: str) -> Event:
        return next(event for event in scene.events() if event.model == model)

    def hangs(ended: int, before: int) -> bool:
        """Whether this worker has claimed the killer, too, and waits; it sends several requests at once."""
        event = event_of(KILLER)
        return event.takeovers == ended and event.leased_by is not None and met(simulator) > before

    for ended in range(LONE_AFTER + 1):
        before = met(simulator)
        with worker_process(scene, simulator, tmp_path / f"said-{ended}") as process:
            until(partial(hangs, ended, before), "the killer's upload", limit_seconds=LIMIT_SECONDS)
            process.kill()
            process.wait()
    with worker_process(scene, simulator, tmp_path / "said"):
        until(
            lambda: event_of(KILLER).state is EventState.DEAD,
            "the killer to be given up",
            limit_seconds=LIMIT_SECONDS,
        )
    assert [event_of(model).state for model in ("b", "c")] == [EventState.DONE] * 2
    assert [scene.tags(version, model)["status"] for version, model in zip(others, ("b", "c"), strict=True)] == [
        "mirrored"
    ] * 2
    (event,) = [event for event in scene.events() if event.model == KILLER]
    assert (event.kind, event.takeovers) == (EventKind.VERSION_CREATED, LONE_AFTER + 1)
    assert "4 worker processes ended" in scene.tags(1, KILLER)["error"]
