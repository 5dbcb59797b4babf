"""A worker hints at each switch; a project without Realtime delays and fails none."""

from __future__ import annotations

from supabase_bridge.core.events import EventState
from supabase_bridge.core.layout import ChannelPaths
from tests.support.scene import MODEL
from tests.support.served import until
from tests.support.simulators.realtime import RealtimeProject
from tests.support.simulators.storage import StorageSimulator
from tests.support.worker_scenes import MakeWorkerScene


def test_a_switch_is_hinted_once_and_a_refused_hint_changes_nothing(
    make_worker_scene: MakeWorkerScene, simulator: StorageSimulator
) -> None:
    with RealtimeProject(simulator) as project:
        scene = make_worker_scene(supabase_url=project.url, realtime=True)
        versions = scene.train(), scene.train()
        scene.work()
        assert project.bodies == []
        scene.promote(versions[0])
        scene.work()
        until(lambda: len(project.bodies) == 1, "the hint", limit_seconds=30)
        (message,) = project.bodies[0]["messages"]
        latest = ChannelPaths(model_key=MODEL, channel="latest")
        assert message == {"topic": latest.topic("models"), "event": "switched", "payload": {}, "private": False}
        project.refuses_hints = True
        scene.promote(versions[1])
        scene.work()
        assert (scene.current(), scene.events()[-1].state) == (versions[1], EventState.DONE)
        until(lambda: len(project.bodies) == 2, "the refused hint", limit_seconds=30)
