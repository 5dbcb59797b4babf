"""A worker that is overtaken between looking at the log and writing to it does not undo what happened meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone

from supabase_bridge.by_hand import point_to
from supabase_bridge.channel_log import ChannelLog
from supabase_bridge.layout import ChannelKeys, RunId
from supabase_bridge.outbox.events import EventState
from supabase_bridge.processing import Processor
from supabase_bridge.worker import Handled, Worker
from tests.registry_fixtures import MODEL, Scene
from tests.simulators.memory_store import MemoryStore

LATEST = ChannelKeys(model_key=MODEL, channel="latest")


class Interrupted(MemoryStore):
    """A store in which something happens just before the next entry of the log is created."""

    def __init__(self) -> None:
        super().__init__(self._interrupt)
        self.meanwhile: Callable[[], object] | None = None

    def _interrupt(self, operation: str, key: str) -> None:
        if operation == "create" and key.startswith(LATEST.history_prefix) and self.meanwhile is not None:
            act, self.meanwhile = self.meanwhile, None
            act()


def worker(scene: Scene, store: MemoryStore, name: str, handled: list[Handled], *, later: timedelta) -> Worker:
    """A worker over a store, whose clock is ahead."""
    runtime = scene.runtime
    return Worker(
        name=name,
        settings=scene.settings,
        outbox=runtime.outbox,
        processor=Processor(
            settings=scene.settings, registry=runtime.registry, outbox=runtime.outbox, open_store=lambda _: store
        ),
        on_handled=handled.append,
        clock=lambda: datetime.now(timezone.utc) + later,
    )


def run_id(scene: Scene, version: int) -> RunId:
    return RunId.parse(scene.tags(version)["run_id"])


def test_a_pointer_that_a_person_moves_while_a_promotion_is_carried_out_stays_there(directory_scene: Scene) -> None:
    scene, store, handled = directory_scene, Interrupted(), list[Handled]()
    first = worker(scene, store, "first", handled, later=timedelta(0))
    versions = [scene.train(), scene.train()]
    first.drain()
    scene.promote(versions[0])
    by_hand = run_id(scene, versions[1])
    store.meanwhile = lambda: point_to(store, LATEST, by_hand, now=datetime.now(timezone.utc))
    first.drain()
    state = ChannelLog(store, LATEST).look()
    assert state.in_step
    assert state.head is not None
    assert (state.head.sequence, state.head.current.run_id) == (1, str(by_hand))
    assert handled[-1].state is EventState.SUPERSEDED
    assert "by hand and stays there until somebody promotes" in handled[-1].outcome
    assert scene.tags(versions[0])["status"] == "mirrored"


def test_a_worker_thought_dead_does_not_put_its_promotion_over_a_later_one(directory_scene: Scene) -> None:
    scene, store, handled = directory_scene, Interrupted(), list[Handled]()
    first = worker(scene, store, "first", handled, later=timedelta(0))
    second = worker(scene, store, "second", list[Handled](), later=2 * scene.settings.lease)
    versions = [scene.train(), scene.train(), scene.train()]
    first.drain()
    scene.promote(versions[0])

    def others_go_on() -> None:
        """A person points elsewhere, another worker finds the promotion no longer wanted, and somebody promotes."""
        point_to(store, LATEST, run_id(scene, versions[1]), now=datetime.now(timezone.utc))
        second.step()
        scene.promote(versions[2], archive=True)
        second.drain()

    store.meanwhile = others_go_on
    first.drain()
    head = ChannelLog(store, LATEST).look().head
    assert head is not None
    assert (head.sequence, head.current.model_version) == (2, versions[2])
