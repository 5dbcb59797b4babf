"""A run of retention killed before any of its writes: a pass, a second run and a promotion end in a valid state."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from supabase_bridge.app.retention import restore
from supabase_bridge.core.events import EventState
from supabase_bridge.reconcile.release_check import Scope
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.storage.base import ObjectStore
from tests.support.retained import ARCHIVE, DELETE, MakeRetained, going, paths_of, run
from tests.support.scene import MODEL, Scene

_WRITES = {"create", "overwrite", "move", "delete", "copy_in"}
_POINTS = {"archive": 15, "delete": 6}
"""The number of writes of one removal: of the archive, the mark, its move, the second mark, two deletions, its end."""

_MIDDLE = {3, 4, 5, 7, 8}
"""Copies to the archive in the middle of several."""

ALL_POINTS = [
    pytest.param(way, point, marks=() if (way, point) in {("archive", 14), ("delete", 2)} else pytest.mark.exhaustive)
    for way, count in _POINTS.items()
    for point in range(1, count + 1)
    if way == "delete" or point not in _MIDDLE
]


class _Killed(BaseException):
    """The end of the process, so that no `except Exception` and no clean-up of the code sees it."""


class _Killer:
    """Ends every store of a process before its write number `point`; nothing happens afterwards."""

    def __init__(self, point: int) -> None:
        self._left = point
        self.writes: list[str] = []

    def over(self, store: ObjectStore) -> ObjectStore:
        killer = self

        class Store:
            def __getattr__(self, name: str) -> Any:
                found = getattr(store, name)
                return found if not callable(found) else lambda *args, **kwargs: killer.call(name, found, args, kwargs)

        killing: Any = Store()
        return cast("ObjectStore", killing)

    def call(self, name: str, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if name in _WRITES and self._left > 0:
            self._left -= 1
            self.writes.append(name)
        if self._left <= 0:
            raise _Killed
        return method(*args, **kwargs)


def killed(make_retained: MakeRetained, way: str, point: int) -> Scene:
    """Return a scene in which a run was killed that would have removed the release of version 1."""
    scene = make_retained({**{"archive": ARCHIVE, "delete": DELETE}[way], "keep": 4})
    assert going(scene) == [1]
    with pytest.raises(_Killed):
        run(scene, over=_Killer(point).over)
    return scene


def let_a_minute_pass(scene: Scene) -> None:
    """Make the marks of killed runs older, as the store's clock would."""
    for path in (scene.settings.home / "supabase").rglob("removal-*"):
        os.utime(path, (time.time() - 60, time.time() - 60))


def sync(scene: Scene) -> list[str]:
    found = scene.runtime.reconciler().run(now=scene.clock(), scope=Scope.FULL)
    return [f"{item.kind.value}: {item.detail}" for item in found]


def test_one_removal_has_no_more_writes_than_are_searched(make_retained: MakeRetained) -> None:
    for way, count in _POINTS.items():
        killer = _Killer(100)
        scene = make_retained({**{"archive": ARCHIVE, "delete": DELETE}[way], "keep": 4}, name=way)
        assert [result.problem for result in run(scene, over=killer.over)] == [None]
        assert len(killer.writes) == count


@pytest.mark.parametrize(("way", "point"), ALL_POINTS)
def test_after_a_kill_a_pass_and_a_second_run_end_in_a_valid_state(
    way: str, point: int, make_retained: MakeRetained
) -> None:
    scene = killed(make_retained, way, point)
    assert sync(scene) == []
    assert scene.work() == []
    for version in (2, 3, 4, 5):
        verify_release(scene.store, paths_of(scene, version))
    assert [result.problem for result in run(scene)] in ([None], [])
    assert (going(scene), sync(scene), scene.tags(1)["status"]) == ([], [], "archived")
    let_a_minute_pass(scene)
    restore(scene.runtime, MODEL, paths_of(scene, 1).run_id)
    verify_release(scene.store, paths_of(scene, 1), read_all=True)
    assert sync(scene) == []


@pytest.mark.parametrize(("way", "point"), ALL_POINTS)
def test_after_a_kill_a_promotion_makes_the_release_current_with_every_byte(
    way: str, point: int, make_retained: MakeRetained
) -> None:
    scene = killed(make_retained, way, point)
    let_a_minute_pass(scene)
    scene.promote(1, archive=True)
    assert [result.state for result in scene.work()] == [EventState.DONE]
    assert (scene.current(), scene.tags(1)["status"], "archived" in scene.tags(1)) == (1, "active", False)
    release = verify_release(scene.store, paths_of(scene, 1), read_all=True)
    head = scene.head()
    assert head is not None
    assert release.files == head.current.files
    assert not [item for item in run(scene) if item.problem is not None]
    assert (scene.current(), sync(scene)) == (1, [])


def test_a_promotion_waits_while_files_are_being_deleted(make_retained: MakeRetained) -> None:
    scene = killed(make_retained, "archive", _POINTS["archive"] - 1)
    scene.promote(1, archive=True)
    (result,) = scene.work()
    assert (result.state, "retention is deleting files" in result.outcome) == (EventState.PENDING, True)
    let_a_minute_pass(scene)
    assert [result.state for result in scene.work_later()] == [EventState.DONE]
    assert scene.current() == 1


def test_a_promotion_that_comes_after_the_plan_keeps_the_release_and_does_not_wait(
    make_retained: MakeRetained,
) -> None:
    scene = make_retained({**ARCHIVE, "keep": 4})
    promoted: list[EventState] = []

    class Promoting:
        """Promotes the version when the run is about to carry its removal out."""

        def __init__(self, store: ObjectStore) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            if name == "move" and not promoted:
                scene.promote(1, archive=True)
                promoted.extend(result.state for result in scene.work())
            return getattr(self._store, name)

    over: Any = Promoting
    (result,) = run(scene, over=over)
    assert (promoted, result.problem) == ([EventState.DONE], "it is needed now")
    assert (scene.current(), scene.tags(1)["status"]) == (1, "active")
    verify_release(scene.store, paths_of(scene, 1), read_all=True)
    assert sync(scene) == []
