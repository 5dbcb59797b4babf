"""A switch that was committed to the log, but not published when its worker was cut off, reaches consumers."""

from __future__ import annotations

import pytest

from supabase_bridge.core.events import EventState
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.releases.channel import Channel
from tests.support.scene import MODEL, Scene
from tests.support.simulators.faults import Fault, Respond
from tests.support.simulators.storage import StorageSimulator

pytestmark = pytest.mark.exhaustive


def test_it_is_published_though_the_version_has_left_its_stage_meanwhile(
    supabase_scene: Scene, simulator: StorageSimulator
) -> None:
    scene = supabase_scene
    first, second = scene.train(), scene.train()
    scene.promote(first)
    scene.work()
    scene.promote(second, archive=True)
    simulator.inject(Fault(action=Respond(500, b"{}"), method="POST", path_contains="/latest/manifest.json"))
    assert [handled.state for handled in scene.work()][-1] is EventState.PENDING
    assert not Channel(scene.store, ChannelPaths(model_key=MODEL, channel="latest")).read_head().manifest_is_current
    simulator.clear_faults()
    scene.promote(second, "Archived")
    scene.work_later()
    head = scene.head()
    assert head is not None
    assert (head.sequence, head.current.model_version) == (2, second)
    assert {event.state for event in scene.events()} <= {EventState.DONE, EventState.SUPERSEDED}
    (promotion,) = [event for event in scene.events() if event.version == second and event.stage == "Production"]
    assert promotion.state is EventState.DONE
    assert f"is {head.current.run_id} (entry 2)" in str(promotion.outcome)
    assert scene.tags(first)["status"] == "superseded"
    assert "no successor" in scene.tags(second)["note"]
