"""Large objects need constant memory, and reach the local disk only whole and verified."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supabase_bridge.client.download import Files
from supabase_bridge.client.release import Release
from supabase_bridge.core.documents import FileRecord
from supabase_bridge.core.errors import BridgeError, LocalFileError
from supabase_bridge.storage.base import ObjectStore, PutOptions
from supabase_bridge.storage.errors import (
    AccessDeniedError,
    CorruptObjectError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StoreUnavailableError,
)
from supabase_bridge.storage.supabase.endpoint import Content
from supabase_bridge.storage.time_budget import TimeBudget
from tests.support.simulators.faults import CorruptRequest, CorruptResponse, CutResponseAfter, Fault, Hang
from tests.support.simulators.storage import StorageSimulator
from tests.support.stores import BUCKET, Bench, supabase_store

ROOT = Path(__file__).parents[2]
KEY, MISSING = "m/20251031T093831Z/a", "m/20251031T093831Z/none"
DATA = bytes(range(251)) * 4001
RECORD = FileRecord(size_bytes=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())


class StoreReader:
    """A store as the client library reads it."""

    sees_part = False

    def __init__(self, store: ObjectStore) -> None:
        self.name = store.name
        self._store = store

    def read(self, key: str, *, limit_bytes: int, known_etag: str | None, deadline: TimeBudget) -> Content | None:
        raise NotImplementedError

    def stream(self, key: str, *, size_bytes: int, deadline: TimeBudget) -> Iterator[bytes]:  # noqa: ARG002
        return self._store.stream(key)

    def close(self) -> None:
        raise NotImplementedError


def download(store: ObjectStore, key: str, target: Path) -> None:
    """Download a file of a release and compare it with its record."""
    model, run_id, name = key.split("/")
    release = Release(model=model, run_id=run_id, files={name: RECORD}, signed=False)
    files = Files(StoreReader(store), cache=None, timeout=timedelta(minutes=5), minimum_rate=1_000_000)
    files.copy(release, name, target)


@pytest.mark.exhaustive
def test_a_file_of_300_mb_costs_no_memory_on_any_way() -> None:
    command = [sys.executable, "-m", "benchmarks.memory", "--size", "300000000", "--limit", "48"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "highest rise" in done.stdout


def test_a_download_is_there_whole(bench: Bench, tmp_path: Path) -> None:
    bench.fill({KEY: DATA})
    target = tmp_path / "file"
    target.write_bytes(b"old")
    download(bench.store, KEY, target)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x", DATA[::-1], b""])
def test_a_download_with_another_hash_changes_nothing(bench: Bench, tmp_path: Path, data: bytes) -> None:
    bench.fill({KEY: data})
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "file").write_bytes(b"old")
    with pytest.raises(CorruptObjectError):
        download(bench.store, KEY, folder / "file")
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert (folder / "file").read_bytes() == b"old"


def test_a_download_that_cannot_be_made_or_written_has_its_name(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFoundError):
        download(store, MISSING, tmp_path / "file")
    (tmp_path / "no folder").write_bytes(b"")
    with pytest.raises(LocalFileError):
        download(store, MISSING, tmp_path / "no folder" / "file")
    assert not (tmp_path / "file").exists()


@settings(
    max_examples=min(25, settings().max_examples),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    cuts=st.lists(st.integers(0, len(DATA)), max_size=6),
    corrupted=st.none() | st.integers(0, len(DATA) - 1),
)
def test_wherever_a_download_is_cut_or_corrupted_the_file_is_right_or_not_there(
    simulator: StorageSimulator, tmp_path: Path, cuts: list[int], corrupted: int | None
) -> None:
    simulator.put_object(BUCKET, KEY, DATA)
    target = tmp_path / "file"
    target.unlink(missing_ok=True)
    for offset in cuts:
        simulator.inject(Fault(action=CutResponseAfter(offset), method="GET", times=1))
    if corrupted is not None:
        simulator.inject(Fault(action=CorruptResponse(corrupted), times=1))
    store = supabase_store(simulator)
    try:
        download(store, KEY, target)
    except (CorruptObjectError, StoreUnavailableError):
        assert list(tmp_path.iterdir()) == []
    else:
        assert target.read_bytes() == DATA
    simulator.clear_faults()
    store.close()


@pytest.mark.parametrize(
    ("refused", "expected"),
    [("size", ObjectTooLargeError), ("key", AccessDeniedError), ("nothing", StoreUnavailableError)],
)
def test_a_refusal_that_leaves_a_large_body_unread_has_its_name_all_the_same(
    simulator: StorageSimulator, tmp_path: Path, refused: str, expected: type[BridgeError]
) -> None:
    headers = {"authorization": f"Bearer {simulator.legacy_service_key}"}
    limit = 10_000_000 if refused == "size" else 100_000_000
    bucket = {"name": BUCKET, "public": False, "file_size_limit": limit}
    assert httpx.post(f"{simulator.url}/storage/v1/bucket", headers=headers, json=bucket).status_code == 200
    if refused == "nothing":
        simulator.inject(Fault(action=Hang(), method="POST", path_contains="/object/"))
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(40_000_000)  # More than the sockets' buffers take.
    key = simulator.anon_key if refused == "key" else simulator.service_key
    hasty = supabase_store(simulator, key=key, timeout=0.5)
    with pytest.raises(expected):
        hasty.overwrite(KEY, path, PutOptions())
    assert simulator.object_keys(BUCKET) == []
    hasty.close()


@pytest.mark.parametrize("place", [0, 300_000, len(DATA) - 1])
def test_the_simulator_corrupts_one_byte_of_an_upload_and_of_nothing_else(
    simulator: StorageSimulator, place: int
) -> None:
    headers = {"authorization": f"Bearer {simulator.legacy_service_key}"}
    with httpx.Client(base_url=f"{simulator.url}/storage/v1", headers=headers) as client:
        client.post("/bucket", json={"name": BUCKET})
        simulator.inject(Fault(action=CorruptRequest(place), times=1))
        client.get("/bucket")
        assert client.post(f"/object/{BUCKET}/a", content=DATA).status_code == 200
    stored = simulator.object_bytes(BUCKET, "a")
    assert [index for index, pair in enumerate(zip(stored, DATA, strict=True)) if pair[0] != pair[1]] == [place]
