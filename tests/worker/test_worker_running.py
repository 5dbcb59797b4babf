"""A worker that runs: it sleeps until something changes, works on several models at once, and ends in order."""

from __future__ import annotations

import os
import threading
import time
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from supabase_bridge.app.backfill import drain_outbox
from supabase_bridge.core.events import EventKind, EventState
from supabase_bridge.outbox.tables import OUTBOX
from tests.support.scene import MODEL, Scene
from tests.support.served import until
from tests.support.simulators.storage import Delay, Fault, StorageSimulator
from tests.support.worker_scenes import LIMIT_SECONDS, MakeWorkerScene, working

pytestmark = pytest.mark.exhaustive

LONG = timedelta(seconds=600)
AT_ONCE_SECONDS = 15.0
CREATED, MOVED = EventKind.VERSION_CREATED, EventKind.STAGE_CHANGED


def pending(scene: Scene) -> set[str]:
    """The models with something on its way."""
    return {event.model for event in scene.events() if event.state is EventState.PENDING}


def finished(scene: Scene) -> bool:
    return not pending(scene)


def test_a_sleeping_worker_is_woken_by_a_promotion(make_worker_scene: MakeWorkerScene) -> None:
    scene = make_worker_scene(poll_interval=LONG)
    version = scene.train()
    scene.work()
    with working(scene):
        for stage in ("Staging", "Production"):
            scene.promote(version, stage)
            until(lambda: finished(scene), "the promotion to be carried out", limit_seconds=AT_ONCE_SECONDS)
    assert (scene.current("staging"), scene.current("latest")) == (version, version)


def test_a_sleeping_worker_gets_up_when_a_change_that_waits_becomes_due(make_worker_scene: MakeWorkerScene) -> None:
    scene = make_worker_scene(poll_interval=LONG)
    run_id = scene.log_run(running=True)
    scene.register(run_id)
    with working(scene):
        claims: set[datetime] = set()

        def claimed_again() -> bool:
            claims.update(filter(None, [scene.events()[0].claimed_at]))
            return len(claims) >= 2

        until(claimed_again, "a second look at the run", limit_seconds=AT_ONCE_SECONDS)
        assert scene.events()[0].attempts <= 1
        scene.client.set_terminated(run_id)
        until(lambda: finished(scene), "the version to be mirrored", limit_seconds=AT_ONCE_SECONDS)


def test_an_idle_worker_sends_no_request_and_no_query(
    make_worker_scene: MakeWorkerScene, simulator: StorageSimulator
) -> None:
    scene = make_worker_scene(poll_interval=LONG, reconcile_interval=timedelta(0))
    scene.train()
    scene.work()
    asked: list[str] = []
    # After a change of a file of SQLite's a worker looks again, each time after twice as long.
    an_hour_ago = time.time() - 3_600
    for path in scene.settings.home.glob("mlflow.db*"):
        os.utime(path, (an_hour_ago, an_hour_ago))

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    sa.event.listen(scene.runtime.outbox.engine, "before_cursor_execute", note)
    still = threading.Event()
    with working(scene):
        until(lambda: len(asked) > 0, "the first look", limit_seconds=AT_ONCE_SECONDS)
        # What a worker asks before it falls asleep is asked within this time; the next look is half a minute away.
        still.wait(0.7)
        asked.clear()
        simulator.reset_calls()
        still.wait(1.5)
        assert (asked, simulator.calls()) == ([], [])


def test_a_slow_model_keeps_no_other_waiting(make_worker_scene: MakeWorkerScene, simulator: StorageSimulator) -> None:
    scene = make_worker_scene(concurrency=2)
    slow, fast = scene.train(model="slow"), scene.train(model="fast")
    scene.work()
    over = threading.Event()
    simulator.inject(Fault(action=Delay(60, over), path_contains="slow/latest", times=1))
    scene.promote(slow, model="slow")
    scene.promote(fast, model="fast")
    with working(scene):
        # Not the pointer itself, which is between its log and its manifest for a moment.
        until(lambda: pending(scene) == {"slow"}, "the fast one", limit_seconds=LIMIT_SECONDS)
        assert scene.current(key="fast") == fast
        assert scene.head(key="slow") is None
        over.set()
        until(lambda: finished(scene), "the slow one", limit_seconds=LIMIT_SECONDS)
    assert scene.current(key="slow") == slow


def test_a_rollback_waits_for_no_upload_in_a_worker_that_uploads_one_version_at_a_time(
    make_worker_scene: MakeWorkerScene, simulator: StorageSimulator
) -> None:
    scene = make_worker_scene(concurrency=1, poll_interval=timedelta(seconds=0.1))
    first, second = scene.train(), scene.train()
    scene.work()
    for version in (first, second):
        scene.promote(version, archive=True)
        scene.work()
    over = threading.Event()
    uploading = Fault(action=Delay(LIMIT_SECONDS, over), method="POST", path_contains="_tmp/", times=1)
    simulator.inject(uploading)
    scene.train(model="large")
    with working(scene):
        until(lambda: simulator.struck() == [(uploading, 1)], "the upload to begin", limit_seconds=LIMIT_SECONDS)
        unmirrored = scene.train(model="another")
        scene.promote(unmirrored, model="another")
        until(
            lambda: scene.tags(unmirrored, "another").get("note", "").startswith("waits: this worker uploads"),
            "the promotion that needs an upload to wait",
            limit_seconds=LIMIT_SECONDS,
        )
        scene.promote(first, archive=True)
        until(lambda: pending(scene) == {"large", "another"}, "the rollback", limit_seconds=LIMIT_SECONDS)
        assert scene.current() == first
        over.set()
        until(lambda: finished(scene), "the uploads", limit_seconds=LIMIT_SECONDS)
    assert scene.current(key="another") == unmirrored


def test_sixty_versions_of_running_runs_end_a_pass_over_the_outbox_after_one_attempt_each(
    directory_scene: Scene,
) -> None:
    run_id = directory_scene.log_run(running=True)
    version = directory_scene.client.get_model_version(MODEL, str(directory_scene.register(run_id)))
    for _ in range(59):
        directory_scene.client.create_model_version(MODEL, str(version.source), run_id)
    attempted: list[int] = []
    result = drain_outbox(directory_scene.runtime, None, on_handled=lambda result: attempted.append(result.event.id))
    assert (result.done, len(result.left)) == (0, 60)
    assert len(set(attempted)) == len(attempted) == 60
    assert {event.attempts for event in directory_scene.events()} == {0}


@pytest.mark.parametrize("kind", [CREATED, MOVED])
def test_a_model_renamed_while_its_files_are_uploaded_is_mirrored_and_promoted_under_its_new_name(
    make_worker_scene: MakeWorkerScene, simulator: StorageSimulator, kind: EventKind
) -> None:
    scene = make_worker_scene(poll_interval=timedelta(seconds=0.1))
    version = scene.train(model="a")
    if kind is MOVED:
        scene.runtime.outbox.discard(scene.events()[0].id)
        scene.promote(version, model="a")
    over = threading.Event()
    simulator.inject(Fault(action=Delay(60, over), method="POST", path_contains="a/", times=1))
    with working(scene):
        until(lambda: "run_id" in scene.tags(version, "a"), "the uploads to begin", limit_seconds=LIMIT_SECONDS)
        scene.client.rename_registered_model("a", "b")
        over.set()
        until(lambda: finished(scene), "all to be finished", limit_seconds=LIMIT_SECONDS)
    (event,) = [event for event in scene.events() if event.kind is kind]
    assert (event.state, event.model, event.attempts) == (EventState.DONE, "b", 2)
    assert scene.tags(version, "b")["status"] == ("active" if kind is MOVED else "mirrored")
    assert scene.current(key="a") == (version if kind is MOVED else None)


def test_a_worker_that_is_stopped_finishes_what_it_has_in_hand(
    make_worker_scene: MakeWorkerScene, simulator: StorageSimulator
) -> None:
    scene = make_worker_scene(concurrency=3)
    models = ("a", "b", "c")
    versions = {model: scene.train(model=model) for model in models}
    scene.work()
    over = threading.Event()
    for model in models:
        simulator.inject(Fault(action=Delay(60, over), path_contains=f"{model}/latest", times=1))
        scene.promote(versions[model], model=model)
    with working(scene):
        until(
            lambda: sum(event.attempts > 0 for event in scene.events()) == 6, "all in hand", limit_seconds=LIMIT_SECONDS
        )
        threading.Timer(0.5, over.set).start()
    assert finished(scene)
    assert {model: scene.current(key=model) for model in models} == versions


def test_the_changes_of_one_model_are_made_in_order_however_many_at_once(make_worker_scene: MakeWorkerScene) -> None:
    scene = make_worker_scene(concurrency=4)
    versions = [scene.train(model=model) for model in ("a", "b") for _ in range(2)]
    scene.work()
    order = [versions[0], versions[1]] * 3
    for version in order:
        for model in ("a", "b"):
            scene.promote(version, archive=True, model=model)
    scene.work()
    for model in ("a", "b"):
        assert scene.current(key=model) == order[-1]
        done = [event for event in scene.events() if event.model == model and event.state is EventState.DONE]
        assert done[-1].version == order[-1]
        started = [event.started_at for event in done if event.started_at is not None]
        assert started == sorted(started)


def test_a_running_worker_removes_what_was_finished_longer_ago_than_the_settings_say(
    make_worker_scene: MakeWorkerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supabase_bridge.app.runtime._CLEANING_INTERVAL", timedelta(seconds=1))
    scene = make_worker_scene(outbox_retention=timedelta(days=30))
    for version in (scene.train(), scene.train()):
        scene.promote(version, "Archived")
    scene.work()
    (old, young), moved = ([event.id for event in scene.events() if event.kind is kind] for kind in (CREATED, MOVED))
    for event_id, age in ((old, timedelta(days=31)), (young, timedelta(days=29))):
        finished_ms = round((scene.clock() - age).timestamp() * 1_000)
        with scene.runtime.outbox.engine.begin() as connection:
            connection.execute(OUTBOX.update().where(OUTBOX.c.id == event_id).values(finished_ms=finished_ms))
    with working(scene):
        until(lambda: old not in [event.id for event in scene.events()], "the old one to go", limit_seconds=10)
    assert sorted(event.id for event in scene.events()) == sorted([young, *moved])
