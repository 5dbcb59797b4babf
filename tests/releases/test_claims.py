"""The claim of a release's folder, searched through: the real code, in every order its operations can have.

What holds at any instant, also after crashes and with writes that arrive after their writer gave up: a complete release
has every file as it records it, and never changes again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from supabase_bridge.core.documents import FileRecord, ModelMeta, Origin
from supabase_bridge.core.layout import ReleasePaths, RunId
from supabase_bridge.releases.claim import ReleaseClaim, bar_completion, read_claim
from supabase_bridge.storage.base import ObjectInfo, ObjectStore, PutOptions
from supabase_bridge.storage.errors import ObjectNotFoundError
from tests.releases.interleavings import Objects, Participant, Search
from tests.releases.replayed_writer import Act, Ended, ReplayedWriter
from tests.support.simulators.memory_store import MemoryStore

PATHS = ReleasePaths(model_key="m", run_id=RunId.parse("20251031T093831Z"))
NAMES = (PATHS.onnx_name, "metrics.json")
LIMIT_BYTES = 100_000
Writers = Callable[[], list[Participant]]


def contents(release: str) -> dict[str, bytes]:
    return {name: f"{release} {name}".encode() for name in NAMES}


def draft(release: str) -> ModelMeta:
    files = {name: FileRecord.of(data) for name, data in contents(release).items()}
    origin = Origin(registered_model="m", version=1)
    return ModelMeta(model_name="m", run_id=str(PATHS.run_id), files=files, mlflow=origin)


def attempt(release: str, name: str, *, passes: bool = True, first: str = "check") -> Act:
    """An attempt to complete a release, as the mirror does it; its checks end before its uploads, or after them."""
    files = contents(release)

    def act(store: ObjectStore, _: Callable[[], None]) -> bytes | None:
        def is_ours(info: ObjectInfo) -> bool:
            found = store.read(info.key, limit_bytes=LIMIT_BYTES)
            return found == files.get(info.key.removeprefix(PATHS.prefix))

        claim = ReleaseClaim(store, PATHS, draft(release), attempt=name)
        claim.prepare()
        # The mirror expects no notes of the checks; those of one attempt are expected, of the other ones not.
        claim.prepare_verdict(draft(release).with_notes([name] if first == "check" else []))
        try:
            claim.take(is_ours, claimed=read_claim(store, PATHS))
        except ObjectNotFoundError:
            return None  # A file that was deleted while it was compared: an error of the attempt.
        present = {info.key for info in claim.present}
        missing = {PATHS.file(name): data for name, data in files.items() if PATHS.file(name) not in present}

        def check() -> bytes:
            return claim.accept(draft(release).with_notes([name])) if passes else b""

        raw = check() if first == "check" else b""
        for key, data in missing.items():
            store.overwrite(key, data, PutOptions())
        if first == "upload":
            raw = check()
        if not passes:
            claim.reject()
            return None
        claim.commit()
        claim.forget()
        return raw

    return act


def sweep(store: ObjectStore, _: Callable[[], None]) -> None:
    """What `sync --sweep` does to an incomplete folder."""
    found = list(store.list(PATHS.prefix))
    if PATHS.meta not in [info.key for info in found] and bar_completion(store, PATHS):
        store.delete([info.key for info in found])


def clean_up(store: ObjectStore, _: Callable[[], None]) -> None:
    """What a pass does to the claim of a complete release."""
    try:
        store.stat(PATHS.meta)
    except ObjectNotFoundError:
        return
    store.delete([PATHS.claim, PATHS.verdict])


def writer(act: Act) -> Participant:
    return Participant(writer=ReplayedWriter(act, MemoryStore(), (PATHS.prefix, PATHS.claims_prefix)))


def folder(objects: Objects) -> dict[str, bytes]:
    return {key: data for key, data in objects if key.startswith(PATHS.prefix)}


def is_intact(release: Mapping[str, bytes]) -> bool:
    recorded = ModelMeta.parse(release[PATHS.meta]).files
    return all(FileRecord.of(release.get(PATHS.file(name), b"")) == record for name, record in recorded.items())


def broken_promises(search: Search) -> list[str]:
    """Go through every state; return what does not hold, with the shortest sequence of operations that leads there."""
    for state, moves in search.states():
        before = folder(state.objects)
        ends = [search.next_of(state, number) for number in range(len(state.steps))]
        said = [end.entry for end in ends if isinstance(end, Ended) and end.entry is not None]
        wrong = {
            "a complete release lacks a file or has another one": PATHS.meta in before and not is_intact(before),
            "a complete release changes": PATHS.meta in before
            and any(folder(after.objects) != before for _, after in moves),
            "an attempt says that the release is complete, and it is not": bool(said) and PATHS.meta not in before,
        }
        if found := [promise for promise, is_wrong in wrong.items() if is_wrong]:
            return [*found, *map(str, search.schedule(state))]
    return []


def search(writers: Writers, losses: int) -> Search:
    participants = writers()
    return Search(
        participants=participants, objects={}, losses=losses, is_entry=lambda _: False, in_step=lambda _: True
    )


FEW: Mapping[str, Writers] = {
    "two attempts at one release": lambda: [
        writer(attempt("a", "1")),
        writer(attempt("a", "2", first="upload")),
    ],
    "two releases": lambda: [writer(attempt("a", "1")), writer(attempt("b", "2"))],
    "an attempt whose checks fail, and another one": lambda: [
        writer(attempt("a", "1", passes=False)),
        writer(attempt("a", "2", first="upload")),
    ],
    "an attempt and a sweep": lambda: [writer(attempt("a", "1", first="upload")), writer(sweep)],
}
MANY: Mapping[str, Writers] = {
    "a rejection, an attempt, and another release": lambda: [
        writer(attempt("a", "1", passes=False)),
        writer(attempt("a", "2", first="upload")),
        writer(attempt("b", "3")),
    ],
    "two attempts, another release and a cleanup": lambda: [
        writer(attempt("a", "1")),
        writer(attempt("a", "2")),
        writer(attempt("b", "3", passes=False)),
        writer(clean_up),
    ],
    "two attempts, a rejection and a sweep": lambda: [
        writer(attempt("a", "1")),
        writer(attempt("a", "2", passes=False)),
        writer(sweep),
    ],
}


@pytest.mark.parametrize("losses", [0, 2])
@pytest.mark.parametrize("writers", FEW)
def test_a_complete_release_is_whole_and_never_changes_in_any_order(writers: str, losses: int) -> None:
    assert broken_promises(search(FEW[writers], losses)) == []


@pytest.mark.parametrize(
    ("writers", "losses"),
    [
        ("two attempts, a rejection and a sweep", 0),
        *(pytest.param(name, 1, marks=pytest.mark.exhaustive) for name in MANY),
    ],
)
def test_more_attempts_keep_every_promise_in_every_order(writers: str, losses: int) -> None:
    assert broken_promises(search(MANY[writers], losses)) == []


def test_attempts_at_one_release_complete_it_and_another_release_takes_another_run_id() -> None:
    found = search(FEW["two attempts at one release"], 0)
    last = [state for state, moves in found.states() if not moves]
    assert last
    assert all(PATHS.meta in folder(state.objects) for state in last)
    found = search(FEW["two releases"], 0)
    for state, moves in found.states():
        if not moves:
            ends = [found.next_of(state, number) for number in range(2)]
            errors = sorted(str(end.error) for end in ends if isinstance(end, Ended))
            assert errors == ["None", "ReleaseTakenError"]
