"""A directory as a bucket: links, stray files, a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from supabase_bridge.core.errors import BridgeError, InvalidObjectKeyError, LocalFileError
from supabase_bridge.storage.base import Digests, PutOptions
from supabase_bridge.storage.directory import DirectoryStore
from supabase_bridge.storage.errors import ObjectExistsError, ObjectNotFoundError
from supabase_bridge.storage.hashing import hash_body
from tests.support.stores import object_keys

PLAIN = PutOptions()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "bucket"
    path.mkdir()
    return path


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore(root)


@pytest.mark.parametrize("outside", ["file", "directory"])
def test_a_symbolic_link_is_no_way_out_of_the_root(
    root: Path, store: DirectoryStore, tmp_path: Path, outside: str
) -> None:
    secrets = tmp_path / "outside"
    secrets.mkdir()
    (secrets / "a").write_bytes(b"secret")
    if outside == "file":
        (root / "m").mkdir()
        (root / "m" / "a").symlink_to(secrets / "a")
    else:
        (root / "m").symlink_to(secrets)
    store.create("n/a", b"1", PLAIN)
    for call in (
        lambda: store.read("m/a", limit_bytes=100),
        lambda: list(store.stream("m/a")),
        lambda: store.stat("m/a"),
        lambda: store.create("m/a", b"x", PLAIN),
        lambda: store.overwrite("m/a", b"x", PLAIN),
        lambda: store.delete(["m/a"]),
    ):
        with pytest.raises(LocalFileError, match="symbolic link"):
            call()
    assert object_keys(store) == ["n/a"]
    assert (secrets / "a").read_bytes() == b"secret"


def test_a_root_that_is_itself_a_link_is_followed(root: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(root)
    DirectoryStore(link).create("m/a", b"1", PLAIN)
    assert (root / "m" / "a").read_bytes() == b"1"


def test_files_that_could_not_be_objects_are_not_listed(root: Path, store: DirectoryStore) -> None:
    (root / "m").mkdir()
    (root / "m" / "ümlaut~").touch()
    os.mkfifo(root / "m" / "pipe")
    (root / "m" / "a").touch()
    assert object_keys(store) == ["m/a"]
    with pytest.raises(ObjectNotFoundError):
        store.read("m/pipe", limit_bytes=1)


def test_an_object_is_no_folder_and_a_folder_no_object(store: DirectoryStore) -> None:
    store.create("m/r/a", b"1", PLAIN)
    for put in (store.create, store.overwrite):
        for key in ("m/r/a/b", "m/r/a/b/c"):
            with pytest.raises(InvalidObjectKeyError, match="one of its folders is an object"):
                put(key, b"2", PLAIN)
        with pytest.raises(InvalidObjectKeyError, match="folder of other objects"):
            put("m/r", b"2", PLAIN)
    assert object_keys(store) == ["m/r/a"]
    assert object_keys(store, "_tmp/") == []


def test_deleting_the_last_object_of_a_folder_removes_the_folder(root: Path, store: DirectoryStore) -> None:
    store.create("m/r/deep/a", b"1", PLAIN)
    store.create("m/b", b"1", PLAIN)
    store.delete(["m/r/deep/a"])
    assert not (root / "m" / "r").exists()
    store.delete(["m/b"])
    assert root.is_dir()
    assert object_keys(store) == []


def test_a_folder_that_is_pruned_just_before_an_object_comes_is_made_again(root: Path, store: DirectoryStore) -> None:
    over = threading.Event()

    def prune() -> None:
        # As often as deletions could: one that never rests would leave no time for a folder to live.
        while not over.wait(0.0002):
            for folder in ("m/r/s", "m/r", "m"):
                with suppress(OSError):
                    (root / folder).rmdir()

    with ThreadPoolExecutor(1) as pool:
        pruning = pool.submit(prune)
        try:
            for number in range(60):
                put = store.create if number % 2 else store.overwrite
                put("m/r/s/a", b"1", PLAIN)
                assert object_keys(store) == ["m/r/s/a"]
                store.delete(["m/r/s/a"])
        finally:
            over.set()
        pruning.result()


def test_written_files_belong_to_whoever_the_umask_says(root: Path, store: DirectoryStore) -> None:
    before = os.umask(0o027)
    try:
        store.create("m/a", b"1", PLAIN)
    finally:
        os.umask(before)
    assert (root / "m" / "a").stat().st_mode & 0o777 == 0o640


def test_a_failing_progress_callback_leaves_nothing(store: DirectoryStore) -> None:
    def cancel(_moved: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.overwrite("m/a", b"1", PLAIN, cancel)
    assert object_keys(store) == []
    assert object_keys(store, "_tmp/") == []


def test_a_disk_that_takes_no_more_is_named_and_nothing_is_left(root: Path) -> None:
    # A limit on the size of files stops a write half-way, as a full disk does; only a process of its own can set it.
    program = """
import resource, signal, sys
from pathlib import Path
from supabase_bridge.core.errors import LocalFileError
from supabase_bridge.storage.base import Digests, PutOptions
from supabase_bridge.storage.directory import DirectoryStore

store = DirectoryStore(Path(sys.argv[1]))
store.create("m/a", b"old", PutOptions())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for put in (store.create, store.overwrite):
    try:
        put("m/b" if put == store.create else "m/a", b"x" * 200_000, PutOptions())
    except LocalFileError as error:
        assert "file too large" in str(error), error
    else:
        raise SystemExit("it was written")
assert [info.key for info in store.list("")] == ["m/a"]
assert [info.key for info in store.list("_tmp/")] == []
assert store.read("m/a", limit_bytes=10) == b"old"
"""
    done = subprocess.run([sys.executable, "-c", program, str(root)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_root_that_is_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    store = DirectoryStore(path)
    with pytest.raises(LocalFileError):
        store.ensure_bucket()
    with pytest.raises(BridgeError):
        store.create("m/a", b"1", PLAIN)


def test_create_does_not_follow_a_link_to_nothing(root: Path, store: DirectoryStore, tmp_path: Path) -> None:
    (root / "m").mkdir()
    (root / "m" / "a").symlink_to(tmp_path / "nothing")
    with pytest.raises((LocalFileError, ObjectExistsError)):
        store.create("m/a", b"1", PLAIN)
    assert not (tmp_path / "nothing").exists()


def test_the_digests_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_body(path) == hash_body(b"abc")
    assert hash_body(path) == Digests(size_bytes=3, md5="900150983cd24fb0d6963f7d28e17f72", sha256=expected)
    with pytest.raises(LocalFileError):
        hash_body(tmp_path / "missing")
