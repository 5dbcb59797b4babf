"""The contract of `ObjectStore`, tested for every implementation."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from supabase_bridge.core.errors import InvalidObjectKeyError, LocalFileError
from supabase_bridge.core.layout import TEMPORARY_PREFIX
from supabase_bridge.storage.base import NO_CACHE, ObjectStore, PutOptions
from supabase_bridge.storage.errors import (
    BucketNotFoundError,
    CorruptObjectError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectTooLargeError,
)
from supabase_bridge.storage.hashing import hash_object
from tests.support.stores import Bench, object_keys

PLAIN = PutOptions()
LIMIT = 1_000_000
BIG = bytes(range(251)) * 4001  # 1 MB, no round number of anything
ODD_KEYS = (
    "m/a b.json",
    "m/a+b",
    "m/a@b",
    "m/a=b",
    "m/it's",
    "m/a&b;c:d,e?f$g!h*i(j)",
    "m/.hidden",
    "m/..two dots..",
    "x" * 255 + "/" + "y" * 255,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.onnx"
    path.write_bytes(BIG)
    return path


def test_a_created_object_is_read_back(store: ObjectStore) -> None:
    store.create("m/r/model_meta.json", b"{}", PLAIN)
    assert store.read("m/r/model_meta.json", limit_bytes=2) == b"{}"


def test_create_leaves_an_object_that_is_there_as_it_is(store: ObjectStore) -> None:
    store.create("m/a", b"first", PLAIN)
    with pytest.raises(ObjectExistsError) as caught:
        store.create("m/a", b"second", PLAIN)
    assert caught.value.key == "m/a"
    assert store.read("m/a", limit_bytes=LIMIT) == b"first"


def test_overwrite_replaces_and_makes(store: ObjectStore) -> None:
    store.overwrite("m/a", b"first, and longer", PLAIN)
    store.overwrite("m/a", b"second", PLAIN)
    assert store.read("m/a", limit_bytes=LIMIT) == b"second"


def test_nothing_temporary_is_left(store: ObjectStore, file: Path) -> None:
    store.create("m/a", b"small", PLAIN)
    store.overwrite("m/b", b"small", PLAIN)
    store.overwrite("m/c", file, PLAIN)
    assert object_keys(store) == ["m/a", "m/b", "m/c"]
    assert object_keys(store, TEMPORARY_PREFIX) == []


def test_nothing_temporary_is_left_by_a_refused_create(store: ObjectStore) -> None:
    store.create("m/a", b"first", PLAIN)
    with pytest.raises(ObjectExistsError):
        store.create("m/a", b"second", PLAIN)
    assert object_keys(store, TEMPORARY_PREFIX) == []


def test_a_file_is_streamed_and_its_progress_reported(store: ObjectStore, file: Path) -> None:
    moved: list[int] = []
    store.overwrite("m/weights.onnx", file, PutOptions(cache_control=NO_CACHE), moved.append)
    assert sum(moved) == len(BIG)
    assert len(moved) > 1 or len(BIG) <= 1024 * 1024
    assert b"".join(store.stream("m/weights.onnx")) == BIG
    assert hash_object(store, "m/weights.onnx", size_bytes=len(BIG)) == hashlib.sha256(BIG).hexdigest()
    with pytest.raises(CorruptObjectError, match="more than"):
        hash_object(store, "m/weights.onnx", size_bytes=len(BIG) - 1)


def test_progress_of_bytes_is_reported(store: ObjectStore) -> None:
    moved: list[int] = []
    store.overwrite("m/a", b"12345", PLAIN, moved.append)
    assert sum(moved) == 5


def test_empty_objects_are_objects(store: ObjectStore, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    store.create("m/bytes", b"", PLAIN)
    store.overwrite("m/file", empty, PLAIN)
    for key in ("m/bytes", "m/file"):
        assert store.read(key, limit_bytes=0) == b""
        assert list(store.stream(key)) == []
        assert store.stat(key).size_bytes == 0
    with pytest.raises(ObjectExistsError):
        store.create("m/bytes", b"x", PLAIN)


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys_work_everywhere(store: ObjectStore, key: str) -> None:
    store.create(key, b"1", PLAIN)
    store.overwrite(key, b"22", PLAIN)
    assert store.read(key, limit_bytes=LIMIT) == b"22"
    assert store.stat(key).key == key
    assert object_keys(store, key) == [key]
    store.delete([key])
    assert object_keys(store) == []


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "../a",
        "a/../b",
        "./a",
        "a/.",
        "a~b",
        "a%b",
        "a#b",
        "a[b",
        'a"b',
        "a\\b",
        "a\nb",
        "a\0b",
        "é",
    ],
)
def test_keys_that_supabase_does_not_take_are_refused(store: ObjectStore, key: str) -> None:
    for call in (
        lambda: store.create(key, b"", PLAIN),
        lambda: store.overwrite(key, b"", PLAIN),
        lambda: store.read(key, limit_bytes=LIMIT),
        lambda: list(store.stream(key)),
        lambda: store.stat(key),
        lambda: store.delete(["m/b", key]),
    ):
        with pytest.raises(InvalidObjectKeyError):
            call()


def test_stat_tells_size_and_time(store: ObjectStore) -> None:
    store.create("m/a", b"12345", PLAIN)
    info = store.stat("m/a")
    assert (info.key, info.size_bytes) == ("m/a", 5)
    assert abs(datetime.now(timezone.utc) - info.modified_at) < timedelta(minutes=1)
    assert info.modified_at.tzinfo is not None


def test_a_recorded_sha256_comes_back_right_or_not_at_all(bench: Bench) -> None:
    store = bench.store
    digest = hashlib.sha256(b"content").hexdigest()
    store.create("m/a", b"content", PutOptions(sha256=digest))
    assert store.stat("m/a").sha256 == (digest if bench.records_sha256 else None)
    store.overwrite("m/a", b"other", PLAIN)
    assert store.stat("m/a").sha256 is None


def test_a_body_that_differs_from_its_sha256_is_never_published(store: ObjectStore) -> None:
    wrong = PutOptions(sha256="0" * 64)
    with pytest.raises(CorruptObjectError):
        store.create("m/a", b"content", wrong)
    with pytest.raises(CorruptObjectError):
        store.overwrite("m/a", b"content", wrong)
    assert object_keys(store) == []
    assert object_keys(store, TEMPORARY_PREFIX) == []


def test_a_local_file_that_is_missing_is_a_local_error(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(LocalFileError) as caught:
        store.overwrite("m/a", tmp_path / "missing.onnx", PLAIN)
    assert caught.value.path == tmp_path / "missing.onnx"
    assert object_keys(store) == []


def test_an_object_that_is_missing_is_not_found(store: ObjectStore) -> None:
    for call in (
        lambda: store.read("m/a", limit_bytes=LIMIT),
        lambda: list(store.stream("m/a")),
        lambda: store.stat("m/a"),
    ):
        with pytest.raises(ObjectNotFoundError) as caught:
            call()
        assert caught.value.key == "m/a"
    assert object_keys(store) == []


def test_a_folder_is_not_an_object(store: ObjectStore) -> None:
    store.create("m/r/a", b"1", PLAIN)
    for call in (lambda: store.read("m/r", limit_bytes=LIMIT), lambda: store.stat("m/r")):
        with pytest.raises(ObjectNotFoundError):
            call()
    store.delete(["m/r"])
    assert object_keys(store) == ["m/r/a"]


def test_read_refuses_what_is_larger_than_its_limit(store: ObjectStore) -> None:
    store.create("m/a", b"12345", PLAIN)
    assert store.read("m/a", limit_bytes=5) == b"12345"
    with pytest.raises(ObjectTooLargeError) as caught:
        store.read("m/a", limit_bytes=4)
    assert caught.value.limit_bytes == 4


def test_prefixes_are_literal_and_case_sensitive(store: ObjectStore) -> None:
    for key in ("m/A.json", "m/a.json", "m/aXjson", "m_/a.json", "mx/a.json"):
        store.create(key, b"", PLAIN)
    assert object_keys(store, "m/a.") == ["m/a.json"]
    assert object_keys(store, "M") == []
    assert object_keys(store, "m_") == ["m_/a.json"]
    assert object_keys(store, "m%") == []
    assert object_keys(store, "m/a.json/") == []


def test_objects_are_listed_in_the_order_of_their_bytes(store: ObjectStore) -> None:
    unordered = ("m/b", "m/a/z", "m/a.json", "m/a b", "m/B", "m/a-1/x", "m/a0", "ma", "m!", "m/a/B")
    for key in unordered:
        store.create(key, key.encode(), PLAIN)
    assert object_keys(store) == sorted(unordered)
    assert [info.size_bytes for info in store.list("m/")] == [len(key) for key in sorted(unordered) if key[1] == "/"]


def test_more_objects_than_a_page_are_listed_once_each(bench: Bench) -> None:
    wanted = [f"m/{number // 100:02d}/{number:05d}" for number in range(2345)]
    bench.fill(dict.fromkeys(wanted, b""))
    bench.fill({"n/other": b""})
    assert object_keys(bench.store, "m/") == wanted
    bench.store.delete(wanted)
    assert object_keys(bench.store) == ["n/other"]


def test_temporary_objects_are_listed_only_when_asked_for(bench: Bench) -> None:
    bench.fill({"_tmp/0123": b"", "_tmpx": b"", "m/a": b""})
    assert object_keys(bench.store) == ["_tmpx", "m/a"]
    assert object_keys(bench.store, "_tmp") == ["_tmpx"]
    assert object_keys(bench.store, TEMPORARY_PREFIX) == ["_tmp/0123"]
    bench.store.delete(["_tmp/0123"])
    assert object_keys(bench.store, TEMPORARY_PREFIX) == []


def test_delete_passes_over_what_is_missing(store: ObjectStore) -> None:
    store.create("m/r/a", b"", PLAIN)
    store.create("m/r2", b"", PLAIN)
    store.delete(["m/r/a", "m/r/never", "m/r2/below-an-object", "never/at/all"])
    store.delete([])
    assert object_keys(store) == ["m/r2"]


def test_a_missing_bucket_is_named(bench: Bench) -> None:
    store = bench.without_bucket
    for call in (
        lambda: store.create("m/a", b"", PLAIN),
        lambda: store.overwrite("m/a", b"", PLAIN),
        lambda: store.read("m/a", limit_bytes=LIMIT),
        lambda: list(store.stream("m/a")),
        lambda: store.stat("m/a"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(BucketNotFoundError) as caught:
            call()
        assert caught.value.bucket == "missing"
    store.delete(["m/a"])


def test_a_bucket_is_made_once_and_keeps_what_is_in_it(bench: Bench) -> None:
    bench.without_bucket.ensure_bucket()
    bench.without_bucket.create("m/a", b"1", PLAIN)
    bench.without_bucket.ensure_bucket()
    assert object_keys(bench.without_bucket) == ["m/a"]
    assert object_keys(bench.store) == []


def test_a_bucket_can_be_made_by_many_at_once(bench: Bench) -> None:
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(bench.without_bucket.ensure_bucket) for _ in range(8)]:
            done.result()
    assert object_keys(bench.without_bucket) == []


@pytest.mark.parametrize("size", [10, 100_000])
def test_of_many_concurrent_creates_exactly_one_wins(store: ObjectStore, size: int) -> None:
    def attempt(number: int) -> bool:
        body = bytes([number]) * size
        ready.wait()
        try:
            store.create("m/latest/history/00000001.json", body, PLAIN)
        except ObjectExistsError:
            return False
        return True

    for round_ in range(3):
        ready = threading.Barrier(8)
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(attempt, range(8)))
        assert won.count(True) == 1, f"round {round_}"
        found = store.read("m/latest/history/00000001.json", limit_bytes=LIMIT)
        assert found == bytes([won.index(True)]) * size
        assert object_keys(store, TEMPORARY_PREFIX) == []
        store.delete(["m/latest/history/00000001.json"])


def test_readers_see_whole_bodies_while_they_are_overwritten(store: ObjectStore, tmp_path: Path) -> None:
    bodies = [bytes([number]) * (150_000 + number) for number in range(6)]
    files = [tmp_path / str(number) for number in range(6)]
    for path, body in zip(files, bodies, strict=True):
        path.write_bytes(body)
    store.overwrite("m/a", bodies[0], PLAIN)
    over = threading.Event()

    def read() -> set[bytes]:
        seen = set()
        while not over.is_set():
            seen.add(store.read("m/a", limit_bytes=LIMIT))
            seen.add(b"".join(store.stream("m/a")))
        return seen

    def write(first: int) -> None:
        for turn in range(12):
            store.overwrite("m/a", files[(first + turn) % 6], PLAIN)

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for writer in [pool.submit(write, first) for first in range(2)]:
                writer.result()
        finally:
            over.set()
        seen = set().union(*(reader.result() for reader in readers))
    assert seen <= set(bodies)


def test_objects_come_and_go_in_one_folder_at_the_same_time(store: ObjectStore) -> None:
    def work(number: int) -> None:
        for turn in range(15):
            key = f"m/r/x/{number}"
            store.create(key, b"1", PLAIN)
            assert store.read(key, limit_bytes=1) == b"1", turn
            store.delete([key])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert object_keys(store) == []


def test_names_say_where_and_nothing_secret(bench: Bench) -> None:
    assert "models" in bench.store.name
    assert "eyJ" not in bench.store.name
