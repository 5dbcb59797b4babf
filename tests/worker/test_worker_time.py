"""A worker whose clock jumps, or that is paused for longer than its lease: it takes nothing that is another's."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.app.backfill import drain_outbox
from supabase_bridge.core.events import EventState
from supabase_bridge.core.layout import TEMPORARY_PREFIX
from supabase_bridge.outbox.periodic import RECONCILE
from supabase_bridge.outbox.tables import PERIODIC_TASKS
from supabase_bridge.storage.base import PutOptions
from tests.support.commands import invoke
from tests.support.scene import supabase_environment
from tests.support.served import until
from tests.support.simulators.storage import Delay, Fault, Respond, StorageSimulator
from tests.support.worker_scenes import LIMIT_SECONDS, MakeWorkerScene, worker_process, working

pytestmark = pytest.mark.exhaustive

DAY = timedelta(days=1)


def jump(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """Let the clock on this process's wall show another time."""

    class Jumped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Jumped:
            moment = datetime.now(tz) + by
            return cls.fromtimestamp(moment.timestamp(), tz)

    seconds, nanoseconds = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: seconds() + by.total_seconds())
    monkeypatch.setattr(time, "time_ns", lambda: nanoseconds() + round(by.total_seconds() * 1e9))
    for name, module in list(sys.modules.items()):
        if name.startswith("supabase_bridge") and getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", Jumped)


@pytest.mark.parametrize("by", [DAY, -DAY], ids=["forward", "back"])
def test_a_worker_whose_clock_jumps_a_day_takes_no_lease_that_lasts(
    make_worker_scene: MakeWorkerScene, monkeypatch: pytest.MonkeyPatch, by: timedelta
) -> None:
    scene = make_worker_scene()
    scene.train()
    held = scene.runtime.outbox.claim("other", lease=timedelta(seconds=60))
    jump(monkeypatch, by)
    assert scene.runtime.worker().step() is None
    assert held is not None
    scene.runtime.outbox.renew(held, "other", lease=timedelta(seconds=60))


@pytest.mark.parametrize(
    "by", [pytest.param(DAY, id="forward"), pytest.param(-DAY, id="back", marks=pytest.mark.exhaustive)]
)
def test_the_events_of_a_worker_whose_clock_jumped_wait_no_longer_for_that(
    make_worker_scene: MakeWorkerScene, simulator: StorageSimulator, monkeypatch: pytest.MonkeyPatch, by: timedelta
) -> None:
    scene = make_worker_scene(retry_cap=timedelta(seconds=2))
    scene.register(scene.log_run(running=True), model="unfinished")
    version = scene.train()
    simulator.inject(Fault(action=Respond(500), path_contains="two_tower"))
    with monkeypatch.context() as patched:
        jump(patched, by)
        with working(scene):
            until(lambda: all(event.attempts > 0 for event in scene.events()), "an attempt", limit_seconds=20)
        assert {event.state for event in scene.events()} == {EventState.PENDING}
    left = scene.runtime.outbox.until_due()
    assert left is None or left <= timedelta(seconds=3)
    simulator.clear_faults()
    with working(scene):
        until(lambda: "run_id" in scene.tags(version), "the version to be mirrored", limit_seconds=20)


def paused(process: subprocess.Popen[bytes], engine: Engine) -> bool:
    """Pause a process, unless it is writing to a SQLite file, which would stay locked; other databases end its wait."""
    os.kill(process.pid, signal.SIGSTOP)
    if engine.dialect.name != "sqlite":
        return True
    with closing(sqlite3.connect(str(engine.url.database), timeout=0)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            os.kill(process.pid, signal.SIGCONT)
            return False
    return True


@pytest.mark.parametrize("make_worker_scene", ["postgresql"], indirect=True)
def test_what_mlflow_writes_for_a_worker_is_not_locked_for_ever_either_where_the_worker_is_paused(
    make_worker_scene: MakeWorkerScene,
) -> None:
    scene = make_worker_scene()
    scene.train()
    scene.work()
    mlflows = scene.runtime.registry.client
    for client in (mlflows._get_registry_client(), mlflows._tracking_client):
        with client.store.engine.connect() as connection:
            longest = connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar_one()
            assert longest == "30s"


LOOK: dict[str, Any] = {"path_contains": "two_tower/latest"}
PUBLISH: dict[str, Any] = {"path_contains": "two_tower/latest/manifest.json", "method": "POST"}
REFUSED = Fault(action=Respond(403, b'{"statusCode": "403", "error": "Unauthorized", "message": "no"}'))


@pytest.mark.parametrize(
    ("where", "then"),
    [
        pytest.param(LOOK, None, id="before it moves anything", marks=pytest.mark.exhaustive),
        pytest.param(PUBLISH, None, id="while it publishes"),
        pytest.param(LOOK, REFUSED, id="and refused when it wakes", marks=pytest.mark.exhaustive),
    ],
)
def test_a_worker_paused_for_longer_than_its_lease_changes_nothing_that_another_took_over(
    make_worker_scene: MakeWorkerScene,
    simulator: StorageSimulator,
    tmp_path: Path,
    where: dict[str, Any],
    then: Fault | None,
) -> None:
    scene = make_worker_scene(lease=timedelta(seconds=1))
    (scene.settings.home / "supabase-bridge.toml").write_text("lease = 1\n")
    first, second = scene.train(), scene.train()
    scene.work()
    scene.promote(first)
    promotion = scene.events()[-1].id
    outbox, said = scene.runtime.outbox, tmp_path / "said"
    stopped = threading.Event()
    kept_waiting = Fault(action=Delay(LIMIT_SECONDS, over=stopped), times=1, **where)
    simulator.inject(kept_waiting)
    with worker_process(scene, simulator, said) as process:
        until(lambda: simulator.struck() == [(kept_waiting, 1)], "the process to get there", limit_seconds=60)
        until(lambda: paused(process, outbox.engine), "the process to write nothing", limit_seconds=LIMIT_SECONDS)
        stopped.set()
        # Half a minute longer where it is in the middle of a transaction on PostgreSQL.
        until(lambda: bool(scene.work()), "another worker to take it over", limit_seconds=2 * LIMIT_SECONDS)
        scene.promote(second)
        scene.work()
        before, objects, tags = outbox.get(promotion), scene.objects(), (scene.tags(first), scene.tags(second))
        assert (before.state, before.attempts, scene.current()) == (EventState.DONE, 2, second)
        if then is not None:
            simulator.inject(then)
        os.kill(process.pid, signal.SIGCONT)
        until(lambda: b"another worker" in said.read_bytes(), "the process to notice", limit_seconds=LIMIT_SECONDS)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_SECONDS) == 0
    simulator.clear_faults()
    assert outbox.get(promotion) == before
    assert (scene.objects(), (scene.tags(first), scene.tags(second))) == (objects, tags)


def test_a_worker_whose_clock_is_a_year_ahead_holds_up_no_pass_and_deletes_no_upload_on_its_way(
    make_worker_scene: MakeWorkerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_worker_scene()
    (task,) = [task for task in scene.runtime.periodic_tasks() if task.name == "reconcile"]
    scene.store.overwrite(f"{TEMPORARY_PREFIX}upload", b"on its way", PutOptions())
    with monkeypatch.context() as patched:
        jump(patched, 365 * DAY)
        task.act(threading.Event())
    assert [info.key for info in scene.store.list(TEMPORARY_PREFIX)] == [f"{TEMPORARY_PREFIX}upload"]
    with scene.runtime.outbox.engine.connect() as connection:
        due_ms = connection.execute(
            sa.select(PERIODIC_TASKS.c.due_ms).where(PERIODIC_TASKS.c.name == RECONCILE)
        ).scalar_one()
    left = timedelta(milliseconds=due_ms) - timedelta(seconds=time.time())
    assert timedelta(0) < left <= scene.settings.reconcile_interval


def test_a_sync_whose_clock_is_a_year_ahead_deletes_no_upload_on_its_way(
    make_worker_scene: MakeWorkerScene, simulator: StorageSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_worker_scene()
    scene.store.overwrite(f"{TEMPORARY_PREFIX}upload", b"on its way", PutOptions())
    jump(monkeypatch, 365 * DAY)
    environ = {**supabase_environment(simulator), "SUPABASE_BRIDGE_DATABASE_URL": scene.settings.database_url}
    said = invoke("sync", "--home", scene.settings.home, environment=environ)
    assert said.code == 0, said.err
    assert [info.key for info in scene.store.list(TEMPORARY_PREFIX)] == [f"{TEMPORARY_PREFIX}upload"]


def test_a_backlog_is_worked_off_to_its_end_by_a_process_whose_clock_is_ahead(
    make_worker_scene: MakeWorkerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_worker_scene()
    version = scene.train()
    scene.work()
    scene.promote(version, "Archived")
    assert scene.runtime.outbox.claim("other", lease=timedelta(seconds=1)) is not None
    jump(monkeypatch, DAY)
    worked = drain_outbox(scene.runtime, None, on_handled=lambda _: None)
    assert (worked.done, worked.left) == (1, ())
