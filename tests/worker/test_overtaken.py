"""A worker that is overtaken between looking at the log and writing to it does not undo what happened meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone

from supabase_bridge.core.events import EventState
from supabase_bridge.core.layout import ChannelPaths, RunId
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.manual import activate_manually
from supabase_bridge.worker.context import Services
from supabase_bridge.worker.processor import Processor
from supabase_bridge.worker.worker import EventResult, Worker
from tests.support.scene import MODEL, Scene
from tests.support.simulators.memory_store import MemoryStore

LATEST = ChannelPaths(model_key=MODEL, channel="latest")


class Interrupted(MemoryStore):
    """A store in which something happens just before the next entry of the log is created."""

    def __init__(self) -> None:
        super().__init__(self._interrupt)
        self.meanwhile: Callable[[], object] | None = None

    def _interrupt(self, operation: str, key: str) -> None:
        if operation == "create" and key.startswith(LATEST.history_prefix) and self.meanwhile is not None:
            act, self.meanwhile = self.meanwhile, None
            act()


def worker(scene: Scene, store: MemoryStore, name: str, handled: list[EventResult], *, later: timedelta) -> Worker:
    """A worker over a store, whose clock is ahead."""
    runtime = scene.runtime
    services = Services(
        settings=scene.settings, registry=runtime.registry, outbox=runtime.outbox, open_store=lambda _: store
    )
    return Worker(
        name=name,
        settings=scene.settings,
        outbox=runtime.outbox,
        processor=Processor(services),
        on_handled=handled.append,
        clock=lambda: datetime.now(timezone.utc) + later,
    )


def run_id(scene: Scene, version: int) -> RunId:
    return RunId.parse(scene.tags(version)["run_id"])


def test_a_pointer_that_a_person_moves_while_a_promotion_is_carried_out_stays_there(directory_scene: Scene) -> None:
    scene, store, handled = directory_scene, Interrupted(), list[EventResult]()
    first = worker(scene, store, "first", handled, later=timedelta(0))
    versions = [scene.train(), scene.train()]
    first.drain()
    scene.promote(versions[0])
    by_hand = run_id(scene, versions[1])
    store.meanwhile = lambda: activate_manually(store, LATEST, by_hand, now=datetime.now(timezone.utc))
    first.drain()
    state = Channel(store, LATEST).read_head()
    assert state.manifest_is_current
    assert state.head is not None
    assert (state.head.sequence, state.head.current.run_id) == (1, str(by_hand))
    assert handled[-1].state is EventState.SUPERSEDED
    assert "manually and stays there until the next promotion" in handled[-1].outcome
    assert scene.tags(versions[0])["status"] == "mirrored"


def test_a_worker_thought_dead_does_not_put_its_promotion_over_a_later_one(directory_scene: Scene) -> None:
    scene, store, handled = directory_scene, Interrupted(), list[EventResult]()
    first = worker(scene, store, "first", handled, later=timedelta(0))
    second = worker(scene, store, "second", list[EventResult](), later=2 * scene.settings.lease)
    versions = [scene.train(), scene.train(), scene.train()]
    first.drain()
    scene.promote(versions[0])

    def others_go_on() -> None:
        """A person points elsewhere, another worker finds the promotion no longer wanted, and somebody promotes."""
        activate_manually(store, LATEST, run_id(scene, versions[1]), now=datetime.now(timezone.utc))
        second.step()
        scene.promote(versions[2], archive=True)
        second.drain()

    store.meanwhile = others_go_on
    first.step()
    head = Channel(store, LATEST).read_head().head
    assert head is not None
    assert (head.sequence, head.current.model_version) == (2, versions[2])


def test_a_worker_thought_dead_does_not_undo_a_rollback_to_the_version_that_is_still_current(
    directory_scene: Scene,
) -> None:
    scene, store, handled = directory_scene, Interrupted(), list[EventResult]()
    first = worker(scene, store, "first", handled, later=timedelta(0))
    second = worker(scene, store, "second", list[EventResult](), later=2 * scene.settings.lease)
    versions = [scene.train(), scene.train()]
    first.drain()
    scene.promote(versions[0])
    first.drain()
    scene.promote(versions[1], archive=True)

    def roll_back() -> None:
        scene.promote(versions[0], archive=True)
        second.drain()

    store.meanwhile = roll_back
    promotion = max(event.id for event in scene.events() if event.version == versions[1])
    first.step(promotion)
    second.drain()
    head = Channel(store, LATEST).read_head().head
    assert head is not None
    assert (head.sequence, head.current.model_version) == (2, versions[0])
