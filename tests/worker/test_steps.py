"""Steps before an activation: the pointer waits for them, and nothing else does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from supabase_bridge.core.events import EventState
from supabase_bridge.core.layout import RunId
from supabase_bridge.releases.manual import activate_manually
from supabase_bridge.settings.model import Settings
from supabase_bridge.settings.steps import StepSettings
from tests.support.scene import MODEL, MakeScene, Scene
from tests.support.served import until
from tests.support.simulators.storage import Fault, Respond, StorageSimulator
from tests.support.small_releases import LATEST

LIMIT_SECONDS = 60.0


def shell(script: str, *, name: str = "embed", channels: tuple[str, ...] = ("latest",)) -> StepSettings:
    return StepSettings(name=name, channels=channels, command=("/bin/sh", "-c", script))


def blocking(directory: Path) -> StepSettings:
    """A step that says that it began, and ends once the file `go` is there."""
    return shell(
        f"echo $SUPABASE_BRIDGE_RUN_ID >> {directory}/begun; while [ ! -e {directory}/go ]; do sleep 0.1; done"
    )


def begun(directory: Path) -> list[str]:
    path = directory / "begun"
    return path.read_text().split() if path.exists() else []


@contextmanager
def worker_of(scene: Scene, go: Path) -> Iterator[None]:
    """A worker that processes events in the background; at the end a step that still waits for `go` may end."""
    stop = threading.Event()
    thread = threading.Thread(target=scene.runtime.worker().run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        go.touch()
        thread.join(LIMIT_SECONDS)
        assert not thread.is_alive()


def wait(condition: Callable[[], bool], what: str) -> None:
    until(condition, what, limit_seconds=LIMIT_SECONDS)


def pending(scene: Scene) -> list[int | None]:
    """The versions of the events that are not finished."""
    return [event.version for event in scene.events() if event.state is EventState.PENDING]


def run_id(scene: Scene, version: int) -> str:
    return scene.tags(version)["run_id"]


def test_the_pointer_waits_for_the_steps_of_its_channel(
    make_scene: MakeScene, directory_settings: Settings, tmp_path: Path
) -> None:
    allowed, log = tmp_path / "allowed", tmp_path / "log"
    noted = f"echo $SUPABASE_BRIDGE_RUN_ID $SUPABASE_BRIDGE_CHANNEL >> {log}"
    script = f"{noted}; test -e {allowed} || {{ echo not yet; exit 1; }}"
    steps = {MODEL: (shell(script, channels=("latest", "staging")),)}
    scene = make_scene(directory_settings, steps=steps)
    versions = [scene.train(), scene.train()]
    scene.work()
    scene.promote(versions[0])
    scene.work()
    assert scene.current() is None
    tags = scene.tags(versions[0])
    message = f"step embed of {MODEL}/{tags['run_id']} failed: it ended with 1: not yet"
    assert (tags["status"], tags["error"], tags.get("note")) == ("retrying", message, None)
    allowed.touch()
    scene.work_later()
    assert (scene.current(), scene.tags(versions[0])["status"]) == (versions[0], "active")
    scene.promote(versions[1])
    scene.work()
    scene.promote(versions[0], "Staging")
    scene.work()
    scene.promote(versions[0])
    scene.work()
    assert (scene.current(), scene.current("staging")) == (versions[0], versions[0])
    # The retry ran the step again; the second channel and the rollback did not.
    runs = [f"{run_id(scene, versions[0])} latest"] * 2 + [f"{run_id(scene, versions[1])} latest"]
    assert log.read_text().splitlines() == runs


@pytest.mark.exhaustive
def test_the_time_of_an_activation_with_steps_is_that_of_its_commit_at_every_retry(
    make_scene: MakeScene, supabase_settings: Settings, simulator: StorageSimulator
) -> None:
    scene = make_scene(supabase_settings, steps={MODEL: (shell("sleep 1.1"),)})
    version = scene.train()
    scene.work()
    scene.promote(version)
    promoted_at = datetime.now(timezone.utc)
    simulator.inject(Fault(action=Respond(503, b"{}"), method="POST", path_contains="/object/move", times=50))
    scene.work()
    assert scene.head() is None
    committed_before = datetime.now(timezone.utc)
    simulator.clear_faults()
    scene.work_later(timedelta(hours=1))
    head = scene.head()
    assert head is not None
    assert promoted_at + timedelta(seconds=0.1) <= head.current.published_at <= committed_before
    (event,) = [event for event in scene.events() if event.stage == "Production"]
    assert event.attempts == 2


def test_a_version_says_which_step_runs_since_when(
    make_scene: MakeScene, directory_settings: Settings, tmp_path: Path
) -> None:
    scene = make_scene(directory_settings, steps={MODEL: (blocking(tmp_path),)})
    version = scene.train()
    scene.work()
    scene.promote(version)
    with worker_of(scene, tmp_path / "go"):
        wait(lambda: begun(tmp_path) != [], "the step")
        tags = scene.tags(version)
        assert tags["status"] == "preparing"
        assert tags["note"].startswith("step embed since 20")
        assert tags["note"].endswith("Z, attempt 1")
        (tmp_path / "go").touch()
        wait(lambda: scene.tags(version)["status"] == "active", "the activation")
    assert "note" not in scene.tags(version)


@pytest.mark.exhaustive
def test_a_long_step_delays_no_other_channel_model_or_rollback(
    make_scene: MakeScene, directory_settings: Settings, tmp_path: Path
) -> None:
    scene = make_scene(directory_settings, steps={MODEL: (blocking(tmp_path),)})
    first, second, third = (scene.train() for _ in range(3))
    other = scene.train(model="ranker")
    (tmp_path / "go").touch()
    scene.work()
    scene.promote(first)
    scene.work()
    (tmp_path / "go").unlink()
    with worker_of(scene, tmp_path / "go"):
        scene.promote(second)
        wait(lambda: len(begun(tmp_path)) == 2, "the step")
        scene.promote(third, "Staging")
        scene.promote(other, model="ranker")
        wait(lambda: len(pending(scene)) == 1, "the other channel and the other model")
        assert (scene.current("staging"), scene.current(key="ranker"), scene.current()) == (third, other, first)
        scene.promote(first)
        wait(lambda: pending(scene) == [], "the rollback, and the end of the other step")
    assert scene.current() == first
    assert begun(tmp_path) == [run_id(scene, first), run_id(scene, second)]
    assert (scene.tags(second)["status"], scene.tags(second).get("note")) == ("mirrored", None)
    states = {(event.version, event.state.value) for event in scene.events() if event.stage == "Production"}
    assert (second, "superseded") in states


@pytest.mark.exhaustive
def test_a_manual_activation_ends_a_step(make_scene: MakeScene, directory_settings: Settings, tmp_path: Path) -> None:
    scene = make_scene(directory_settings, steps={MODEL: (blocking(tmp_path),)})
    first, second = scene.train(), scene.train()
    scene.work()
    scene.promote(second)
    with worker_of(scene, tmp_path / "go"):
        wait(lambda: begun(tmp_path) != [], "the step")
        activate_manually(scene.store, LATEST, RunId.parse(run_id(scene, first)), now=datetime.now(timezone.utc))
        wait(lambda: pending(scene) == [], "the end of the step")
    assert scene.current() == first
    assert scene.events()[-1].outcome == (
        f"latest was moved to {run_id(scene, first)} manually and stays there until the next promotion"
    )
