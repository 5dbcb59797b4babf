"""The order of a model's changes per channel, searched through with the real decision and the real commit.

Workers carry out recorded events in any order of the claims: the newest first, a blocked one again after a later one,
a rollback after both, and each may have lost its lease to the next. MLflow records the later events at any moment; an
object of the search stands for each recorded one. In every state each channel's log keeps its promises. When all
workers have ended, each channel points to the version that was assigned last; also where a worker lost its lease
between its last check and its new entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest

from supabase_bridge.core.documents import Cause, Manifest
from supabase_bridge.core.events import Event, EventKind, EventState, Triggers, effective_assignment
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.core.release_log import pinned
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.heads import First, HeadState, Second
from supabase_bridge.storage.base import ObjectStore, PutOptions
from supabase_bridge.worker.decide import Activate, ChannelFacts, Facts, Repair, concerned, decide, may_be_late
from tests.releases.commit_protocol import (
    REGISTRY,
    broken_promises,
    entries,
    in_step,
    is_entry,
    minute,
    parsed,
    releases,
    verified,
)
from tests.releases.interleavings import Action, Objects, Participant, Search, State
from tests.releases.replayed_writer import LOST, Act, Ended, ReplayedWriter
from tests.support.simulators.memory_store import MemoryStore
from tests.support.small_releases import LATEST

STAGING = ChannelPaths(model_key=LATEST.model_key, channel="staging")
CHANNELS = {"latest": LATEST, "staging": STAGING}
TRIGGERS = (
    Triggers(channel="latest", stages=("Production",), aliases=()),
    Triggers(channel="staging", stages=("Staging",), aliases=()),
)
RECORDED = f"{LATEST.model_key}/recorded/"
PREFIXES = (f"{LATEST.model_key}/latest/", f"{LATEST.model_key}/staging/", RECORDED)


def moved(event_id: int, version: int, stage: str, before: str = "None") -> Event:
    return Event(
        id=event_id,
        created_at=minute(event_id),
        kind=EventKind.STAGE_CHANGED,
        workspace="default",
        model=LATEST.model_key,
        version=version,
        stage=stage,
        previous_stage=before,
        attempts=1,
    )


def recorded(key: str) -> str:
    return f"{RECORDED}{key}"


def reversed_order(first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
    """Make the reads that a worker makes at once in the other order."""
    found = second()
    return first(), found


@dataclass(frozen=True)
class Story:
    """Events of one model, and the order in which workers claim them.

    Attributes:
        claims: The ids of the events; one that is named again is retried. A negative number: MLflow records the event
            only now. The events without one are there from the beginning.
        before: The events that were carried out before.
    """

    events: Sequence[Event]
    claims: Sequence[int]
    before: Sequence[int] = ()

    def beginning(self) -> Mapping[str, bytes]:
        """What is there before the first claim."""
        store = MemoryStore()
        later = {-claim for claim in self.claims if claim < 0}
        for event in self.events:
            if event.id in self.before:
                store.overwrite(recorded(str(event.id)), b"", PutOptions())
                self.carry_out(event)(store, lambda: None)
        found = {item.key: store.read(item.key, limit_bytes=10**6) for item in store.list("")}
        return {**{recorded(str(event.id)): b"" for event in self.events if event.id not in later}, **found}

    @property
    def effective(self) -> Mapping[str, Event]:
        """The event that each channel follows in the end."""
        newest = {event.version: event for event in self.events}
        found = {}
        for item in TRIGGERS:
            holders = [event for event in newest.values() if event.stage in item.stages]
            if holders:
                found[item.channel] = max(holders, key=lambda event: event.id)
        return found

    def carry_out(self, event: Event) -> Act:
        """What a worker does: it reads the registry and the logs, decides, and commits what is still wanted."""

        def act(store: ObjectStore, still_held: Callable[[], None]) -> None:
            present = {item.key for item in store.list(RECORDED)}
            known = [item for item in self.events if recorded(str(item.id)) in present]
            done = {item.id for item in known if recorded(f"{item.id}-done") in present}
            stages = {item.version: item.stage for item in known}
            facts = []
            for triggers in concerned(event, TRIGGERS):
                states = (EventState.PENDING, EventState.DONE)
                assigned = [replace(item, state=states[item.id in done]) for item in known if triggers.assigns(item)]
                effective = effective_assignment(assigned[::-1], lambda item: stages[item.version] == item.stage)
                head = log_of(store, triggers.channel).read_head().head
                active = head is not None and head.current.model_version == event.version
                # A claim has counted the ended leases of the events that no attempt has finished.
                waiting = [replace(item, takeovers=0 if item.id in done else 1) for item in assigned]
                late = may_be_late(event, waiting, minute(9))
                facts.append(
                    ChannelFacts(triggers=triggers, effective=effective, version_is_active=active, late=late, head=head)
                )
            cause = Cause(registry_id=REGISTRY, event_id=event.id)
            retried = replace(event, attempts=2)
            for action in decide(retried, Facts(now=minute(9), cause=cause, channels=tuple(facts))):
                if isinstance(action, Repair):
                    log_of(store, action.channel).repair_manifest()
                elif isinstance(action, Activate):
                    activate(store, action, event, still_held)
            still_held()
            store.overwrite(recorded(f"{event.id}-done"), b"", PutOptions())

        return act

    def act_of(self, claim: int) -> Act:
        """What happens at a claim: a worker carries the event out, or MLflow records it."""
        if claim < 0:
            return lambda store, _: store.create(recorded(str(-claim)), b"", PutOptions())
        return self.carry_out(next(event for event in self.events if event.id == claim))


def log_of(store: ObjectStore, channel: str) -> Channel:
    return Channel(store, CHANNELS[channel], at_once=reversed_order)


def activate(store: ObjectStore, action: Activate, event: Event, still_held: Callable[[], None]) -> None:
    log = log_of(store, action.channel)
    if action.head is not None:
        # The worker knows this head, and asks only what is newer.
        assert log.read_head(HeadState.published(action.head)).head is not None

    def still_wanted(newest: Manifest | None) -> bool:
        if pinned(newest, promoted_at=action.promoted_at):
            return False
        still_held()
        return True

    log.activate(
        verified(action.version),
        head=action.head,
        cause=action.cause,
        published_at=minute(event.id),
        still_wanted=still_wanted,
        always=action.always,
    )


class ClaimedInOrder(Search):
    """A search in which each claim ends the leases of the attempts before it, wherever these are."""

    def _may_begin(self, state: State, number: int) -> bool:
        return self._begun(state, number) or number == 0 or self._begun(state, number - 1)

    def _holds(self, state: State, number: int) -> bool:
        later = [item for item in range(number + 1, len(state.steps)) if self.participants[item].event is not None]
        return not any(self._begun(state, item) for item in later)

    def _moves(self, state: State) -> Iterator[tuple[Action, State]]:
        """Only storage loses answers; MLflow's database does not."""
        for action, after in super()._moves(state):
            if action.answer != LOST or not action.operation.key.startswith(RECORDED):
                yield action, after


def search(story: Story, losses: int) -> ClaimedInOrder:
    writers = [ReplayedWriter(story.act_of(claim), releases(), PREFIXES) for claim in story.claims]
    return ClaimedInOrder(
        participants=[
            Participant(writer=writer, event=claim if claim > 0 else None)
            for writer, claim in zip(writers, story.claims, strict=True)
        ],
        objects=story.beginning(),
        losses=losses,
        is_entry=lambda key: any(is_entry(key, channel) for channel in CHANNELS.values()),
        in_step=lambda objects: all(in_step(objects, channel) for channel in CHANNELS.values()),
    )


def pointed_to(objects: Objects) -> Mapping[str, int | None]:
    logs = {name: entries(objects, channel) for name, channel in CHANNELS.items()}
    return {name: parsed(log[-1]).current.model_version for name, log in logs.items() if log}


OLD, NEW = moved(1, 1, "Production"), moved(2, 2, "Production")
ARCHIVED, PROMOTED = moved(2, 1, "Archived", "Production"), moved(3, 2, "Production")
ROLLBACK = moved(4, 1, "Production", "Archived")
STAGED, NEXT = moved(1, 1, "Staging"), moved(2, 2, "Staging")
MOVED = moved(3, 2, "Production", "Staging")
STORIES: Mapping[str, Story] = {
    "the newest first, then the one before": Story([OLD, NEW], [2, 1]),
    "a blocked event, the next one, and the blocked one again": Story([OLD, NEW], [1, -2, 2, 1]),
    "a rollback while a promotion is blocked": Story([OLD, ARCHIVED, PROMOTED, ROLLBACK], [3, -4, 4, 3], before=[1, 2]),
    "a rollback claimed first": Story([OLD, ARCHIVED, PROMOTED, ROLLBACK], [-4, 4, 3], before=[1, 2]),
    "two channels, one event each": Story([OLD, moved(2, 2, "Staging")], [1, -2, 2, 1]),
    "a version that leaves one channel for the other": Story([STAGED, NEXT, MOVED], [2, -3, 3, 2], before=[1]),
}


LONG = {
    "a rollback while a promotion is blocked",
    "a version that leaves one channel for the other",
}


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        *(pytest.param(name, 0, marks=[pytest.mark.exhaustive] if name in LONG else []) for name in STORIES),
        *(pytest.param(name, 1, marks=pytest.mark.exhaustive) for name in STORIES if name not in LONG),
    ],
)
def test_every_order_of_the_claims_leaves_each_channel_at_what_was_assigned_last(
    name: str, losses: int, tell: Callable[[str], None]
) -> None:
    story = STORIES[name]
    found = search(story, losses)
    states = ended = 0
    for state, _ in found.states():
        states += 1
        wrong = [promise for channel in CHANNELS.values() for promise in broken_promises(state.objects, channel)]
        ends = [found.next_of(state, number) for number in range(len(state.steps))]
        present = {key for key, _ in state.objects}
        carried_out = all(recorded(f"{event.id}-done") in present for event in story.events)
        if carried_out and all(isinstance(end, Ended) for end in ends) and not state.on_the_way:
            ended += 1
            expected = {name: event.version for name, event in story.effective.items()}
            if pointed_to(state.objects) != expected:
                wrong.append(f"the channels point to {pointed_to(state.objects)}, not to {expected}")
        assert not wrong, "\n".join([*wrong, *map(str, found.schedule(state))])
    assert ended > 0
    tell(f"orders per channel, {name}, {losses} lost answers: {states:,} states, {ended:,} ends")
