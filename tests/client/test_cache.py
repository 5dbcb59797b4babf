"""Single files of the cache: what it copies out, what it refuses, and what it evicts."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from supabase_bridge.client.cache import Cache
from supabase_bridge.client.download import Files
from supabase_bridge.client.readers import DirectoryReader
from supabase_bridge.client.release import Release
from supabase_bridge.core.documents import FileRecord
from supabase_bridge.core.errors import LocalFileError
from supabase_bridge.storage.base import PutOptions
from supabase_bridge.storage.directory import DirectoryStore
from supabase_bridge.storage.errors import CorruptObjectError, ObjectNotFoundError
from tests.support.full_disk import no_file_larger_than

RUN_ID = "20251031T093831Z"


class Bench:
    """A bucket with files of a release, a cache, and a place to copy to."""

    def __init__(self, directory: Path, limit_bytes: int = 1000) -> None:
        self.directory = directory / "cache"
        self.store = DirectoryStore(directory / "bucket")
        self.store.ensure_bucket()
        self.target = directory / "target"
        self.files = self.files_with(
            DirectoryReader(directory / "bucket"), Cache(self.directory, limit_bytes=limit_bytes)
        )

    def files_with(self, reader: DirectoryReader, cache: Cache | None) -> Files:
        return Files(reader, cache=cache, timeout=timedelta(minutes=1), minimum_rate=1000)

    def put(self, name: str, data: bytes) -> FileRecord:
        self.store.overwrite(f"m/{RUN_ID}/{name}", data, PutOptions())
        return FileRecord(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def fetch(self, name: str, record: FileRecord, *, files: Files | None = None, target: Path | None = None) -> bytes:
        release = Release(model="m", run_id=RUN_ID, files={name: record}, signed=False)
        target = target or self.target
        (files or self.files).copy(release, name, target)
        return target.read_bytes()

    def entries(self) -> set[str]:
        return {path.name for path in self.directory.rglob("*") if path.is_file()}

    def entry(self, record: FileRecord) -> Path:
        return self.directory / "blobs" / record.sha256


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_second_fetch_needs_no_store_and_no_key(bench: Bench) -> None:
    record = bench.put("a", b"content")
    assert bench.fetch("a", record) == b"content"
    bench.store.delete([f"m/{RUN_ID}/a"])
    assert bench.fetch("another", record) == b"content"


@pytest.mark.parametrize("damage", [b"", b"conten", b"Content", b"content and more"])
def test_a_damaged_entry_is_fetched_again(bench: Bench, damage: bytes) -> None:
    record = bench.put("a", b"content")
    bench.fetch("a", record)
    bench.entry(record).chmod(0o600)
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
    cache = None if directory is None else Cache(blocked, limit_bytes=1000)
    files = bench.files_with(DirectoryReader(bench.target.parent / "bucket"), cache)
    for _ in range(2):
        assert bench.fetch("a", record, files=files) == b"content"


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
        bench.fetch("a", record, target=bench.target.parent / "absent" / "target")


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

    class FullAfterwards(Cache):
        """The target is written; then the disk of the cache is full."""

        def add(self, record: FileRecord, path: Path) -> None:
            with no_file_larger_than(500):
                super().add(record, path)

    reader = DirectoryReader(bench.target.parent / "bucket")
    full = bench.files_with(reader, FullAfterwards(bench.directory, limit_bytes=1000))
    bench.fetch("a", record, files=full)
    assert bench.target.read_bytes() == b"a" * 900
    assert bench.entries() == set()
    assert bench.fetch("a", record) == b"a" * 900
    assert bench.entries() == {record.sha256}


def test_many_threads_fetch_the_same_files_at_once(bench: Bench) -> None:
    records = {str(number): bench.put(str(number), bytes([number]) * 300) for number in range(6)}

    def fetch(number: int) -> bytes:
        name = str(number % 6)
        return bench.fetch(name, records[name], target=bench.target.with_name(f"target{number}"))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(fetch, range(120)))
    assert found == [bytes([number % 6]) * 300 for number in range(120)]
    assert not [name for name in bench.entries() if name.endswith(".part")]


def test_a_release_and_a_single_file_share_one_blob(bench: Bench) -> None:
    record = bench.put("a", b"content")
    release = Release(model="m", run_id=RUN_ID, files={"a": record, "b/c": bench.put("b/c", b"content")}, signed=False)
    directory = bench.files.fetch(release)
    assert bench.entry(record).samefile(directory / "a")
    assert bench.entry(record).samefile(directory / "b" / "c")
    bench.store.delete([f"m/{RUN_ID}/a"])
    assert bench.fetch("a", record) == b"content"


def test_a_release_is_made_of_files_that_were_copied_out_before(bench: Bench) -> None:
    record = bench.put("a", b"content")
    bench.fetch("a", record)
    bench.store.delete([f"m/{RUN_ID}/a"])
    release = Release(model="m", run_id=RUN_ID, files={"a": record}, signed=False)
    assert (bench.files.fetch(release) / "a").read_bytes() == b"content"


def test_the_blobs_of_an_evicted_release_are_evicted_too(bench: Bench) -> None:
    first, second = (bench.put(name, name.encode() * 600) for name in "ab")
    for name, record in (("a", first), ("b", second)):
        release = Release(model="m", run_id=RUN_ID, files={name: record}, signed=False)
        os.utime(bench.files.fetch(release), (ord(name), ord(name)))
    assert not bench.entry(first).exists()
    assert bench.entry(second).exists()


def test_a_damaged_blob_is_neither_linked_into_a_release_nor_kept(bench: Bench) -> None:
    record = bench.put("a", b"content")
    bench.fetch("a", record)
    bench.entry(record).unlink()
    bench.entry(record).write_bytes(b"Content")
    release = Release(model="m", run_id=RUN_ID, files={"a": record}, signed=False)
    assert (bench.files.fetch(release) / "a").read_bytes() == b"content"
    assert bench.entry(record).read_bytes() == b"content"
