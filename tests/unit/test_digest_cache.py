"""The cache by digest: what it gives, what it refuses, and what it forgets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from supabase_bridge.digest_cache import DigestCache
from supabase_bridge.documents import FileRecord
from supabase_bridge.errors import CorruptObjectError, LocalFileError, ObjectNotFoundError
from supabase_bridge.object_store import PutOptions
from tests.full_disk import no_file_larger_than
from tests.simulators.memory_store import MemoryStore


class Bench:
    """A store with objects, a cache, and a place to download to."""

    def __init__(self, directory: Path, limit_bytes: int = 1000) -> None:
        self.directory = directory / "cache"
        self.cache = DigestCache(self.directory, limit_bytes=limit_bytes)
        self.store = MemoryStore()
        self.store.ensure_bucket()
        self.target = directory / "target"

    def put(self, key: str, data: bytes) -> FileRecord:
        self.store.overwrite(key, data, PutOptions())
        return FileRecord(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def fetch(self, key: str, record: FileRecord) -> bytes:
        self.cache.fetch(self.store, key, record, self.target)
        return self.target.read_bytes()

    def entries(self) -> set[str]:
        return {path.name for path in self.directory.rglob("*") if path.is_file()}

    def entry(self, record: FileRecord) -> Path:
        return self.directory / record.sha256[:2] / record.sha256


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_second_fetch_needs_no_store_and_no_key(bench: Bench) -> None:
    record = bench.put("a", b"content")
    assert bench.fetch("a", record) == b"content"
    bench.store.delete(["a"])
    assert bench.fetch("another key", record) == b"content"


@pytest.mark.parametrize("damage", [b"", b"conten", b"Content", b"content and more"])
def test_a_damaged_entry_is_fetched_again(bench: Bench, damage: bytes) -> None:
    record = bench.put("a", b"content")
    bench.fetch("a", record)
    bench.entry(record).write_bytes(damage)
    assert bench.fetch("a", record) == b"content"
    assert bench.entry(record).read_bytes() == b"content"


@pytest.mark.parametrize("found", [b"", b"conten", b"Content", b"content and more"])
def test_what_differs_from_its_record_is_neither_given_nor_kept(bench: Bench, found: bytes) -> None:
    record = bench.put("a", b"content")
    bench.put("a", found)
    bench.target.write_bytes(b"before")
    with pytest.raises(CorruptObjectError):
        bench.fetch("a", record)
    assert bench.target.read_bytes() == b"before"
    assert bench.entries() == set()
    assert list(bench.target.parent.glob(".*")) == []


def test_what_is_given_out_can_be_changed_without_changing_the_cache(bench: Bench) -> None:
    record = bench.put("a", b"content")
    for _ in range(2):
        bench.fetch("a", record)
        with bench.target.open("ab") as file:
            file.write(b" changed")
    assert bench.entry(record).read_bytes() == b"content"


def test_what_was_used_least_recently_goes_first(bench: Bench) -> None:
    records = {name: bench.put(name, name.encode() * 400) for name in "abc"}
    for age, name in enumerate("ab"):
        bench.fetch(name, records[name])
        os.utime(bench.entry(records[name]), (age, age))
    bench.fetch("a", records["a"])
    bench.fetch("c", records["c"])
    assert bench.entries() == {records["a"].sha256, records["c"].sha256}


def test_a_file_larger_than_the_limit_is_given_but_not_kept_and_drives_nothing_out(bench: Bench) -> None:
    small, large = bench.put("small", b"s"), bench.put("large", b"l" * 1001)
    bench.fetch("small", small)
    assert bench.fetch("large", large) == b"l" * 1001
    assert bench.entries() == {small.sha256}


@pytest.mark.parametrize("directory", [None, "a file"])
def test_without_a_place_for_the_cache_downloads_succeed(bench: Bench, directory: str | None) -> None:
    record = bench.put("a", b"content")
    blocked = bench.target.parent / "a file"
    blocked.write_bytes(b"")
    cache = DigestCache(None if directory is None else blocked, limit_bytes=1000)
    for _ in range(2):
        cache.fetch(bench.store, "a", record, bench.target)
        assert bench.target.read_bytes() == b"content"


def test_what_a_killed_process_left_is_swept_a_day_later(bench: Bench) -> None:
    first, second = bench.put("a", b"content"), bench.put("b", b"other")
    bench.fetch("a", first)
    old, new = (bench.entry(first).with_name(f"{name}.part") for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    bench.fetch("b", second)
    assert bench.entries() == {first.sha256, second.sha256, "new.part"}


def test_an_entry_that_is_a_link_is_not_followed(bench: Bench) -> None:
    record = bench.put("a", b"content")
    elsewhere = bench.target.parent / "elsewhere"
    elsewhere.write_bytes(b"content")
    bench.entry(record).parent.mkdir(parents=True)
    bench.entry(record).symlink_to(elsewhere)
    assert bench.fetch("a", record) == b"content"
    assert not bench.entry(record).is_symlink()


def test_an_absent_object_and_an_unwritable_target_are_named(bench: Bench) -> None:
    record = bench.put("a", b"content")
    with pytest.raises(ObjectNotFoundError):
        bench.fetch("absent", record)
    with pytest.raises(LocalFileError):
        bench.cache.fetch(bench.store, "a", record, bench.target.parent / "absent" / "target")


@pytest.mark.parametrize("cached", [False, True])
def test_a_full_disk_under_the_target_is_named_and_leaves_no_half_file(bench: Bench, cached: bool) -> None:
    record = bench.put("a", b"a" * 900)
    if cached:
        bench.fetch("a", record)
    bench.target.write_bytes(b"before")
    with no_file_larger_than(500), pytest.raises(LocalFileError, match="target: file too large"):
        bench.fetch("a", record)
    assert bench.target.read_bytes() == b"before"
    assert bench.entries() == ({record.sha256} if cached else set())
    assert list(bench.target.parent.glob(".*")) == []


def test_a_disk_that_is_full_under_the_cache_alone_keeps_nothing_and_nobody_from_a_download(bench: Bench) -> None:
    record = bench.put("a", b"a" * 900)
    with ExitStack() as stack:

        class Filling(MemoryStore):
            """What is on its way into the cache waits in memory until all came, and the target is written by then."""

            def stream(self, key: str, *, fresh: bool = False) -> Iterator[bytes]:
                yield from super().stream(key, fresh=fresh)
                stack.enter_context(no_file_larger_than(500))

        filling = Filling()
        filling.overwrite("a", b"a" * 900, PutOptions())
        bench.cache.fetch(filling, "a", record, bench.target)
    assert bench.target.read_bytes() == b"a" * 900
    assert bench.entries() == set()
    assert bench.fetch("a", record) == b"a" * 900
    assert bench.entries() == {record.sha256}


def test_many_threads_fetch_the_same_files_at_once(bench: Bench) -> None:
    records = {str(number): bench.put(str(number), bytes([number]) * 300) for number in range(6)}

    def fetch(number: int) -> bytes:
        target = bench.target.with_name(f"target{number}")
        bench.cache.fetch(bench.store, str(number % 6), records[str(number % 6)], target)
        return target.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(fetch, range(120)))
    assert found == [bytes([number % 6]) * 300 for number in range(120)]
    assert not [name for name in bench.entries() if name.endswith(".part")]
