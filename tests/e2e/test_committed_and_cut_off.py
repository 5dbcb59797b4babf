"""A switch that was committed to the log, but not published when its worker was cut off, reaches consumers."""

from __future__ import annotations

from supabase_bridge.channel_log import ChannelLog
from supabase_bridge.layout import ChannelKeys
from supabase_bridge.outbox.events import EventState
from tests.registry_fixtures import MODEL, Scene
from tests.simulators.faults import Fault, Respond
from tests.simulators.storage import StorageSimulator


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
    assert not ChannelLog(scene.store, ChannelKeys(model_key=MODEL, channel="latest")).look().in_step
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
