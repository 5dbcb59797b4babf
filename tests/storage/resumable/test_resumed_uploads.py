"""Uploads that outlive their process: the next process sends only the rest, and never mixes two uploads."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from supabase_bridge.storage.base import PutOptions
from supabase_bridge.storage.errors import (
    AccessDeniedError,
    CorruptObjectError,
    StoreUnavailableError,
    UnexpectedResponseError,
)
from supabase_bridge.storage.supabase.store import SupabaseStore
from tests.storage.large_files import DATA, KEY, OPTIONS, SHA256, THRESHOLD, TUS, patches, resumable_store
from tests.support.simulators.faults import CutAfterHandling, CutBeforeHandling, CutRequestAfter, Fault, Hang, Respond
from tests.support.simulators.storage import StorageSimulator
from tests.support.stores import BUCKET

UPLOADER = f"""
import resource, sys
from datetime import timedelta
from pathlib import Path
from pydantic import SecretStr
from supabase_bridge.storage.base import PutOptions
from supabase_bridge.storage.supabase.store import SupabaseStore

url, key, file, uploads, largest_file = sys.argv[1:]
store = SupabaseStore(
    url=url, key=SecretStr(key), bucket={BUCKET!r}, timeout=timedelta(seconds=60),
    resumable_threshold_bytes={THRESHOLD}, uploads=Path(uploads),
)
if largest_file != "any":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest_file), int(largest_file)))
store.overwrite({KEY!r}, Path(file), PutOptions(sha256={SHA256!r}))
"""


@pytest.fixture
def interrupted(simulator: StorageSimulator, store: SupabaseStore, file: Path, uploads: Path) -> Path:
    """Interrupt an upload after its first chunk; return its state file."""
    simulator.inject(Fault(action=CutBeforeHandling(), method="PATCH", skip=1))
    with pytest.raises(StoreUnavailableError):
        store.overwrite(KEY, file, OPTIONS)
    simulator.clear_faults()
    simulator.reset_calls()
    (remembered,) = uploads.iterdir()
    return remembered


def upload(
    simulator: StorageSimulator, file: Path, uploads: Path, largest_file: str = "any"
) -> subprocess.Popen[bytes]:
    arguments = [simulator.url, simulator.service_key, str(file), str(uploads), largest_file]
    return subprocess.Popen([sys.executable, "-c", UPLOADER, *arguments], stderr=subprocess.PIPE)


def killed_when(happened: Callable[[], bool], simulator: StorageSimulator, file: Path, uploads: Path) -> None:
    """Upload in another process until a condition holds, then kill that process."""
    with upload(simulator, file, uploads) as process:
        started = time.monotonic()
        while not happened():
            assert process.poll() is None
            assert time.monotonic() - started < 60
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=10) == -signal.SIGKILL
    simulator.clear_faults()
    simulator.reset_calls()


# --- killed processes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrived", [1, 2])
def test_after_a_kill_the_next_process_sends_only_the_chunks_that_did_not_arrive(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, uploads: Path, arrived: int
) -> None:
    simulator.inject(Fault(action=Hang(), method="PATCH", skip=arrived))
    killed_when(lambda: patches(simulator) == arrived + 1, simulator, file, uploads)
    moved: list[int] = []
    store.overwrite(KEY, file, OPTIONS, moved.append)
    assert (simulator.count("POST", TUS), patches(simulator)) == (0, 3 - arrived)
    assert simulator.object_bytes(BUCKET, KEY) == DATA
    assert simulator.object_keys(BUCKET) == [KEY]
    assert sum(moved) == len(DATA)
    assert list(uploads.iterdir()) == []


def test_after_two_kills_the_third_process_finishes(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, uploads: Path
) -> None:
    for _ in range(2):
        simulator.inject(Fault(action=Hang(), method="PATCH", skip=1))
        killed_when(lambda: patches(simulator) == 2, simulator, file, uploads)
    store.overwrite(KEY, file, OPTIONS)
    assert (simulator.count("POST", TUS), patches(simulator)) == (0, 1)
    assert simulator.object_bytes(BUCKET, KEY) == DATA


def test_after_a_kill_behind_the_last_chunk_nothing_is_sent_again(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, uploads: Path
) -> None:
    simulator.inject(Fault(action=CutAfterHandling(), method="PATCH", skip=2))
    simulator.inject(Fault(action=Hang(), method="HEAD"))
    killed_when(lambda: simulator.count("HEAD", TUS) == 1, simulator, file, uploads)
    store.overwrite(KEY, file, OPTIONS)
    assert (simulator.count("POST", TUS), patches(simulator)) == (0, 0)
    assert simulator.object_bytes(BUCKET, KEY) == DATA
    assert simulator.object_keys(BUCKET) == [KEY]


def test_on_a_full_disk_an_upload_goes_through_without_being_remembered(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, uploads: Path
) -> None:
    store.ensure_bucket()
    with upload(simulator, file, uploads, largest_file="0") as process:
        assert process.wait(timeout=60) == 0
    assert simulator.object_bytes(BUCKET, KEY) == DATA
    assert list(uploads.iterdir()) == []


def test_where_the_directory_cannot_be_made_an_upload_goes_through(
    simulator: StorageSimulator, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "home").write_text("a file")
    opened = resumable_store(simulator, tmp_path / "home" / "uploads")
    opened.ensure_bucket()
    opened.overwrite(KEY, file, OPTIONS)
    assert simulator.object_bytes(BUCKET, KEY) == DATA
    opened.close()


# --- what is remembered and does not hold any more --------------------------------------------------------------------


def test_an_expired_upload_starts_again(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, interrupted: Path
) -> None:
    simulator.expire_uploads()
    store.overwrite(KEY, file, OPTIONS)
    assert (simulator.count("POST", TUS), patches(simulator)) == (1, 3)
    assert simulator.object_bytes(BUCKET, KEY) == DATA
    assert not interrupted.exists()


def test_an_upload_that_expires_under_way_starts_again(
    simulator: StorageSimulator, store: SupabaseStore, file: Path
) -> None:
    simulator.inject(Fault(action=Respond(404), method="PATCH", skip=2, times=1))
    simulator.inject(Fault(action=Respond(404), method="HEAD", path_contains=TUS, times=1))
    store.overwrite(KEY, file, OPTIONS)
    assert (simulator.count("POST", TUS), patches(simulator)) == (2, 6)
    assert simulator.object_bytes(BUCKET, KEY) == DATA


@pytest.mark.usefixtures("interrupted")
def test_a_changed_file_starts_again(simulator: StorageSimulator, store: SupabaseStore, file: Path) -> None:
    file.write_bytes(DATA[::-1])
    store.overwrite(KEY, file, PutOptions(sha256=hashlib.sha256(DATA[::-1]).hexdigest()))
    assert (simulator.count("POST", TUS), patches(simulator)) == (1, 3)
    assert simulator.object_bytes(BUCKET, KEY) == DATA[::-1]


@pytest.mark.parametrize("place", [0, -1])
def test_a_file_that_changed_without_a_word_is_reported_and_not_resumed_again(
    store: SupabaseStore, file: Path, interrupted: Path, place: int
) -> None:
    changed = bytearray(DATA)
    changed[place] ^= 1
    file.write_bytes(changed)
    with pytest.raises(CorruptObjectError):
        store.overwrite(KEY, file, OPTIONS)
    assert not interrupted.exists()


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"url": 1, "token": "x"}', "{" * 100_000])
def test_a_damaged_memory_starts_again(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, interrupted: Path, damage: str
) -> None:
    interrupted.write_text(damage)
    store.overwrite(KEY, file, OPTIONS)
    assert simulator.count("POST", TUS) == 1
    assert simulator.object_bytes(BUCKET, KEY) == DATA


def created(simulator: StorageSimulator, key: str, size_bytes: int = len(DATA)) -> str:
    """Begin an upload of another client and return its URL."""
    pairs = {"bucketName": BUCKET, "objectName": key}
    metadata = ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in pairs.items())
    headers = {
        "authorization": f"Bearer {simulator.legacy_service_key}",
        "tus-resumable": "1.0.0",
        "upload-length": str(size_bytes),
        "upload-metadata": metadata,
    }
    answer = httpx.post(f"{simulator.url}/storage/v1/{TUS}", headers=headers)
    assert answer.status_code == 201
    return answer.headers["location"]


def test_a_memory_of_another_objects_upload_starts_again(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, interrupted: Path
) -> None:
    remembered = json.loads(interrupted.read_text())
    remembered["url"] = created(simulator, "m/other")
    interrupted.write_text(json.dumps(remembered))
    store.overwrite(KEY, file, OPTIONS)
    assert simulator.object_keys(BUCKET) == [KEY]
    assert simulator.object_bytes(BUCKET, KEY) == DATA


def test_a_memory_of_an_upload_of_another_size_starts_again(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, interrupted: Path
) -> None:
    remembered = json.loads(interrupted.read_text())
    remembered["url"] = created(simulator, f"_tmp/{remembered['token']}", len(DATA) + 1)
    interrupted.write_text(json.dumps(remembered))
    store.overwrite(KEY, file, OPTIONS)
    assert simulator.object_bytes(BUCKET, KEY) == DATA


def test_a_finished_upload_whose_object_was_swept_away_starts_again(
    simulator: StorageSimulator, store: SupabaseStore, file: Path
) -> None:
    simulator.inject(Fault(action=CutAfterHandling(), method="PATCH", skip=2))
    simulator.inject(Fault(action=CutBeforeHandling(), method="HEAD"))
    with pytest.raises(StoreUnavailableError):
        store.overwrite(KEY, file, OPTIONS)
    simulator.clear_faults()
    store.delete([KEY])
    store.overwrite(KEY, file, OPTIONS)
    assert simulator.object_bytes(BUCKET, KEY) == DATA


# --- where the key goes -----------------------------------------------------------------------------------------------


def test_the_key_is_never_sent_to_another_host_that_an_answer_names(
    simulator: StorageSimulator, store: SupabaseStore, file: Path
) -> None:
    with StorageSimulator() as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        for location in (
            f"{elsewhere}/storage/v1/{TUS}/bW9k",
            f"//{elsewhere.partition('//')[2]}/bW9k",
            "https://[::1]/x",
        ):
            simulator.clear_faults()
            simulator.inject(Fault(action=Respond(201, b"", {"location": location}), method="POST", path_contains=TUS))
            with pytest.raises(UnexpectedResponseError, match="another host"):
                store.overwrite(KEY, file, OPTIONS)
        assert other.count() == 0
    assert patches(simulator) == 0


def test_the_key_is_never_sent_to_another_host_that_a_file_names(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, interrupted: Path
) -> None:
    with StorageSimulator() as other:
        remembered = json.loads(interrupted.read_text())
        for url in (f"{other.url}/storage/v1/{TUS}/bW9k", f"{simulator.url}/storage/v1/{TUS}/../../bucket/models"):
            interrupted.write_text(json.dumps({**remembered, "url": url}))
            store.overwrite(KEY, file, OPTIONS)
            assert simulator.object_bytes(BUCKET, KEY) == DATA
            store.delete([KEY])
        assert other.count() == 0


def test_a_gateway_that_gets_scheme_port_and_path_of_its_url_wrong_does_no_harm(
    simulator: StorageSimulator, store: SupabaseStore, file: Path
) -> None:
    # Seen with self-hosted servers: https://github.com/supabase/supabase/issues/15703
    for wrong in ("https://127.0.0.1/upload/resumable/", "/upload/", ""):
        location = wrong + created(simulator, KEY).rpartition("/")[2]
        simulator.inject(Fault(action=Respond(201, b"", {"location": location}), method="POST", path_contains=TUS))
        store.overwrite(KEY, file, OPTIONS)
        simulator.clear_faults()
        assert simulator.object_bytes(BUCKET, KEY) == DATA
        store.delete([KEY])


@pytest.mark.parametrize("headers", [{}, {"location": "/"}, {"location": "/a b"}, {"location": "http://["}])
def test_an_answer_without_a_usable_url_is_named(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, headers: dict[str, str]
) -> None:
    simulator.inject(Fault(action=Respond(201, b"", headers), method="POST", path_contains=TUS))
    with pytest.raises((UnexpectedResponseError, StoreUnavailableError)):
        store.overwrite(KEY, file, OPTIONS)
    assert patches(simulator) == 0


def test_the_key_is_in_no_file_no_log_and_no_error(
    simulator: StorageSimulator,
    store: SupabaseStore,
    file: Path,
    interrupted: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    assert simulator.service_key not in interrupted.read_text()
    quoted = Respond(403, f"no {simulator.service_key}".encode(), {"content-type": "text/plain"})
    simulator.inject(Fault(action=quoted, method="PATCH"))
    with pytest.raises(AccessDeniedError) as caught:
        store.overwrite(KEY, file, OPTIONS)
    assert simulator.service_key not in str(caught.value)
    assert all(simulator.service_key not in str(vars(record)) for record in caplog.records)


# --- several at once --------------------------------------------------------------------------------------------------


def test_many_threads_that_write_one_large_object_leave_it_whole(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, uploads: Path
) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.overwrite(KEY, file, OPTIONS), range(8)))
    assert simulator.object_bytes(BUCKET, KEY) == DATA
    assert simulator.object_keys(BUCKET) == [KEY]
    assert list(uploads.iterdir()) == []


def test_sixteen_threads_upload_small_and_large_files_through_one_store(
    simulator: StorageSimulator, store: SupabaseStore, tmp_path: Path
) -> None:
    simulator.inject(Fault(action=CutRequestAfter(400_000), method="PATCH", probability=0.1))
    simulator.inject(Fault(action=CutBeforeHandling(), method="POST", probability=0.02))
    sizes = [20, 20_000, 300_000, 2_500_000]

    def create(number: int) -> None:
        data = bytes([number]) * sizes[number % 4]
        path = tmp_path / str(number)
        path.write_bytes(data)
        store.overwrite(f"m/{number:02d}", path, PutOptions(sha256=hashlib.sha256(data).hexdigest()))
        store.overwrite(f"n/{number:02d}", path if number % 2 else data, PutOptions())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(create, range(64)))
    simulator.clear_faults()
    for number in range(64):
        for folder in ("m", "n"):
            assert simulator.object_bytes(BUCKET, f"{folder}/{number:02d}") == bytes([number]) * sizes[number % 4]
    assert len(list(store.list(""))) == 128
