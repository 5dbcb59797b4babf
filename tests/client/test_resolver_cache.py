"""The consumer's cache: shared by processes, never half a file, never believed, and bounded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from supabase_bridge import Resolver
from supabase_bridge.core.errors import LocalFileError
from supabase_bridge.storage.local_files import file_lock
from supabase_bridge.trust.errors import Refusal
from tests.support.consumers import FIRST, LATEST, MODEL, SECOND, Bucket
from tests.support.full_disk import no_file_larger_than
from tests.support.signatures import refused_because
from tests.support.simulators.hostile import Conversation, answer, hostile
from tests.support.simulators.storage import StorageSimulator

ROOT = Path(__file__).parents[2]
ONNX = f"{MODEL}_{FIRST}.onnx"
PULL = """
import sys
from supabase_bridge import Resolver
with Resolver(url=sys.argv[1], key=sys.argv[2], cache_dir=__import__("pathlib").Path(sys.argv[3])) as resolver:
    print(resolver.pull("two_tower").onnx)
"""


def resolver_of(directory: Path, **more: object) -> Resolver:
    arguments: dict[str, object] = {"cache_dir": directory / "cache", **more}
    return Resolver(directory=directory / "models", **arguments)  # type: ignore[arg-type]  # settings by name


@pytest.mark.parametrize("damage", [b"", b"other", None])
def test_a_damaged_or_lost_file_is_fetched_again(tmp_path: Path, damage: bytes | None) -> None:
    bucket = Bucket.of_directory(tmp_path / "models")
    bucket.promote(FIRST)
    path = resolver_of(tmp_path).pull(MODEL).onnx
    good = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage if damage else bytes([good[0] ^ 1]) + good[1:])
    assert resolver_of(tmp_path).pull(MODEL).onnx.read_bytes() == good


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    Bucket.of_directory(tmp_path / "models").promote(FIRST)
    path = resolver_of(tmp_path).pull(MODEL).onnx
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert not resolver_of(tmp_path).pull(MODEL).onnx.is_symlink()


def test_files_in_the_cache_are_read_only(tmp_path: Path) -> None:
    Bucket.of_directory(tmp_path / "models").promote(FIRST)
    pulled = resolver_of(tmp_path).pull(MODEL, tmp_path / "dest")
    assert {path.stat().st_mode & 0o777 for path in pulled.files.values()} == {0o444}


def test_a_destination_shares_its_bytes_with_the_cache(tmp_path: Path) -> None:
    Bucket.of_directory(tmp_path / "models").promote(FIRST)
    resolver = resolver_of(tmp_path)
    assert resolver.pull(MODEL).onnx.samefile(resolver.pull(MODEL, tmp_path / "dest").onnx)


def test_releases_used_least_recently_go_first(tmp_path: Path) -> None:
    bucket = Bucket.of_directory(tmp_path / "models")
    bucket.promote(FIRST, onnx=b"1" * 10_000)
    first = resolver_of(tmp_path).pull(MODEL).directory
    os.utime(first, (1, 1))
    bucket.promote(SECOND, onnx=b"2" * 10_000)
    second = resolver_of(tmp_path, cache_limit_bytes=15_000).pull(MODEL).directory
    assert (first.exists(), second.exists()) == (False, True)
    assert sorted(path.suffix for path in first.parent.iterdir()) == ["", ".lock"]


def test_a_release_that_is_being_taken_is_not_removed(tmp_path: Path) -> None:
    bucket = Bucket.of_directory(tmp_path / "models")
    bucket.promote(FIRST, onnx=b"1" * 10_000)
    first = resolver_of(tmp_path).pull(MODEL).directory
    os.utime(first, (1, 1))
    bucket.promote(SECOND, onnx=b"2" * 10_000)
    with file_lock(first.with_name(f"{first.name}.lock"), wait_seconds=1) as held:
        assert held
        resolver_of(tmp_path, cache_limit_bytes=15_000).pull(MODEL)
    assert (first / ONNX).exists()


def test_a_release_larger_than_the_bound_is_there_while_it_is_the_last_one(tmp_path: Path) -> None:
    Bucket.of_directory(tmp_path / "models").promote(FIRST)
    assert resolver_of(tmp_path, cache_limit_bytes=0).pull(MODEL).onnx.exists()


TO_DEST = PULL.replace('"two_tower"', '"two_tower", sys.argv[4]')
KILLED_BETWEEN_RENAMES = """
import os, signal, sys
def hook(event, arguments):
    if event == "os.rename" and os.fspath(arguments[1]) == sys.argv[4]:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""


def files_at(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_process_killed_while_a_file_comes_leaves_nothing_that_a_pull_believes(tmp_path: Path) -> None:
    objects: dict[str, bytes] = {}
    bucket = Bucket(objects.__setitem__)
    onnx = os.urandom(3_000_000)
    bucket.promote(FIRST, onnx=onnx)
    coming = threading.Event()

    def half(conversation: Conversation) -> None:
        path = conversation.head.split()[1].decode()
        found = next(data for key, data in objects.items() if path.partition("?")[0].endswith(f"/models/{key}"))
        if path.partition("?")[0].endswith(".onnx"):
            conversation.send(answer(found[: len(found) // 2], length=len(found)))
            coming.set()
            conversation.hang()
        conversation.send(answer(found, headers="Connection: close\r\n"))

    dest = tmp_path / "dest"
    with hostile(half) as server:
        command = [sys.executable, "-c", TO_DEST, server.url, "key", str(tmp_path / "cache"), str(dest)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        assert coming.wait(60)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    assert not dest.exists()
    assert [path for path in (tmp_path / "cache").rglob(ONNX) if not path.name.startswith(".")] == []
    with StorageSimulator() as simulator:
        Bucket.of_simulator(simulator).promote(FIRST, onnx=onnx)
        with Resolver(url=simulator.url, key=simulator.service_key, cache_dir=tmp_path / "cache") as resolver:
            assert resolver.pull(MODEL).onnx.read_bytes() == onnx
            resolver.pull(MODEL, dest)
    assert files_at(dest) == bucket.files(FIRST, onnx=onnx)


def test_a_process_killed_between_the_two_renames_leaves_a_name_that_the_next_pull_fills(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    with StorageSimulator() as simulator:
        bucket = Bucket.of_simulator(simulator)
        bucket.promote(FIRST)
        command = [simulator.url, simulator.service_key, str(tmp_path / "cache"), str(dest)]
        subprocess.run([sys.executable, "-c", TO_DEST, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        assert files_at(dest) == bucket.files(FIRST)
        bucket.promote(SECOND)
        killed = subprocess.run([sys.executable, "-c", KILLED_BETWEEN_RENAMES + TO_DEST, *command], cwd=ROOT)
        assert (killed.returncode, dest.exists()) == (-signal.SIGKILL, False)
        subprocess.run([sys.executable, "-c", TO_DEST, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert files_at(dest) == bucket.files(SECOND)


def test_processes_that_pull_at_once_download_once(tmp_path: Path) -> None:
    with StorageSimulator() as simulator:
        Bucket.of_simulator(simulator).promote(FIRST, onnx=os.urandom(3_000_000))
        command = [sys.executable, "-c", PULL, simulator.url, simulator.service_key, str(tmp_path)]
        processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        paths = {process.communicate(timeout=60)[0].strip() for process in processes}
        assert [process.returncode for process in processes] == [0, 0, 0]
        assert len(paths) == 1
        assert simulator.count("GET", ".onnx") == 1


def test_a_lock_that_nobody_lets_go_of_does_not_stop_a_pull(tmp_path: Path) -> None:
    Bucket.of_directory(tmp_path / "models").promote(FIRST)
    first = resolver_of(tmp_path).pull(MODEL).directory
    with file_lock(first.with_name(f"{first.name}.lock"), wait_seconds=1):
        assert resolver_of(tmp_path, timeout=timedelta(seconds=0.1)).pull(MODEL).onnx.exists()


def test_threads_that_resolve_at_once_agree_and_remember_the_newest(tmp_path: Path) -> None:
    bucket = Bucket.of_directory(tmp_path / "models")
    old = bucket.promote(FIRST).to_bytes()
    resolver = resolver_of(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        looks = [pool.submit(resolver.resolve, MODEL) for _ in range(20)]
        bucket.promote(SECOND)
        looks += [pool.submit(resolver_of(tmp_path).resolve, MODEL) for _ in range(20)]
        assert {look.result().run_id for look in looks} <= {FIRST, SECOND}
    bucket.put(LATEST.manifest, old)
    with refused_because(Refusal.ROLLBACK):
        resolver_of(tmp_path).resolve(MODEL)


def test_a_cache_that_cannot_be_written_costs_only_the_memory(tmp_path: Path) -> None:
    Bucket.of_directory(tmp_path / "models").promote(FIRST)
    (tmp_path / "file").write_text("no directory")
    resolver = Resolver(directory=tmp_path / "models", cache_dir=tmp_path / "file" / "cache")
    assert resolver.resolve(MODEL).run_id == FIRST
    assert resolver.pull(MODEL, tmp_path / "dest").onnx.exists()


@pytest.mark.parametrize("dest", [None, "dest"])
def test_the_kept_releases_are_their_users_own(tmp_path: Path, dest: str | None) -> None:
    Bucket.of_directory(tmp_path / "models").promote(FIRST)
    before = os.umask(0o022)
    try:
        resolver_of(tmp_path).pull(MODEL, None if dest is None else tmp_path / dest)
    finally:
        os.umask(before)
    assert (tmp_path / "cache" / "releases").stat().st_mode & 0o777 == 0o700


def test_a_full_disk_under_the_cache_does_not_keep_a_release_from_where_there_is_room(tmp_path: Path) -> None:
    """A cache that takes no directory stands in for the disk: one process cannot fill one of two."""
    bucket = Bucket.of_directory(tmp_path / "models")
    bucket.promote(FIRST)
    resolver = resolver_of(tmp_path)
    kept = tmp_path / "cache" / "releases" / resolver.resolve(MODEL).content_id
    kept.parent.mkdir(parents=True)
    kept.write_text("no directory")
    assert files_at(resolver.pull(MODEL, tmp_path / "dest").directory) == bucket.files(FIRST)
    with pytest.raises(LocalFileError):
        resolver.pull(MODEL)


def test_a_full_disk_under_both_fails_the_pull_and_leaves_nothing(tmp_path: Path) -> None:
    bucket = Bucket.of_directory(tmp_path / "models")
    bucket.promote(FIRST, onnx=b"1" * 200_000)
    with no_file_larger_than(100_000), pytest.raises(LocalFileError):
        resolver_of(tmp_path).pull(MODEL, tmp_path / "dest")
    assert {path.name for path in tmp_path.iterdir()} == {"models", "cache"}
