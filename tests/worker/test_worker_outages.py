"""What a running worker makes of a database that restarts, a disk that is full, a key that is replaced: it waits."""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from supabase_bridge.app.runtime import open_runtime
from supabase_bridge.core.events import EventState
from tests.support.databases import DatabaseServer
from tests.support.full_disk import no_file_larger_than
from tests.support.project_artifacts import torch_archive
from tests.support.scene import Scene, model_files
from tests.support.served import until
from tests.support.simulators.storage import Delay, Fault, Outage, StorageSimulator
from tests.support.worker_scenes import LIMIT_SECONDS, MakeWorkerScene, working

pytestmark = pytest.mark.exhaustive

SOON = timedelta(milliseconds=500)
MIB = 1024 * 1024
on_sqlite = pytest.mark.parametrize("make_worker_scene", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("make_worker_scene", ["postgresql"], indirect=True)


def finished(scene: Scene) -> bool:
    return all(event.state is not EventState.PENDING for event in scene.events())


@on_postgresql
def test_a_restart_of_the_database_loses_nothing_and_the_worker_goes_on(
    make_worker_scene: MakeWorkerScene,
    postgresql: DatabaseServer,
    simulator: StorageSimulator,
    bridge_log: pytest.LogCaptureFixture,
) -> None:
    scene = make_worker_scene(lease=timedelta(seconds=2), retry_cap=SOON, poll_interval=SOON)
    first, second = scene.train(), scene.train()
    scene.work()
    scene.promote(first)
    simulator.inject(Fault(action=Delay(1.0), path_contains="two_tower/latest", times=1))
    with bridge_log.at_level(logging.WARNING), working(scene):
        until(lambda: scene.events()[-1].attempts > 0, "the promotion in hand", limit_seconds=LIMIT_SECONDS)
        postgresql.stop()
        try:
            until(lambda: bridge_log.records != [], "a word", limit_seconds=20)
        finally:
            postgresql.start()
        until(lambda: finished(scene), "the promotion after the restart", limit_seconds=LIMIT_SECONDS)
        scene.promote(second)
        until(lambda: finished(scene), "a later promotion", limit_seconds=LIMIT_SECONDS)
    head = scene.head()
    assert head is not None
    assert (head.current.model_version, head.sequence) == (second, 2)
    assert {event.state for event in scene.events()} == {EventState.DONE}


def reasons(log: pytest.LogCaptureFixture) -> set[str]:
    """Why a worker could not read its outbox."""
    return {item.__dict__["reason"] for item in log.records if item.getMessage() == "the outbox cannot be read"}


@on_sqlite
def test_a_store_whose_disk_is_full_is_named_and_the_release_follows_when_there_is_room(
    make_worker_scene: MakeWorkerScene,
) -> None:
    scene = make_worker_scene(environ={})
    version = scene.train(files={**model_files(), "two_tower_latest.pt": torch_archive(os.urandom(5 * MIB))})
    with no_file_larger_than(4 * MIB):
        (handled,) = scene.work()
    assert handled.state is EventState.PENDING
    assert "file too large" in handled.outcome
    assert (scene.tags(version)["status"], scene.tags(version)["error"]) == ("retrying", handled.outcome)
    assert [key for key in scene.objects() if key.endswith(".pt")] == []
    (handled,) = scene.work_later()
    assert handled.state is EventState.DONE


@on_sqlite
def test_a_database_whose_disk_is_full_is_named_and_the_worker_goes_on_when_there_is_room(
    make_worker_scene: MakeWorkerScene, bridge_log: pytest.LogCaptureFixture
) -> None:
    scene = make_worker_scene(retry_cap=SOON)
    version = scene.train()
    database = Path(scene.runtime.outbox.engine.url.database or "")
    with (
        closing(sqlite3.connect(database, isolation_level=None)) as reader,
        closing(sqlite3.connect(database, isolation_level=None)) as writer,
    ):
        # Somebody looks at what was, so that the write-ahead log cannot start anew, and grows beyond the limit.
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM registered_models").fetchall()
        writer.execute("CREATE TABLE filling (bytes BLOB)")
        writer.execute("INSERT INTO filling VALUES (zeroblob(?))", (4 * MIB,))
        assert database.with_name(f"{database.name}-wal").stat().st_size > 3 * MIB
        with bridge_log.at_level(logging.WARNING), no_file_larger_than(3 * MIB), working(scene):
            until(
                lambda: "the outbox cannot be read" in bridge_log.text, "the worker's word", limit_seconds=LIMIT_SECONDS
            )
        assert reasons(bridge_log) == {"MLflow could not reach its database: disk I/O error"}
    assert scene.events()[-1].state is EventState.PENDING
    with working(scene):
        until(lambda: "run_id" in scene.tags(version), "the release", limit_seconds=LIMIT_SECONDS)


@on_sqlite
def test_a_database_that_says_it_is_full_is_named_and_the_worker_goes_on_when_there_is_room(
    make_worker_scene: MakeWorkerScene, bridge_log: pytest.LogCaptureFixture
) -> None:
    scene = make_worker_scene(retry_cap=SOON)
    version = scene.train()
    engine = scene.runtime.outbox.engine
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE filling (bytes BLOB)")
        # What is taken up needs room, which a change of a few bytes may find in its page.
        filling = f"INSERT INTO filling VALUES (zeroblob({MIB}))"
        connection.exec_driver_sql(f"CREATE TRIGGER fill AFTER UPDATE ON supabase_outbox BEGIN {filling}; END")

    def limit(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # No less than there are.

    sa.event.listen(engine, "connect", limit)
    engine.dispose()
    with bridge_log.at_level(logging.WARNING), working(scene):
        until(lambda: "the outbox cannot be read" in bridge_log.text, "the worker's word", limit_seconds=LIMIT_SECONDS)
    assert reasons(bridge_log) == {"MLflow could not reach its database: database or disk is full"}
    assert [event.attempts for event in scene.events()] == [0]
    sa.event.remove(engine, "connect", limit)
    engine.dispose()
    with working(scene):
        until(lambda: "run_id" in scene.tags(version), "the release", limit_seconds=LIMIT_SECONDS)


@on_sqlite
@pytest.mark.parametrize(
    ("outage", "said"),
    [
        (Outage.OVER_QUOTA, "billing"),
        (Outage.PAUSED, "the project is paused"),
        (Outage.FULL_DISK, "the disk of the storage is full"),
        (Outage.DATABASE_TIMEOUT, "the project's database did not answer in time"),
    ],
)
def test_a_project_that_its_owner_has_to_restore_is_waited_for_with_the_reason_in_the_tag(
    make_worker_scene: MakeWorkerScene, simulator: StorageSimulator, outage: Outage, said: str
) -> None:
    scene = make_worker_scene()
    version = scene.train()
    simulator.suffer(outage)
    (handled,) = scene.work()
    assert handled.state is EventState.PENDING
    assert scene.tags(version)["status"] == "retrying"
    assert said in scene.tags(version)["error"]
    simulator.suffer(Outage.NONE)
    assert [item.state for item in scene.work_later()] == [EventState.DONE]


def test_a_replaced_key_is_waited_for_and_with_the_new_one_the_promotion_is_carried_out(
    make_worker_scene: MakeWorkerScene,
) -> None:
    scene = make_worker_scene()
    version = scene.train()
    scene.work()
    scene.promote(version)
    key = scene.settings.service_key
    assert key is not None
    former = make_worker_scene(service_key=SecretStr(f"{key.get_secret_value()[:-8]}replaced"))
    (handled,) = former.work()
    assert handled.state is EventState.PENDING
    assert scene.tags(version)["status"] == "retrying"
    assert "check SUPABASE_SECRET_KEY" in scene.tags(version)["error"]
    assert former.work_later() != []
    assert scene.events()[-1].state is EventState.PENDING
    with open_runtime(scene.settings) as restarted:
        restarted.outbox.retry(scene.events()[-1].id)
        assert restarted.worker().drain() == 1
    assert scene.current() == version
