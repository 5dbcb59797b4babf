"""Resumable uploads: bytes that the server has are not sent again, and the object is what was sent."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from supabase_bridge.core.errors import BridgeError, SettingsError
from supabase_bridge.settings.model import FILE_NAME, Settings
from supabase_bridge.storage.base import IMMUTABLE, PutOptions
from supabase_bridge.storage.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    CorruptObjectError,
    ObjectTooLargeError,
    StoreUnavailableError,
    UnexpectedResponseError,
)
from supabase_bridge.storage.factory import open_store
from supabase_bridge.storage.hashing import md5_of
from supabase_bridge.storage.supabase.resumable import CHUNK_BYTES, resumable_url
from supabase_bridge.storage.supabase.store import SupabaseStore
from tests.storage.large_files import DATA, KEY, OPTIONS, SHA256, THRESHOLD, TUS, patches, resumable_store
from tests.support.simulators.faults import (
    Action,
    CorruptRequest,
    CutAfterHandling,
    CutBeforeHandling,
    CutRequestAfter,
    Fault,
    Hang,
    Respond,
)
from tests.support.simulators.storage import StorageSimulator
from tests.support.stores import BUCKET, info_answer

HTML = Respond(502, b"<html><h1>502 Bad Gateway</h1></html>", {"content-type": "text/html"})
BUSY = Respond(503, b"busy\n", {"content-type": "text/plain"})


# --- which way --------------------------------------------------------------------------------------------------------


def test_a_file_above_the_threshold_goes_in_chunks_with_its_hash_and_media_type(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, uploads: Path
) -> None:
    moved: list[int] = []
    store.overwrite(KEY, file, PutOptions(content_type="application/x-onnx", sha256=SHA256), moved.append)
    assert simulator.object_bytes(BUCKET, KEY) == DATA
    assert store.stat(KEY).sha256 == SHA256
    assert (patches(simulator), sum(moved), min(moved) > 0) == (3, len(DATA), True)
    assert simulator.object_keys(BUCKET) == [KEY]
    assert list(uploads.iterdir()) == []


def test_every_chunk_but_the_last_has_the_six_mebibytes_that_a_hosted_project_wants(
    simulator: StorageSimulator, store: SupabaseStore, file: Path
) -> None:
    chunk_bytes = 6 * 1024 * 1024
    store.overwrite(KEY, file, OPTIONS)
    sent = [call.received_bytes for call in simulator.calls() if call.method == "PATCH"]
    assert sent == [chunk_bytes, chunk_bytes, len(DATA) - 2 * chunk_bytes]


def test_a_file_at_the_threshold_goes_in_one_request(
    simulator: StorageSimulator, store: SupabaseStore, tmp_path: Path
) -> None:
    path = tmp_path / "small"
    path.write_bytes(DATA[:THRESHOLD])
    store.overwrite(KEY, path, PutOptions(cache_control=IMMUTABLE))
    assert (simulator.count(path_contains=TUS), simulator.count("POST", f"/object/models/{KEY}")) == (0, 1)
    path.write_bytes(DATA[: THRESHOLD + 1])
    store.overwrite(KEY, path, PutOptions())
    assert patches(simulator) == 1
    assert simulator.object_bytes(BUCKET, KEY) == DATA[: THRESHOLD + 1]


def test_the_threshold_and_the_directory_come_from_the_settings(
    simulator: StorageSimulator, tmp_path: Path, file: Path
) -> None:
    (tmp_path / FILE_NAME).write_text("resumable_threshold_bytes = 12_000_000\n")
    environ = {"SUPABASE_URL": simulator.url, "SUPABASE_SECRET_KEY": simulator.service_key}
    opened = open_store(Settings.load(home=tmp_path, environ=environ), "models")
    opened.ensure_bucket()
    simulator.inject(Fault(action=Respond(403), method="PATCH"))
    with pytest.raises(AccessDeniedError):
        opened.overwrite(KEY, file, OPTIONS)
    assert (tmp_path / "uploads").is_dir()
    opened.close()
    for wrong in ("-1", "true", '"50 MB"', "1.5"):
        (tmp_path / FILE_NAME).write_text(f"resumable_threshold_bytes = {wrong}\n")
        with pytest.raises(SettingsError, match="number of bytes"):
            Settings.load(home=tmp_path, environ={})


@pytest.mark.parametrize(
    ("project", "expected"),
    [
        ("https://abcdefghijklmnopqrst.supabase.co", "https://abcdefghijklmnopqrst.storage.supabase.co"),
        ("https://ABC.Supabase.co", "https://ABC.storage.supabase.co"),
        ("http://127.0.0.1:54321", "http://127.0.0.1:54321"),
        ("http://abc.supabase.co", "http://abc.supabase.co"),
        ("https://supabase.example.com", "https://supabase.example.com"),
        ("https://abc.supabase.co.example.com", "https://abc.supabase.co.example.com"),
        ("https://abc.storage.supabase.co", "https://abc.storage.supabase.co"),
    ],
)
def test_a_hosted_project_takes_large_files_at_its_storage_host(project: str, expected: str) -> None:
    assert resumable_url(f"{project}/storage/v1/upload/resumable") == f"{expected}/storage/v1/upload/resumable"


# --- broken connections -----------------------------------------------------------------------------------------------


@settings(
    max_examples=min(25, settings().max_examples),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    cuts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, CHUNK_BYTES)), min_size=1, max_size=8),
    answered=st.booleans(),
)
def test_wherever_the_connection_is_cut_the_object_is_whole_or_the_failure_named(
    simulator: StorageSimulator, file: Path, cuts: list[tuple[int, int]], answered: bool
) -> None:
    for skip, offset in cuts:
        simulator.inject(Fault(action=CutRequestAfter(offset), method="PATCH", skip=skip, times=1))
    if not answered:
        simulator.inject(Fault(action=CutAfterHandling(), path_contains=TUS, times=1))
    with TemporaryDirectory() as directory:
        store = resumable_store(simulator, Path(directory))
        store.ensure_bucket()
        moved: list[int] = []
        try:
            store.overwrite(KEY, file, OPTIONS, moved.append)
        except StoreUnavailableError:
            simulator.clear_faults()
            store.overwrite(KEY, file, OPTIONS)
        else:
            assert sum(moved) == len(DATA)
        assert simulator.object_bytes(BUCKET, KEY) == DATA
        assert simulator.object_keys(BUCKET) == [KEY]
        simulator.clear_faults()
        store.delete([KEY])
        store.close()


def test_only_what_did_not_arrive_is_sent_again(simulator: StorageSimulator, store: SupabaseStore, file: Path) -> None:
    simulator.inject(Fault(action=CutRequestAfter(5_000_000), method="PATCH", skip=1, times=1))
    store.overwrite(KEY, file, OPTIONS)
    assert [call.method for call in simulator.calls() if TUS in call.path] == [
        *("POST", "PATCH", "PATCH", "HEAD", "PATCH")
    ]


def test_a_connection_that_breaks_again_and_again_does_no_harm_while_bytes_arrive(
    simulator: StorageSimulator, store: SupabaseStore, file: Path
) -> None:
    simulator.inject(Fault(action=CutRequestAfter(1_000_000), method="PATCH", times=12))
    store.overwrite(KEY, file, OPTIONS)
    assert simulator.object_bytes(BUCKET, KEY) == DATA


@pytest.mark.parametrize("verb", ["POST", "PATCH", "HEAD"])
@pytest.mark.parametrize(
    "action", [HTML, BUSY, CutBeforeHandling(), CutAfterHandling(), Respond(500), Respond(429), Respond(423)]
)
def test_what_fails_three_times_on_a_verb_succeeds_the_fourth(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, verb: str, action: Action
) -> None:
    if verb == "HEAD":
        simulator.inject(Fault(action=CutRequestAfter(7), method="PATCH", times=1))
    simulator.inject(Fault(action=action, method=verb, path_contains=TUS, times=2 if verb == "HEAD" else 3))
    store.overwrite(KEY, file, OPTIONS)
    assert simulator.object_bytes(BUCKET, KEY) == DATA


@pytest.mark.parametrize("verb", ["POST", "PATCH", "HEAD"])
@pytest.mark.parametrize("action", [HTML, BUSY, Respond(429), Respond(200, b"<html>"), CutBeforeHandling()])
def test_what_fails_always_on_a_verb_is_named_and_goes_on_later(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, verb: str, action: Action
) -> None:
    if verb == "HEAD":
        simulator.inject(Fault(action=CutRequestAfter(7), method="PATCH", times=1))
    simulator.inject(Fault(action=action, method=verb, path_contains=TUS))
    with pytest.raises(StoreUnavailableError):
        store.overwrite(KEY, file, OPTIONS)
    assert simulator.object_keys(BUCKET) == []
    simulator.clear_faults()
    simulator.reset_calls()
    store.overwrite(KEY, file, OPTIONS)
    assert simulator.object_bytes(BUCKET, KEY) == DATA
    assert simulator.count("POST", TUS) == (verb == "POST")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("verb", ["POST", "PATCH", "HEAD"])
def test_a_verb_that_hangs_ends_in_a_named_error(
    simulator: StorageSimulator, uploads: Path, file: Path, verb: str
) -> None:
    hasty = resumable_store(simulator, uploads, timeout=0.3)
    if verb == "HEAD":
        simulator.inject(Fault(action=CutRequestAfter(7), method="PATCH", times=1))
    simulator.inject(Fault(action=Hang(), method=verb, path_contains=TUS))
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="no answer in time"):
        hasty.overwrite(KEY, file, OPTIONS)
    assert time.monotonic() - started < 20
    hasty.close()


def test_the_server_says_how_long_to_wait_within_reason(simulator: StorageSimulator, file: Path) -> None:
    pauses: list[float] = []
    patient = SupabaseStore(
        url=simulator.url,
        key=SecretStr(simulator.service_key),
        bucket=BUCKET,
        timeout=timedelta(seconds=5),
        resumable_threshold_bytes=THRESHOLD,
        pause=pauses.append,
    )
    patient.ensure_bucket()
    simulator.inject(Fault(action=Respond(429, b"", {"retry-after": "1"}), method="PATCH", times=1))
    patient.overwrite(KEY, file, OPTIONS)
    assert pauses == [1.0]
    patient.close()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["POST", "PATCH"])
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (403, AccessDeniedError),
        (401, AccessDeniedError),
        (413, ObjectTooLargeError),
        (412, UnexpectedResponseError),
        (307, UnexpectedResponseError),
    ],
)
def test_a_refusal_has_its_name_and_is_not_tried_again(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, verb: str, status: int, expected: type[BridgeError]
) -> None:
    answer = Respond(status, b"the server's own words\n", {"content-type": "text/plain;charset=UTF-8"})
    simulator.inject(Fault(action=answer, method=verb, path_contains=TUS))
    with pytest.raises(expected) as caught:
        store.overwrite(KEY, file, OPTIONS)
    assert simulator.count(verb, TUS) == 1
    assert simulator.object_keys(BUCKET) == []
    if expected is not ObjectTooLargeError:
        assert "the server's own words" in str(caught.value)


def test_a_conflict_of_offsets_that_never_ends_is_no_object_that_exists(
    simulator: StorageSimulator, store: SupabaseStore, file: Path
) -> None:
    simulator.inject(Fault(action=Respond(409, b"Upload-Offset conflict\n"), method="PATCH"))
    with pytest.raises(StoreUnavailableError, match="lost track"):
        store.overwrite(KEY, file, OPTIONS)
    assert (patches(simulator), simulator.count("HEAD", TUS)) == (4, 3)


def test_an_upload_that_expires_again_and_again_ends_in_a_named_error(
    simulator: StorageSimulator, store: SupabaseStore, file: Path
) -> None:
    simulator.inject(Fault(action=Respond(410), method="PATCH", skip=1))
    simulator.inject(Fault(action=Respond(410), method="HEAD", path_contains=TUS))
    with pytest.raises(StoreUnavailableError, match="lost track"):
        store.overwrite(KEY, file, OPTIONS)
    assert patches(simulator) <= 6


def test_the_buckets_limit_missing_bucket_and_wrong_key_are_told_before_a_byte_is_sent(
    simulator: StorageSimulator, store: SupabaseStore, file: Path
) -> None:
    anonymous = resumable_store(simulator, key=simulator.anon_key)
    with pytest.raises(AccessDeniedError):
        anonymous.overwrite(KEY, file, OPTIONS)
    anonymous.close()
    stranger = resumable_store(simulator, key="s3cret-key")
    with pytest.raises(AccessDeniedError) as caught:
        stranger.overwrite(KEY, file, OPTIONS)
    assert "s3cret-key" not in str(caught.value)
    stranger.close()
    assert patches(simulator) == 0
    missing = Respond(404, b"Bucket not found", {"content-type": "text/plain"})
    simulator.inject(Fault(action=missing, method="POST", path_contains=TUS))
    with pytest.raises(BucketNotFoundError):
        store.overwrite(KEY, file, OPTIONS)
    simulator.clear_faults()
    headers = {"authorization": f"Bearer {simulator.legacy_service_key}"}
    limit = {"public": False, "file_size_limit": 5_000_000}
    assert httpx.put(f"{simulator.url}/storage/v1/bucket/{BUCKET}", headers=headers, json=limit).status_code == 200
    with pytest.raises(ObjectTooLargeError):
        store.overwrite(KEY, file, OPTIONS)
    assert patches(simulator) == 0


@pytest.mark.parametrize("offset", [0, 3_000_000, CHUNK_BYTES - 1])
def test_a_byte_that_changes_on_the_way_is_found_by_the_comparison(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, offset: int
) -> None:
    simulator.inject(Fault(action=CorruptRequest(offset), method="PATCH", skip=1, times=1))
    with pytest.raises(CorruptObjectError):
        store.overwrite(KEY, file, OPTIONS)
    store.overwrite(KEY, file, OPTIONS)
    assert simulator.object_bytes(BUCKET, KEY) == DATA


MULTIPART = Fault(
    action=info_answer(size=len(DATA), etag=f"{md5_of(DATA).hexdigest()}-3"),
    path_contains=f"object/info/{BUCKET}/{KEY}",
)
"""What the server says of an object that it put together of parts: its ETag proves nothing."""


def test_an_upload_whose_etag_is_no_md5_is_read_back(
    simulator: StorageSimulator, store: SupabaseStore, file: Path
) -> None:
    simulator.inject(MULTIPART)
    store.overwrite(KEY, file, OPTIONS)
    assert simulator.object_bytes(BUCKET, KEY) == DATA
    assert simulator.object_keys(BUCKET) == [KEY]
    assert simulator.count("GET", f"object/{BUCKET}/{KEY}") == 1


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_a_damaged_upload_whose_etag_is_no_md5_is_found_by_the_comparison(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, chunk: int
) -> None:
    simulator.inject(MULTIPART)
    simulator.inject(Fault(action=CorruptRequest(100_000), method="PATCH", skip=chunk, times=1))
    with pytest.raises(CorruptObjectError):
        store.overwrite(KEY, file, OPTIONS)


def test_a_file_with_another_hash_than_it_should_have_is_reported(store: SupabaseStore, file: Path) -> None:
    with pytest.raises(CorruptObjectError):
        store.overwrite(KEY, file, PutOptions(sha256="0" * 64))
