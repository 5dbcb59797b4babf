"""A channel's log as history: what is read, what was current at a time, and what a rewritten entry is noticed by."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from supabase_bridge.core.documents import Manifest
from supabase_bridge.core.release_log import EntryKind, adopted, chained, kind_of, reissued
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.history import DigestCache, LoggedEntry, LogHistory, verified
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.trust.signer import NO_SIGNING, SigningPolicy
from tests.support.logs import write_log
from tests.support.signatures import sealed
from tests.support.simulators.memory_store import MemoryStore
from tests.support.small_releases import LATEST, NOON, PLAIN

FIRST = sealed("first")


class CountedStore(MemoryStore):
    """Counts what is read."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        super().__init__(lambda operation, key: self.reads.append(key) if operation == "read" else None)


def log_of(store: ObjectStore, cache: DigestCache | None = None) -> tuple[LogHistory, Manifest]:
    channel = Channel(store, LATEST)
    head = channel.read_head().head
    assert head is not None
    return LogHistory(channel, cache or DigestCache(None)), head


def problems(store: ObjectStore, signing: SigningPolicy = NO_SIGNING) -> dict[int, str]:
    """What a verification finds, by the entry."""
    log, head = log_of(store)
    found = verified(log.read(head), Channel(store, LATEST), signing)
    return {item.sequence: item.problem for item in found if item.problem is not None}


def rewrite(store: ObjectStore, sequence: int, change: Callable[[Manifest], Manifest]) -> None:
    entry = change(Channel(store, LATEST).entry(sequence))
    store.overwrite(LATEST.history(sequence), entry.to_bytes(), PLAIN)
    if Channel(store, LATEST).read_head().head == entry:
        store.overwrite(LATEST.manifest, entry.to_bytes(), PLAIN)


def forged(entry: Manifest) -> Manifest:
    return entry.model_copy(update={"release_notes": "nothing happened"})


# --- reading ----------------------------------------------------------------------------------------------------------


def test_every_entry_is_read_the_oldest_first() -> None:
    store = MemoryStore()
    write_log(store, range(1, 31))
    log, head = log_of(store)
    found = log.read(head)
    assert [item.entry.current.model_version if item.entry else None for item in found] == list(range(1, 31))
    assert [item.proven for item in found] == [True] * 29 + [False]


def test_what_was_read_once_is_not_read_again(tmp_path: Path) -> None:
    store, cache = CountedStore(), DigestCache(tmp_path / "history")
    head = write_log(store, range(1, 31))
    log, _ = log_of(store, cache)
    first = log.read(head)
    store.reads.clear()
    assert log.read(head) == first
    assert store.reads == []
    write_log(store, [99], head=head)
    log, head = log_of(store, cache)
    store.reads.clear()
    assert [item.entry for item in log.read(head)[:-1]] == [item.entry for item in first]
    assert store.reads == []


def test_a_cached_entry_that_was_damaged_is_read_again(tmp_path: Path) -> None:
    store, directory = CountedStore(), tmp_path / "history"
    head = write_log(store, range(1, 4))
    log, _ = log_of(store, DigestCache(directory))
    first = log.read(head)
    for file in directory.iterdir():
        file.write_bytes(b"{}")
    store.reads.clear()
    assert log.read(head) == first
    assert sorted(store.reads) == [LATEST.history(1), LATEST.history(2)]


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = MemoryStore()
    head = write_log(store, range(1, 4))
    log, _ = log_of(store, DigestCache(tmp_path / "file" / "history"))
    assert len(log.read(head)) == 3


def test_an_entry_that_names_an_old_one_in_place_of_the_one_before_gets_nothing_from_the_cache(tmp_path: Path) -> None:
    store, cache = MemoryStore(), DigestCache(tmp_path / "history")
    write_log(store, range(1, 6))
    log, head = log_of(store, cache)
    log.read(head)
    oldest = Channel(store, LATEST).entry(1)
    rewrite(store, 5, lambda entry: chained(entry, oldest))
    log, head = log_of(store, cache)
    assert log.read(head)[3].problem == "it was rewritten: entry 5 names another one"


# --- at a time --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minute", [0.5, 1, 1.5, 7, 19.9, 20, 1_000])
def test_what_was_current_at_a_time_is_the_last_switch_before_it(minute: float) -> None:
    store = MemoryStore()
    write_log(store, range(1, 21))
    log, head = log_of(store)
    found = log.at(head, NOON + timedelta(minutes=minute))
    assert (None if found is None else found.sequence) == (None if minute < 1 else min(int(minute), 20))


def test_an_entry_that_was_only_written_again_is_not_when_a_release_became_current() -> None:
    store = MemoryStore()
    head = write_log(store, [1, 2])
    for again in (reissued(head, files=head.current.files, at=NOON, by="ops"), adopted(head, "theirs", by="ops")):
        head = chained(again.model_copy(update={"sequence": head.sequence + 1}), head)
        store.create(LATEST.history(head.sequence), head.to_bytes(), PLAIN)
    head = write_log(store, [3], head=head)
    log, head = log_of(store)
    found = log.at(head, NOON + timedelta(minutes=4))
    assert found is not None
    assert (found.sequence, found.current.model_version) == (2, 2)


def test_of_two_switches_in_one_second_the_later_one_counts() -> None:
    store = MemoryStore()
    head = write_log(store, [1, 2])
    other = head.current.model_copy(update={"run_id": "20251201T000000Z"})
    later = chained(head.model_copy(update={"sequence": 3, "current": other}), head)
    for key in (LATEST.history(3), LATEST.manifest):
        store.overwrite(key, later.to_bytes(), PLAIN)
    channel = Channel(store, LATEST)
    found = LogHistory(channel, DigestCache(None)).at(later, later.current.published_at)
    assert found == later


@pytest.mark.parametrize("length", [16, 512])
def test_the_requests_for_a_time_grow_with_the_logarithm_of_the_logs_length(length: int) -> None:
    store = CountedStore()
    write_log(store, range(1, length + 1))
    for minute in (1, length // 3, length - 1):
        store.reads.clear()
        log, head = log_of(store)
        found = log.at(head, NOON + timedelta(minutes=minute, seconds=30))
        assert found is not None
        assert found.sequence == minute
        assert len(store.reads) <= 3 + 2 * math.log2(length) + 2


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_entries_are_promotions_rollbacks_and_what_operators_do() -> None:
    store = MemoryStore()
    head = write_log(store, [1, 2, 1])
    entries = [item.entry for item in log_of(store)[0].read(head)]
    earlier: set[str] = set()
    kinds = []
    before = None
    for entry in [*entries, reissued(head, files={}, at=NOON), adopted(head, "theirs")]:
        assert entry is not None
        kinds.append(kind_of(entry, before, earlier))
        before = entries[-1] if len(kinds) >= 3 else entry
        earlier.add(entry.current.run_id)
    assert kinds == [
        EntryKind.PROMOTED,
        EntryKind.PROMOTED,
        EntryKind.ROLLED_BACK,
        EntryKind.REISSUED,
        EntryKind.ADOPTED,
    ]


# --- the proof --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signing", [NO_SIGNING, FIRST], ids=["unsigned", "signed"])
def test_a_log_that_nobody_touched_is_proven(signing: SigningPolicy) -> None:
    store = MemoryStore()
    write_log(store, range(1, 8), signing=signing)
    assert problems(store, signing) == {}


@pytest.mark.parametrize("sequence", [1, 4, 6])
def test_a_rewritten_entry_is_named(sequence: int) -> None:
    store = MemoryStore()
    write_log(store, range(1, 8))
    rewrite(store, sequence, forged)
    assert problems(store) == {sequence: f"it was rewritten: entry {sequence + 1} names another one"}


def test_a_rewritten_entry_before_which_the_chain_was_cut_is_named() -> None:
    store = MemoryStore()
    write_log(store, range(1, 8))
    rewrite(store, 7, lambda entry: entry.model_copy(update={"previous_entry_sha256": None}))
    assert list(problems(store)) == [7]


@pytest.mark.parametrize("sequence", [1, 4])
def test_a_missing_entry_is_named(sequence: int) -> None:
    store = MemoryStore()
    write_log(store, range(1, 8))
    store.delete([LATEST.history(sequence)])
    assert problems(store) == {sequence: "it is missing"}


def test_an_entry_that_is_no_manifest_is_named() -> None:
    store = MemoryStore()
    write_log(store, range(1, 8))
    store.overwrite(LATEST.history(3), b"[]", PLAIN)
    assert list(problems(store)) == [3]


def test_without_keys_a_rewritten_newest_entry_cannot_be_noticed_and_with_keys_it_is() -> None:
    for signing, found in ((NO_SIGNING, []), (FIRST, [7])):
        store = MemoryStore()
        write_log(store, range(1, 8), signing=signing)
        rewrite(store, 7, forged)
        assert list(problems(store, signing)) == found


def test_a_whole_log_rewritten_by_a_holder_of_the_secret_key_is_noticed_with_keys_only() -> None:
    store, copy = MemoryStore(), MemoryStore()
    write_log(copy, [3, 2, 1])
    write_log(store, [1, 2, 3], signing=FIRST)
    for sequence in (1, 2, 3):
        store.overwrite(LATEST.history(sequence), copy.read(LATEST.history(sequence), limit_bytes=100_000), PLAIN)
    assert problems(store) == {}
    assert set(problems(store, FIRST)) == {3}
    signed = Channel(store, LATEST).entry(1).model_copy(update={"signature": "a..b"})
    store.overwrite(LATEST.history(1), signed.to_bytes(), PLAIN)
    assert set(problems(store, FIRST)) == {1, 2, 3}


def test_an_unsigned_entry_is_accepted_below_the_first_signed_one_only() -> None:
    store = MemoryStore()
    head = write_log(store, [1, 2])
    head = write_log(store, [3, 4], signing=FIRST, head=head)
    assert problems(store, FIRST) == {}
    stranger = chained(head.model_copy(update={"sequence": 5, "signature": None}), head)
    store.create(LATEST.history(5), stranger.to_bytes(), PLAIN)
    assert list(problems(store, FIRST)) == [5]


def test_an_entry_of_a_key_that_is_not_trusted_is_named() -> None:
    store = MemoryStore()
    write_log(store, [1, 2], signing=FIRST)
    found = problems(store, sealed("second"))
    assert set(found) == {1, 2}
    assert "is not trusted" in found[1]


def test_entries_of_an_earlier_bridge_have_no_problem_and_are_not_proven() -> None:
    store = MemoryStore()
    head: Manifest | None = None
    for sequence in range(1, 4):
        head = write_log(store, [sequence], head=head)
        head = head.model_copy(update={"previous_entry_sha256": None})
        store.overwrite(LATEST.history(sequence), head.to_bytes(), PLAIN)
    write_log(store, [4, 5], head=head)
    log, head = log_of(store)
    found: list[LoggedEntry] = list(verified(log.read(head), Channel(store, LATEST), NO_SIGNING))
    assert [(item.proven, item.problem) for item in found] == [
        (False, None),
        (False, None),
        (True, None),
        (True, None),
        (False, None),
    ]
