"""Who writes to a channel in the searches of its commit protocol, and what must hold in every state they come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from itertools import pairwise

from supabase_bridge.core.documents import Cause, Manifest
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.core.release_log import activated_manually, pinned
from supabase_bridge.releases.channel import Activation, Channel
from supabase_bridge.releases.manual import activate_manually, release_before
from supabase_bridge.releases.verify import VerifiedRelease, verify_release
from supabase_bridge.storage.base import JSON_TYPE, ObjectStore, PutOptions
from tests.releases.interleavings import Objects, Participant, Search, State
from tests.releases.replayed_writer import Act, Ended, ReplayedWriter
from tests.support.simulators.memory_store import MemoryStore
from tests.support.small_releases import LATEST, NOON, keys_of, lay_out, run_id

REGISTRY = "ours"
PREFIX = f"{LATEST.model_key}/{LATEST.channel}/"
RELEASES = (1, 2, 3, 4)
_LIMIT_BYTES = 1_000_000


@cache
def releases() -> MemoryStore:
    """A store with complete releases, and no channel."""
    store = MemoryStore()
    for number in RELEASES:
        lay_out(store, number)
    return store


@cache
def verified(number: int) -> VerifiedRelease:
    return verify_release(releases(), keys_of(number))


def minute(number: int) -> datetime:
    return NOON + timedelta(minutes=number)


def promote(event: int, release: int) -> Act:
    """What a worker does about an event of minute `event`, as `Processor` does it once it has the version's release."""

    def act(store: ObjectStore, still_held: Callable[[], None]) -> Activation | None:
        log = Channel(store, LATEST)
        head = log.read_head().head
        if pinned(head, promoted_at=minute(event)):
            return None
        still_held()
        overtaken = False

        def still_wanted(newest: Manifest | None) -> bool:
            nonlocal overtaken
            if newest is not head:
                overtaken = pinned(newest, promoted_at=minute(event))
                if not overtaken:
                    still_held()
            return not overtaken

        cause = Cause(registry_id=REGISTRY, event_id=event)
        switched = log.activate(
            verified(release), head=head, cause=cause, published_at=minute(event), still_wanted=still_wanted
        )
        return None if overtaken else switched

    return act


def move(release: int, *, at: int) -> Act:
    """What `activate` does for a person, at a minute."""
    return lambda store, _: activate_manually(store, LATEST, run_id(release), now=minute(at))


def go_back(*, at: int) -> Act:
    """What `rollback` does where MLflow is down."""

    def act(store: ObjectStore, _: Callable[[], None]) -> Activation:
        target = release_before(store, LATEST)
        assert target is not None
        return activate_manually(store, LATEST, target, now=minute(at))

    return act


def worker(event: int, release: int, *, attempt: int = 1) -> Participant:
    """An attempt of a worker at an event."""
    act = promote(event, release)
    return Participant(writer=ReplayedWriter(act, releases(), PREFIX), event=event, attempt=attempt)


def person(act: Act) -> Participant:
    return Participant(writer=ReplayedWriter(act, releases(), PREFIX))


def history(*acts: Act) -> dict[str, bytes]:
    """What lies in the channel after some writers, one after the other."""
    store = MemoryStore()
    for number in RELEASES:
        lay_out(store, number)
    for act in acts:
        act(store, lambda: None)
    return channel_objects(store)


def channel_objects(store: ObjectStore) -> dict[str, bytes]:
    """What lies in the channel, by key."""
    return {item.key: store.read(item.key, limit_bytes=_LIMIT_BYTES) for item in store.list(PREFIX)}


def is_entry(key: str, channel: ChannelPaths = LATEST) -> bool:
    return channel.sequence_of(key) is not None


def entries(objects: Objects, channel: ChannelPaths = LATEST) -> list[bytes]:
    """The log's entries, the oldest first."""
    return [data for key, data in objects if is_entry(key, channel)]


def in_step(objects: Objects, channel: ChannelPaths = LATEST) -> bool:
    """Whether consumers see the newest entry."""
    return dict(objects).get(channel.manifest) == next(reversed(entries(objects, channel)), None)


@cache
def parsed(data: bytes) -> Manifest:
    return Manifest.parse(data)


@cache
def broken_promises(objects: Objects, channel: ChannelPaths = LATEST) -> list[str]:
    """What does not hold of a channel's objects, whoever wrote them and whatever is still to come."""
    log = [parsed(data) for data in entries(objects, channel)]
    events = [entry.cause.event_id for entry in log if entry.cause is not None and entry.cause.event_id is not None]
    broken = {
        "the log has a gap": [entry.sequence for entry in log] != list(range(1, len(log) + 1)),
        "an event is in the log twice": len(set(events)) < len(events),
        "events are in the log in another order than they were made": sorted(events) != events,
        "an entry forgets the one before": any(not _builds_on(after, before) for before, after in pairwise(log)),
        "a promotion undid what a person did after it": any(_undoes(after, before) for before, after in pairwise(log)),
        "the manifest is no entry": dict(objects).get(channel.manifest) not in [None, *entries(objects, channel)],
        "a pass over it does not heal it": not in_step(_healed(objects, channel), channel),
    }
    return [promise for promise, is_broken in broken.items() if is_broken]


def _builds_on(after: Manifest, before: Manifest) -> bool:
    same = after.current.run_id == before.current.run_id
    return same or after.previous[0].run_id == before.current.run_id


def _undoes(after: Manifest, before: Manifest) -> bool:
    promoted = not activated_manually(after)
    return promoted and pinned(before, promoted_at=after.current.published_at)


@cache
def _healed(objects: Objects, channel: ChannelPaths) -> Objects:
    """What one pass of any writer over the log leaves, nobody else being there."""
    store = MemoryStore()
    for key, data in objects:
        store.create(key, data, PutOptions(content_type=JSON_TYPE))
    Channel(store, channel).repair_manifest()
    return tuple((item.key, store.read(item.key, limit_bytes=_LIMIT_BYTES)) for item in store.list(""))


def wrong_in(search: Search, state: State) -> list[str]:
    """Everything that does not hold in a state."""
    wrong = broken_promises(state.objects)
    asked = [search.next_of(state, number) for number in range(len(state.steps))]
    ends = [end for end in asked if isinstance(end, Ended)]
    if not {end.entry for end in ends if end.entry is not None} <= {data for _, data in state.objects}:
        wrong = [*wrong, "a writer says that it switched, and the log does not"]
    everybody_ended = len(ends) == len(state.steps) and all(end.error is None for end in ends)
    if everybody_ended and not in_step(state.objects) and not state.undone_late:
        wrong = [*wrong, "everybody has ended, no write came late, and consumers do not see the newest entry"]
    return wrong


@dataclass(frozen=True, kw_only=True)
class Covered:
    """What a search went through.

    Attributes:
        paths: The different orders of operations, from the first to the last.
        late: The states in which a write that came after its writer gave up hides the newest entry from consumers.
    """

    states: int
    steps: int
    paths: int
    late: int


def searched(search: Search) -> Covered:
    """Go through every state and hold it to what must be.

    Raises:
        AssertionError: something does not hold; the message has the shortest sequence of operations that leads there.
    """
    late = 0
    following: dict[State, list[State]] = {}
    for state, moves in search.states():
        if wrong := wrong_in(search, state):
            raise AssertionError("\n".join([*wrong, *map(str, search.schedule(state))]))
        late += state.undone_late
        following[state] = [after for _, after in moves]
    return Covered(states=len(following), steps=sum(map(len, following.values())), paths=_paths(following), late=late)


def _paths(following: Mapping[State, Sequence[State]]) -> int:
    """How many sequences of operations there are from the first state to one in which nothing can happen any more."""
    numbers = {state: number for number, state in enumerate(following)}
    after = [[numbers[state] for state in states] for states in following.values()]
    counts: dict[int, int] = {}
    waiting = [0]
    while waiting:
        number = waiting[-1]
        if number in counts:
            waiting.pop()
        elif missing := [state for state in after[number] if state not in counts]:
            waiting += missing
        else:
            counts[number] = sum(counts[state] for state in after[number]) or 1
    return counts[0]


def search(*participants: Participant, objects: Mapping[str, bytes], losses: int) -> Search:
    return Search(participants=participants, objects=objects, losses=losses, is_entry=is_entry, in_step=in_step)
