"""Removal, activation and restoration of one release, searched through: the real code, in every order it can have.

What holds at any instant, also after crashes and with writes that arrive after their writer gave up: a release that a
log names is complete and has all its files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from supabase_bridge.core.documents import FileRecord, ModelMeta, Origin
from supabase_bridge.core.layout import METRICS_NAME, ReleasePaths, RunId, is_hold
from supabase_bridge.releases.archive import complete_again
from supabase_bridge.releases.errors import ReleaseArchivedError, ReleaseBusyError, ReleaseNotFoundError
from supabase_bridge.releases.removal import Removal, bar_removals, held, read_archived
from supabase_bridge.storage.base import ObjectInfo, ObjectStore, PutOptions
from supabase_bridge.storage.errors import ObjectNotFoundError
from tests.releases.interleavings import Objects, Participant, Search
from tests.releases.replayed_writer import Act, Ended, ReplayedWriter
from tests.support.simulators.memory_store import MemoryStore

PATHS = ReleasePaths(model_key="m", run_id=RunId.parse("20251031T093831Z"))
EVENTS, LOG = "events/", "m/latest/"
FILES = {PATHS.onnx_name: b"onnx", METRICS_NAME: b"metrics"}
META = ModelMeta(
    model_name="m",
    run_id=str(PATHS.run_id),
    files={name: FileRecord.of(data) for name, data in FILES.items()},
    mlflow=Origin(registered_model="m", version=1),
).to_bytes()
COMPLETE = {**{PATHS.file(name): data for name, data in FILES.items()}, PATHS.meta: META}
Writers = Callable[[], list[Participant]]


def remover(name: str, *, order: str = "events holds log", seconds: float = 0.0) -> Act:
    """What retention does to one release; `order`: what it reads after its mark, to find out who uses the release."""

    def act(store: ObjectStore, _: Callable[[], None]) -> None:
        times = iter([0.0, seconds, seconds])
        removal = Removal(store, PATHS, attempt=name, clock=lambda: next(times))
        try:
            removal.begin()
        except ReleaseNotFoundError:
            return
        used = False
        for place in order.split():
            found = _holds(store) if place == "holds" else list(store.list({"events": EVENTS, "log": LOG}[place]))
            used = used or bool(found)
        if used:
            removal.cancel()
        elif removal.commit():
            removal.delete_files([PATHS.onnx_name])

    return act


def _holds(store: ObjectStore) -> list[ObjectInfo]:
    return [item for item in store.list(PATHS.prefix) if is_hold(item.key.rpartition("/")[2])]


def promotion(number: int) -> Act:
    """A worker's activation for an event, which restores the release first where it was removed."""
    event = f"{EVENTS}{number}"

    def act(store: ObjectStore, _: Callable[[], None]) -> bytes | None:
        store.overwrite(event, b"promoted", PutOptions())
        try:
            bar_removals(store, PATHS)
        except ReleaseArchivedError:
            try:
                _restore(store, str(number))
            except ReleaseBusyError:
                return None  # The worker tries the event again.
            try:
                bar_removals(store, PATHS)
            except ReleaseArchivedError:
                return None
        for key in COMPLETE:
            try:
                store.stat(key)
            except ObjectNotFoundError:
                return None
        store.overwrite(f"{LOG}1", b"activated", PutOptions())
        store.delete([event])
        return b"activated"

    return act


def _restore(store: ObjectStore, name: str) -> None:
    with held(store, PATHS, attempt=name) as hold:
        hold.check_no_removal(PATHS)
        raw = read_archived(store, PATHS)
        if raw is None:
            return
        listed = [item.key for item in hold.listed]
        for name, data in FILES.items():
            if PATHS.file(name) not in listed:
                store.overwrite(PATHS.file(name), data, PutOptions())
        complete_again(store, PATHS, raw)


def manual_activation(store: ObjectStore, _: Callable[[], None]) -> bytes | None:
    """What `supabase-bridge activate` does, which records no event."""
    with held(store, PATHS, attempt="manual") as hold:
        try:
            found = bar_removals(store, PATHS, hold.listed)
        except ReleaseArchivedError:
            return None
        if all(item.key != PATHS.meta for item in found):
            return None
        store.overwrite(f"{LOG}1", b"activated", PutOptions())
    return b"activated"


def writer(act: Act) -> Participant:
    return Participant(writer=ReplayedWriter(act, MemoryStore(), (PATHS.prefix, EVENTS, LOG)))


def search(writers: Writers, losses: int) -> Search:
    return Search(
        participants=writers(),
        objects=COMPLETE,
        losses=losses,
        is_entry=lambda _: False,
        in_step=lambda _: True,
    )


def is_whole(objects: Objects) -> bool:
    there = dict(objects)
    return all(there.get(key) == data for key, data in COMPLETE.items())


def broken_promises(found: Search) -> list[str]:
    """Go through every state; return what does not hold, with the shortest sequence of operations that leads there."""
    for state, _ in found.states():
        there = dict(state.objects)
        if f"{LOG}1" in there and not is_whole(state.objects):
            return ["a log names a release without its files", *map(str, found.schedule(state))]
        if not is_whole(state.objects) and PATHS.meta in there and PATHS.archived_meta not in there:
            return ["a complete release lacks a file", *map(str, found.schedule(state))]
    return []


FEW: Mapping[str, Writers] = {
    "a removal and a promotion": lambda: [writer(remover("a")), writer(promotion(1))],
    "a removal and a manual activation": lambda: [writer(remover("a")), writer(manual_activation)],
}
MANY: Mapping[str, Writers] = {
    "two removals and a promotion": lambda: [writer(remover("a")), writer(remover("b")), writer(promotion(1))],
    "two removals and a manual activation": lambda: [
        writer(remover("a")),
        writer(remover("b")),
        writer(manual_activation),
    ],
    "a removal and two promotions": lambda: [writer(remover("a")), writer(promotion(1)), writer(promotion(2))],
    "a removal that is too slow to delete, and a promotion": lambda: [
        writer(remover("a", seconds=11.0)),
        writer(promotion(1)),
    ],
}


@pytest.mark.parametrize("losses", [0, 1])
@pytest.mark.parametrize("writers", FEW)
def test_a_release_that_a_log_names_has_all_its_files_in_any_order(writers: str, losses: int) -> None:
    assert broken_promises(search(FEW[writers], losses)) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("losses", [0, 1])
@pytest.mark.parametrize("writers", MANY)
def test_more_removals_and_activations_keep_the_promise_in_every_order(writers: str, losses: int) -> None:
    assert broken_promises(search(MANY[writers], losses)) == []


@pytest.mark.parametrize("order", ["", "events holds", "log events holds"])
def test_the_search_finds_a_removal_that_reads_too_little_or_the_log_too_early(order: str) -> None:
    def against(act: Act) -> list[str]:
        return broken_promises(search(lambda: [writer(remover("a", order=order)), writer(act)], 0))

    assert against(promotion(1)) or against(manual_activation)


def test_a_removal_and_a_promotion_end_with_the_release_activated_or_a_promotion_that_is_tried_again() -> None:
    found = search(FEW["a removal and a promotion"], 0)
    for state, moves in found.states():
        if not moves:
            promoted = found.next_of(state, 1)
            assert isinstance(promoted, Ended)
            assert promoted.error is None
            assert (f"{LOG}1" in dict(state.objects)) == (promoted.entry is not None)
