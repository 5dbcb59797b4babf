"""The periodic pass: one worker of a registry does it, when it is due."""

from __future__ import annotations

import logging
import threading
from datetime import datetime, timedelta, timezone

import pytest

from supabase_bridge.core.errors import SettingsError
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.outbox import periodic as duties
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.errors import StoreUnavailableError
from tests.support.scene import MODEL, MakeScene, Scene
from tests.support.served import until
from tests.support.simulators.storage import StorageSimulator

MANIFEST = ChannelPaths(model_key=MODEL, channel="latest").manifest
NOW = datetime(2025, 11, 1, 12, tzinfo=timezone.utc)


def do_pass(scene: Scene, *, after: timedelta = timedelta()) -> bool:
    return scene.runtime.reconciler().run_if_due(threading.Event(), now=NOW + after)


def test_of_several_workers_one_does_the_pass_and_after_the_interval_one_again(directory_scene: Scene) -> None:
    interval = directory_scene.settings.reconcile_interval
    assert [do_pass(directory_scene) for _ in range(3)] == [True, False, False]
    almost = interval - timedelta(seconds=1)
    assert [do_pass(directory_scene, after=after) for after in (almost, interval, interval)] == [False, True, False]


def test_a_running_worker_finds_what_no_event_said(make_scene: MakeScene, directory_settings: Settings) -> None:
    scene = make_scene(directory_settings, reconcile_interval=timedelta(seconds=0.1))
    scene.train()
    scene.promote(1)
    with scene.runtime.outbox.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM supabase_outbox")
    stop = threading.Event()
    working = threading.Thread(target=scene.runtime.worker().run, args=(stop,))
    working.start()
    try:
        until(lambda: (scene.settings.home / "supabase/models" / MANIFEST).exists(), "the pointer", limit_seconds=60)
    finally:
        stop.set()
        working.join()
    assert scene.current() == 1


def test_an_interval_of_0_is_never(make_scene: MakeScene, directory_settings: Settings) -> None:
    scene = make_scene(directory_settings, reconcile_interval=timedelta(0))
    assert [task.name for task in scene.runtime.periodic_tasks()] == ["remove finished events"]


def test_a_pass_that_fails_is_done_again_after_the_interval_and_does_the_rest(
    supabase_scene: Scene,
    simulator: StorageSimulator,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reconciler = logging.getLogger("supabase_bridge.reconcile.reconciler")
    # MLflow 2.22 replaces the handlers of the root logger, the fixture's too, when it makes a database.
    monkeypatch.setattr(reconciler, "handlers", [caplog.handler])
    monkeypatch.setattr(reconciler, "propagate", False)
    supabase_scene.promote(supabase_scene.train())
    supabase_scene.work()
    supabase_scene.store.delete([MANIFEST])
    simulator.stop()
    with pytest.raises(StoreUnavailableError):
        do_pass(supabase_scene)
    simulator.start()
    assert do_pass(supabase_scene, after=supabase_scene.settings.reconcile_interval)
    warnings = [record.getMessage() for record in caplog.records if record.name == reconciler.name]
    assert warnings == ["reconcile: manifest_differs"]
    assert supabase_scene.current() == 1


def test_a_duty_remembers_how_far_it_came(directory_scene: Scene) -> None:
    engine = directory_scene.runtime.outbox.engine
    assert duties.cursor(engine, "a duty") == ""
    duties.set_cursor(engine, "a duty", "so far")
    assert (duties.cursor(engine, "a duty"), duties.cursor(engine, "another")) == ("so far", "")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("temporary_keys_age = 86399", "86400 at least"),
        ("reconcile_interval = -1", "or 0 for never"),
        ("reconcile_interval = true", "or 0 for never"),
        ("temporary_keys_age = 0", "86400 at least"),
    ],
)
def test_a_wrong_span_is_refused_with_what_is_allowed(line: str, said: str, directory_settings: Settings) -> None:
    directory_settings.home.mkdir()
    (directory_settings.home / "supabase-bridge.toml").write_text(line)
    with pytest.raises(SettingsError, match=said):
        Settings.load(home=directory_settings.home, environ={})


def test_0_and_a_day_are_allowed(directory_settings: Settings) -> None:
    directory_settings.home.mkdir()
    lines = "reconcile_interval = 0\ntemporary_keys_age = 86400\n"
    (directory_settings.home / "supabase-bridge.toml").write_text(lines)
    settings = Settings.load(home=directory_settings.home, environ={})
    assert (settings.reconcile_interval, settings.temporary_keys_age) == (timedelta(0), timedelta(days=1))
