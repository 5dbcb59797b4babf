"""The commit protocol of a channel's log, searched through: the real code, in every order its operations can have.

What holds at any instant, whoever crashed: the log has no gap, no event twice and no entry that forgets the one before;
`manifest.json` is an entry; one pass of any writer makes it the newest one. What cannot hold on a store without
conditional writes: a write that happens after its writer gave up waiting, and after every other writer's last look,
leaves consumers behind the newest entry until the next pass (an overwrite puts an older entry back; a new entry has
nobody who publishes it, until its event is tried again). The search shows that these are the only ways to get there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import SecretStr

from supabase_bridge.releases.channel import Channel
from supabase_bridge.storage.base import JSON_TYPE, NO_CACHE, ObjectStore, PutOptions
from supabase_bridge.storage.directory import DirectoryStore
from supabase_bridge.storage.errors import ObjectExistsError, ObjectNotFoundError
from supabase_bridge.storage.supabase.store import SupabaseStore
from tests.releases.commit_protocol import (
    channel_objects,
    go_back,
    history,
    in_step,
    move,
    person,
    promote,
    search,
    searched,
    worker,
)
from tests.releases.interleavings import Action, Participant, Search
from tests.releases.replayed_writer import ABSENT, DONE, EXISTS, LOST, Answer, Operation
from tests.support.simulators.storage import StorageSimulator
from tests.support.small_releases import LATEST

OPTIONS = PutOptions(content_type=JSON_TYPE, cache_control=NO_CACHE)
LIMIT_BYTES = 1_000_000
TWO_ENTRIES = history(promote(1, 4), promote(2, 3))
BEGINNINGS: Mapping[str, Mapping[str, bytes]] = {
    "nothing": {},
    "two entries": TWO_ENTRIES,
    "a manifest that was left behind": {**TWO_ENTRIES, LATEST.manifest: TWO_ENTRIES[LATEST.history(1)]},
    "a manifest that is gone": {key: data for key, data in TWO_ENTRIES.items() if key != LATEST.manifest},
}
PAIRS: Mapping[str, Callable[[], list[Participant]]] = {
    "two attempts at an event": lambda: [worker(3, 1), worker(3, 1, attempt=2)],
    "a promotion of what a person points to": lambda: [worker(3, 2), person(move(2, at=4))],
    "a promotion and a person before it": lambda: [worker(3, 1), person(move(2, at=2))],
    "a promotion and a person after it": lambda: [worker(3, 1), person(move(2, at=4))],
    "two persons": lambda: [person(move(1, at=3)), person(move(2, at=4))],
}
CROWDS: Mapping[str, tuple[int, str, Callable[[], list[Participant]]]] = {
    "a retried event and a person": (
        1,
        "two entries",
        lambda: [worker(3, 1), worker(3, 1, attempt=2), person(move(2, at=2))],
    ),
    "a retried event and the next one": (
        2,
        "two entries",
        lambda: [worker(3, 1), worker(3, 1, attempt=2), worker(4, 2)],
    ),
    "an event, a person and a rollback": (
        0,
        "two entries",
        lambda: [worker(3, 1), person(move(2, at=4)), person(go_back(at=5))],
    ),
    "a retried event, a person, and the next event": (
        0,
        "two entries",
        lambda: [worker(3, 1), worker(3, 1, attempt=2), person(move(2, at=4)), worker(5, 3)],
    ),
}


@pytest.mark.parametrize("losses", [pytest.param(0, marks=pytest.mark.exhaustive), 2])
@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize("writers", PAIRS)
def test_two_writers_keep_every_promise_in_every_order(writers: str, beginning: str, losses: int) -> None:
    covered = searched(search(*PAIRS[writers](), objects=BEGINNINGS[beginning], losses=losses))
    assert covered.states > 80
    assert (covered.late > 0) == (losses > 0)


@pytest.mark.parametrize(
    "writers",
    [
        name if name == "a retried event and a person" else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in CROWDS
    ],
)
def test_more_writers_keep_every_promise_in_every_order(writers: str, tell: Callable[[str], None]) -> None:
    losses, beginning, participants = CROWDS[writers]
    covered = searched(search(*participants(), objects=BEGINNINGS[beginning], losses=losses))
    assert (covered.late > 0) == (losses > 0)
    tell(f"commit protocol, {writers}: {covered.states:,} states, {covered.steps:,} steps, {covered.paths:.1e} orders")


def test_only_a_write_that_comes_after_its_writer_gave_up_leaves_consumers_behind_when_all_have_ended() -> None:
    found = search(*PAIRS["two persons"](), objects=TWO_ENTRIES, losses=1)
    behind = [state for state, moves in found.states() if not moves and not in_step(state.objects)]
    last = [found.schedule(state)[-1] for state in behind]
    assert {(action.writer, action.operation.name) for action in last} == {(None, "overwrite"), (None, "create")}


# --- the same on the real adapters ------------------------------------------------------------------------------------


@pytest.fixture(params=["directory", pytest.param("supabase", marks=pytest.mark.exhaustive)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "directory":
        yield DirectoryStore(tmp_path / "models")
        return
    with StorageSimulator() as simulator:
        key, limit = SecretStr(simulator.service_key), timedelta(seconds=30)
        with closing(SupabaseStore(url=simulator.url, key=key, bucket="models", timeout=limit)) as supabase:
            yield supabase


def test_the_adapters_answer_as_the_search_assumes_in_the_orders_in_which_writers_meet(store: ObjectStore) -> None:
    store.ensure_bucket()
    tried = 0
    for writers in ("two attempts at an event", "a promotion and a person after it", "two persons"):
        for beginning in ("nothing", "two entries"):
            found = search(*PAIRS[writers](), objects=BEGINNINGS[beginning], losses=1)
            for schedule, objects in meetings(found):
                store.delete([item.key for item in store.list("")])
                for key, data in BEGINNINGS[beginning].items():
                    store.create(key, data, OPTIONS)
                for action in schedule:
                    assert carried_out(store, action) == action.answer
                assert channel_objects(store) == objects
                Channel(store, LATEST).repair_manifest()
                assert in_step(tuple(sorted(channel_objects(store).items())))
                tried += 1
    assert tried > 40


def meetings(found: Search) -> Iterator[tuple[Sequence[Action], Mapping[str, bytes]]]:
    """Schedules to the end, with what they leave; together they have every pair of writes that can come together."""
    seen: set[tuple[object, ...]] = set()
    for state in [state for state, moves in found.states() if not moves]:
        schedule = found.schedule(state)
        writes = [action for action in schedule if action.operation.name in {"create", "overwrite"}]
        pairs = {
            (before.writer, before.operation.name, before.answer, after.writer, after.operation.name, after.answer)
            for before, after in pairwise(writes)
        }
        if pairs - seen:
            seen |= pairs
            yield schedule, dict(state.objects)


def carried_out(store: ObjectStore, action: Action) -> Answer:
    """Do what an action does, to a real store; a lost write is not done: it comes as an action of its own, or never."""
    operation = action.operation
    if action.answer == LOST or operation.name == "held":
        return action.answer
    return _done(store, operation)


def _done(store: ObjectStore, operation: Operation) -> Answer:
    try:
        if operation.name == "read":
            return store.read(operation.key, limit_bytes=LIMIT_BYTES)
        if operation.name == "list":
            return tuple(item.key for item in store.list(operation.key))
        write = store.create if operation.name == "create" else store.overwrite
        write(operation.key, operation.data, OPTIONS)
    except ObjectNotFoundError:
        return ABSENT
    except ObjectExistsError:
        return EXISTS
    return DONE
