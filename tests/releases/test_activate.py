"""The activate job on a directory: what is verified, what is committed, and what a crash leaves to the next one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from supabase_bridge.core.documents import RELEASE_NOTES_LIMIT, Cause, Manifest, ModelMeta
from supabase_bridge.core.errors import BridgeError, InvalidDocumentError, InvalidObjectKeyError
from supabase_bridge.core.layout import META_NAME, METRICS_NAME
from supabase_bridge.core.release_log import digest
from supabase_bridge.releases.channel import Activation
from supabase_bridge.releases.errors import ReleaseDamagedError, ReleaseNotFoundError
from supabase_bridge.releases.manual import activate_manually, adopt, reissue, release_before
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.storage.directory import DirectoryStore
from tests.support.activation import activate
from tests.support.simulators.memory_store import MemoryStore
from tests.support.small_releases import LATEST, NOON, PLAIN, entries, event, keys_of, lay_out, named, published, run_id


def switch_to(store: ObjectStore, number: int, cause: Cause) -> Activation:
    return activate(store, LATEST, run_id(number), cause=cause, published_at=NOON)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    store = DirectoryStore(tmp_path / "models")
    store.ensure_bucket()
    for number in (1, 2, 3):
        lay_out(store, number)
    return store


def test_three_promotions_leave_the_two_before_in_previous(store: DirectoryStore) -> None:
    for number in (1, 2, 3):
        switch = switch_to(store, number, event(number))
        assert (switch.activated, switch.entry.sequence) == (True, number)
    assert named(store) == [3, 2, 1]


def test_a_rollback_keeps_the_release_rolled_back_from(store: DirectoryStore) -> None:
    for position, number in enumerate((1, 2, 3, 2), start=1):
        switch_to(store, number, event(position))
    assert named(store) == [2, 3, 1]


def test_the_manifest_is_the_newest_entry_byte_for_byte(store: DirectoryStore) -> None:
    for number in (1, 2):
        switch = switch_to(store, number, event(number))
        assert published(store) == store.read(LATEST.history(number), limit_bytes=1_000_000)
        assert published(store) == switch.head.to_bytes()


def test_a_manifest_names_every_file_with_its_hash(store: DirectoryStore) -> None:
    switch_to(store, 1, event(1))
    current = Manifest.parse(published(store)).current
    assert current.files.keys() == {keys_of(1).onnx_name, METRICS_NAME, META_NAME}
    for name, record in current.files.items():
        data = store.read(keys_of(1).file(name), limit_bytes=1_000_000)
        assert (record.size_bytes, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_manifest_names_the_towers_of_a_release_also_of_a_previous_one(store: DirectoryStore) -> None:
    lay_out(store, 9, towers=("user",))
    switch_to(store, 9, event(3))
    path = keys_of(9).file(keys_of(9).tower_name("user"))
    current = Manifest.parse(published(store)).current
    assert (current.user_onnx_path, current.item_onnx_path) == (path, None)
    switch_to(store, 1, event(4))
    manifest = Manifest.parse(published(store))
    assert (manifest.current.user_onnx_path, manifest.previous[0].user_onnx_path) == (None, path)


def test_each_entry_names_the_digest_of_the_one_before_whatever_wrote_it(store: DirectoryStore) -> None:
    switch_to(store, 1, event(1))
    switch_to(store, 2, event(2))
    activate_manually(store, LATEST, run_id(1), now=NOON, by="ops")
    reissue(store, LATEST, now=NOON, by="ops")
    adopt(store, LATEST, "theirs", by="ops")
    switch_to(store, 2, event(9, registry="theirs"))
    log = entries(store)
    assert [entry.sequence for entry in log] == [1, 2, 3, 4, 5, 6]
    assert [entry.previous_entry_sha256 for entry in log] == [None, *map(digest, log[:-1])]
    by = [(entry.cause.by if entry.cause else None, entry.confirmed_by) for entry in log]
    assert by[2:5] == [("ops", None), ("ops", "ops"), ("ops", "ops")]


def test_a_release_that_is_current_already_is_not_switched_again(store: DirectoryStore) -> None:
    switch_to(store, 1, event(1))
    switch = switch_to(store, 1, event(2))
    assert (switch.activated, switch.entry.sequence) == (False, 1)
    assert len(entries(store)) == 1


def test_a_retried_event_does_not_switch_twice(store: DirectoryStore) -> None:
    first = switch_to(store, 1, event(1))
    assert switch_to(store, 1, event(1)) == first
    assert len(entries(store)) == 1


def test_a_retried_event_does_not_undo_what_others_did_in_between(store: DirectoryStore) -> None:
    first = switch_to(store, 1, event(1))
    activate_manually(store, LATEST, run_id(3), now=NOON)
    switch_to(store, 2, event(2))
    switch_to(store, 3, event(1, registry="theirs"))
    retried = switch_to(store, 1, event(1))
    assert (retried.entry, retried.activated, retried.head.sequence) == (first.entry, True, 4)
    assert named(store) == [3, 2, 1]


def test_an_event_taken_over_from_a_worker_that_was_only_slow_is_in_the_log_once() -> None:
    overtaken: list[Callable[[], object]] = []

    def before(operation: str, key: str) -> None:
        if operation == "create" and key.startswith(LATEST.history_prefix) and overtaken:
            overtaken.pop()()

    store = MemoryStore(before)
    for number in (1, 2):
        lay_out(store, number)

    def by_other_workers() -> None:
        switch_to(store, 1, event(1))
        switch_to(store, 2, event(2))

    overtaken.append(by_other_workers)
    slow = switch_to(store, 1, event(1))
    assert [entry.cause for entry in entries(store)] == [event(1), event(2)]
    assert (slow.entry.sequence, slow.activated, slow.head.sequence) == (1, True, 2)
    assert named(store) == [2, 1]


def test_a_crash_after_the_log_entry_is_healed_by_the_next_activation(store: DirectoryStore) -> None:
    first = switch_to(store, 1, event(1)).entry
    crashed = first.model_copy(update={"sequence": 2, "cause": event(2)})
    store.create(LATEST.history(2), crashed.to_bytes(), PLAIN)
    assert published(store) == first.to_bytes()
    again = switch_to(store, 1, event(2))
    assert (again.entry, again.activated) == (crashed, True)
    assert published(store) == crashed.to_bytes()


def test_a_writer_overtaken_whenever_it_writes_the_manifest_looks_until_nobody_was_faster() -> None:
    others: list[int] = []

    def overtake(operation: str, key: str) -> None:
        if others and (operation, key) == ("overwrite", LATEST.manifest):
            number, later = others[0], others[1:]
            others.clear()
            switch_to(memory, number, event(10 - len(later)))
            others.extend(later)

    memory = MemoryStore(overtake)
    for number in (1, 2, 3):
        lay_out(memory, number)
    switch_to(memory, 1, event(1))
    others.extend([3, 1])
    assert switch_to(memory, 2, event(2)).head.sequence == 4
    assert named(memory) == [1, 3, 2]
    assert published(memory) == entries(memory)[-1].to_bytes()


def test_the_very_first_entry_is_healed_too(store: DirectoryStore) -> None:
    entry = switch_to(store, 1, event(1)).entry
    store.delete([LATEST.manifest])
    assert switch_to(store, 1, event(1)).entry == entry
    assert published(store) == entry.to_bytes()


@pytest.mark.parametrize("edit", [b"", b"{}", b"not json", b"[" * 2_000, b" " * 1_000_001, b"\xff"])
def test_a_damaged_manifest_is_healed(store: DirectoryStore, edit: bytes) -> None:
    for number in (1, 2):
        head = switch_to(store, number, event(number)).head
    store.overwrite(LATEST.manifest, edit, PLAIN)
    assert switch_to(store, 2, event(2)).head == head
    assert published(store) == head.to_bytes()


@pytest.mark.parametrize(
    "edit",
    [
        {"sequence": 1},
        {"sequence": 7},
        {"sequence": 99_999_999},
        {"sequence": 10**300},
        {"sequence": 0},
        {"channel": "staging"},
        {"previous": []},
    ],
)
def test_a_manifest_edited_by_hand_is_not_believed(store: DirectoryStore, edit: dict[str, Any]) -> None:
    for number in (1, 2):
        switch_to(store, number, event(number))
    value = json.loads(published(store))
    store.overwrite(LATEST.manifest, json.dumps({**value, **edit}).encode(), PLAIN)
    switch = switch_to(store, 3, event(3))
    assert (switch.entry.sequence, switch.head) == (3, switch.entry)
    assert named(store) == [3, 2, 1]


def test_stray_objects_beside_the_log_are_passed_over(store: DirectoryStore) -> None:
    switch_to(store, 1, event(1))
    for name in ("notes.txt", "00000000.json", "000000009.json", "00000002.json.bak", "old/00000009.json"):
        store.create(LATEST.history_prefix + name, b"stray", PLAIN)
    store.delete([LATEST.manifest])
    assert switch_to(store, 2, event(2)).entry.sequence == 2
    assert named(store) == [2, 1]


@pytest.mark.parametrize("edit", [{"sequence": 3}, {"channel": "staging"}, {"model_name": "other"}, {"current": 1}])
def test_a_log_that_somebody_wrote_into_is_refused_rather_than_guessed_at(
    store: DirectoryStore, edit: dict[str, Any]
) -> None:
    entry = switch_to(store, 1, event(1)).entry
    foreign = {**entry.to_object(), "sequence": 2, **edit}
    store.create(LATEST.history(2), json.dumps(foreign).encode(), PLAIN)
    with pytest.raises(InvalidDocumentError):
        switch_to(store, 2, event(2))
    assert published(store) == entry.to_bytes()


def damage_missing(store: ObjectStore, key: str) -> None:
    store.delete([key])


def damage_truncated(store: ObjectStore, key: str) -> None:
    store.overwrite(key, store.read(key, limit_bytes=1_000)[:-1], PLAIN)


def damage_altered(store: ObjectStore, key: str) -> None:
    data = store.read(key, limit_bytes=1_000)
    store.overwrite(key, data[:-2] + bytes([data[-2] ^ 1]) + data[-1:], PLAIN)


@pytest.mark.parametrize("name", [keys_of(2).onnx_name, METRICS_NAME])
@pytest.mark.parametrize("damage", [damage_missing, damage_truncated, damage_altered])
def test_a_release_with_a_damaged_file_is_refused_and_the_pointer_stays(
    store: DirectoryStore, damage: Callable[[ObjectStore, str], None], name: str
) -> None:
    before = switch_to(store, 1, event(1)).entry
    damage(store, keys_of(2).file(name))
    with pytest.raises(ReleaseDamagedError) as refused:
        switch_to(store, 2, event(2))
    assert refused.value.key == keys_of(2).file(name)
    assert published(store) == before.to_bytes()
    assert entries(store) == [before]


@pytest.mark.parametrize("number", [2, 9])
def test_a_release_that_is_incomplete_or_not_there_is_refused(store: DirectoryStore, number: int) -> None:
    store.delete([keys_of(2).meta])
    with pytest.raises(ReleaseNotFoundError):
        switch_to(store, number, event(1))
    assert entries(store) == []


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        ({"files": {}}, ReleaseDamagedError),
        ({"run_id": str(run_id(1))}, ReleaseDamagedError),
        ({"model_name": "other"}, ReleaseDamagedError),
        ({"files": None}, InvalidDocumentError),
    ],
)
def test_a_commit_record_that_does_not_vouch_for_the_release_is_refused(
    store: DirectoryStore, edit: dict[str, Any], error: type[BridgeError]
) -> None:
    meta = ModelMeta.parse(store.read(keys_of(2).meta, limit_bytes=1_000_000)).to_object()
    store.overwrite(keys_of(2).meta, json.dumps({**meta, **edit}).encode(), PLAIN)
    with pytest.raises(error):
        switch_to(store, 2, event(1))
    assert entries(store) == []


def test_a_recorded_file_outside_the_release_is_refused(store: DirectoryStore) -> None:
    meta = ModelMeta.parse(store.read(keys_of(2).meta, limit_bytes=1_000_000)).to_object()
    meta["files"]["../x"] = meta["files"][METRICS_NAME]
    store.overwrite(keys_of(2).meta, json.dumps(meta).encode(), PLAIN)
    with pytest.raises(InvalidObjectKeyError):
        verify_release(store, keys_of(2))


@pytest.mark.parametrize(
    ("notes", "shown"),
    [
        ("price off", "price off"),
        ("x" * 5_000, "x" * RELEASE_NOTES_LIMIT),
        *((notes, "RELEASE") for notes in ({"en": "price off"}, 7, None, " ")),
    ],
)
def test_a_manifest_has_the_notes_of_its_release_if_they_are_a_text_and_else_names_the_release(
    store: DirectoryStore, notes: object, shown: str
) -> None:
    lay_out(store, 4, release_notes=notes)
    shown = shown.replace("RELEASE", f"Release {keys_of(4).run_id} of version 4.")
    assert switch_to(store, 4, event(1)).entry.release_notes == shown


def test_a_hundred_activations_by_four_writers_at_once_lose_no_update(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "busy")
    store.ensure_bucket()
    for number in range(8):
        lay_out(store, number)

    def work(writer: int) -> list[Activation]:
        # Nobody else activates these two, so each activation changes what is current.
        return [switch_to(store, 2 * writer + number % 2, event(number, f"registry {writer}")) for number in range(25)]

    with ThreadPoolExecutor(4) as pool:
        switches = [switch for done in pool.map(work, range(4)) for switch in done]
    log = entries(store)
    assert [entry.sequence for entry in log] == list(range(1, 101))
    assert sorted(switch.entry.sequence for switch in switches if switch.activated) == list(range(1, 101))
    for before, after in pairwise(log):
        assert after.previous[0].run_id == before.current.run_id
    assert published(store) == log[-1].to_bytes()


def test_a_pointer_moved_by_hand_says_so(store: DirectoryStore) -> None:
    switch_to(store, 1, event(1))
    switch = activate_manually(store, LATEST, run_id(2), now=NOON)
    assert switch.entry.cause == Cause(by_hand=True)
    assert named(store) == [2, 1]


def test_two_moves_by_hand_to_different_releases_are_two_switches(store: DirectoryStore) -> None:
    for number in (1, 2, 1):
        assert activate_manually(store, LATEST, run_id(number), now=NOON).activated
    assert named(store) == [1, 2]
    assert not activate_manually(store, LATEST, run_id(1), now=NOON).activated


def test_a_promotion_after_a_move_by_hand_takes_the_pointer_over(store: DirectoryStore) -> None:
    activate_manually(store, LATEST, run_id(1), now=NOON)
    assert switch_to(store, 1, event(1)).activated
    assert [entry.cause for entry in entries(store)] == [Cause(by_hand=True), event(1)]


def test_the_release_before_is_the_first_of_previous(store: DirectoryStore) -> None:
    for number in (1, 2, 3):
        switch_to(store, number, event(number))
    assert release_before(store, LATEST) == run_id(2)


def test_there_is_nothing_to_roll_back_to_before_the_second_release(store: DirectoryStore) -> None:
    assert release_before(store, LATEST) is None
    switch_to(store, 1, event(1))
    assert release_before(store, LATEST) is None
