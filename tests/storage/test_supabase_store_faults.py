"""Failures of the network and of the server: each outcome is correct, or the error names it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from supabase_bridge.storage.base import PutOptions
from supabase_bridge.storage.errors import (
    AccessDeniedError,
    CorruptObjectError,
    ObjectExistsError,
    ObjectTooLargeError,
    StoreUnavailableError,
    UnexpectedResponseError,
)
from supabase_bridge.storage.supabase.store import SupabaseStore
from tests.support.simulators.faults import (
    Action,
    CorruptResponse,
    CutAfterHandling,
    CutBeforeHandling,
    CutRequestAfter,
    Fault,
    Hang,
    Respond,
)
from tests.support.simulators.hostile import answer, hostile
from tests.support.simulators.storage import StorageSimulator
from tests.support.stores import BUCKET, info_answer, ready, supabase_store

PLAIN = PutOptions()
LIMIT = 10_000_000
BIG = bytes(range(251)) * 4001
KEY = "m/latest/history/00000001.json"
HTML = Respond(502, b"<html><h1>502 Bad Gateway</h1></html>", {"content-type": "text/html"})
BUSY = Respond(503, b'{"statusCode":"503","error":"SlowDown","message":"slow down","code":"SlowDown"}')


@pytest.fixture
def store(simulator: StorageSimulator) -> Iterator[SupabaseStore]:
    with ready(supabase_store(simulator), simulator) as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.onnx"
    path.write_bytes(BIG)
    return path


def stored(simulator: StorageSimulator) -> list[str]:
    return simulator.object_keys(BUCKET)


def operations(store: SupabaseStore, file: Path) -> dict[str, Callable[[], object]]:
    return {
        "create": lambda: store.create("m/new", b"1", PLAIN),
        "overwrite": lambda: store.overwrite("m/a", b"1", PLAIN),
        "overwrite from a file": lambda: store.overwrite("m/a", file, PLAIN),
        "read": lambda: store.read("m/a", limit_bytes=LIMIT),
        "stream": lambda: list(store.stream("m/a")),
        "stat": lambda: store.stat("m/a"),
        "list": lambda: list(store.list("m/")),
        "delete": lambda: store.delete(["m/a"]),
        "ensure_bucket": store.ensure_bucket,
    }


OPERATIONS = (
    "create",
    "overwrite",
    "overwrite from a file",
    "read",
    "stream",
    "stat",
    "list",
    "delete",
    "ensure_bucket",
)


# --- the move whose answer is lost ------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [CutAfterHandling(), CutBeforeHandling(), BUSY, HTML])
@pytest.mark.parametrize("times", [1, 3])
def test_create_succeeds_once_although_answers_to_its_move_are_lost(
    simulator: StorageSimulator, store: SupabaseStore, action: Action, times: int
) -> None:
    simulator.inject(Fault(action=action, path_contains="object/move", times=times))
    store.create(KEY, b"ours", PLAIN)
    assert simulator.object_bytes(BUCKET, KEY) == b"ours"
    assert stored(simulator) == [KEY]


def test_create_makes_no_second_move_once_it_sees_that_the_first_was_made(
    simulator: StorageSimulator, store: SupabaseStore
) -> None:
    simulator.inject(Fault(action=CutAfterHandling(), path_contains="object/move"))
    store.create(KEY, b"ours", PLAIN)
    assert simulator.count("POST", "object/move") == 1


@pytest.mark.parametrize("action", [CutAfterHandling(), CutBeforeHandling(), BUSY])
def test_create_whose_move_is_lost_does_not_take_another_object_for_its_own(
    simulator: StorageSimulator, store: SupabaseStore, action: Action
) -> None:
    simulator.put_object(BUCKET, KEY, b"ours", {"upload": "somebody else's"})
    simulator.inject(Fault(action=action, path_contains="object/move"))
    with pytest.raises(ObjectExistsError):
        store.create(KEY, b"ours", PLAIN)
    assert stored(simulator) == [KEY]


def test_create_that_can_never_move_leaves_nothing_under_its_key(
    simulator: StorageSimulator, store: SupabaseStore
) -> None:
    simulator.inject(Fault(action=BUSY, path_contains="object/move"))
    with pytest.raises(StoreUnavailableError):
        store.create(KEY, b"ours", PLAIN)
    assert simulator.object_keys(BUCKET, "m/") == []
    assert simulator.count("POST", "object/move") == 4


def test_create_that_cannot_look_whether_it_moved_says_that_nothing_is_known(
    simulator: StorageSimulator, store: SupabaseStore
) -> None:
    simulator.inject(Fault(action=CutAfterHandling(), path_contains="object/move"))
    simulator.inject(Fault(action=BUSY, path_contains=f"object/info/{BUCKET}/m/"))
    with pytest.raises(StoreUnavailableError):
        store.create(KEY, b"ours", PLAIN)
    simulator.clear_faults()
    with pytest.raises(ObjectExistsError):
        store.create(KEY, b"ours", PLAIN)
    assert simulator.object_bytes(BUCKET, KEY) == b"ours"


def test_create_says_so_when_its_temporary_object_is_swept_away(
    simulator: StorageSimulator, store: SupabaseStore
) -> None:
    missing = b'{"statusCode":"404","error":"not_found","message":"Object not found","code":"NoSuchKey"}'
    simulator.inject(Fault(action=Respond(400, missing), path_contains="object/info/models/_tmp/"))
    with pytest.raises(StoreUnavailableError, match="another client deleted"):
        store.create(KEY, b"ours", PLAIN)


# --- refused uploads --------------------------------------------------------------------------------------------------


def test_the_simulator_wedges_a_connection_whose_large_upload_it_refused(simulator: StorageSimulator) -> None:
    simulator.put_object(BUCKET, "m/a", b"1")
    headers = {"authorization": f"Bearer {simulator.legacy_service_key}"}
    with httpx.Client(base_url=f"{simulator.url}/storage/v1", headers=headers, timeout=30) as client:
        assert client.post("/object/models/m/a", content=BIG).status_code == 400
        with pytest.raises(httpx.ReadTimeout):
            client.get("/object/info/models/m/a", timeout=0.3)


@pytest.mark.usefixtures("store")
def test_the_store_answers_at_once_after_a_refused_large_upload(simulator: StorageSimulator, file: Path) -> None:
    anonymous = supabase_store(simulator, key=simulator.anon_key, timeout=30)
    started = time.monotonic()
    refused: tuple[Callable[[], object], ...] = (
        lambda: anonymous.create("m/a", BIG, PLAIN),
        lambda: anonymous.overwrite("m/a", BIG, PLAIN),
        lambda: anonymous.overwrite("m/a", file, PLAIN),
    )
    for put in refused:
        with pytest.raises(AccessDeniedError):
            put()
        anonymous.delete(["m/a"])
    assert time.monotonic() - started < 25
    anonymous.close()


@pytest.mark.usefixtures("store")
def test_an_object_above_the_buckets_limit_is_too_large(simulator: StorageSimulator, file: Path) -> None:
    headers = {"authorization": f"Bearer {simulator.legacy_service_key}"}
    bucket = {"id": "small", "name": "small", "public": False, "file_size_limit": 1000}
    assert httpx.post(f"{simulator.url}/storage/v1/bucket", headers=headers, json=bucket).status_code == 200
    small = supabase_store(simulator, bucket="small")
    with pytest.raises(ObjectTooLargeError) as caught:
        small.create("m/a", b"x" * 1001, PLAIN)
    assert caught.value.limit_bytes is None
    with pytest.raises(ObjectTooLargeError) as caught:
        small.overwrite("m/a", file, PLAIN)
    assert caught.value.limit_bytes is None
    assert simulator.object_keys("small") == []
    small.close()


# --- what arrives is what was sent ------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [info_answer(size=3), info_answer(), info_answer(etag="0" * 32 + "-2")])
def test_a_damaged_upload_is_never_moved_into_place(
    simulator: StorageSimulator, store: SupabaseStore, answer: Action
) -> None:
    simulator.inject(Fault(action=answer, path_contains="object/info/models/_tmp/"))
    simulator.inject(Fault(action=CorruptResponse(0), path_contains="object/models/_tmp/"))
    with pytest.raises(CorruptObjectError):
        store.create(KEY, b"ours", PLAIN)
    assert simulator.count("POST", "object/move") == 0
    assert stored(simulator) == []


def test_a_damaged_overwrite_is_reported(simulator: StorageSimulator, store: SupabaseStore) -> None:
    simulator.inject(Fault(action=info_answer(size=3), path_contains="object/info/"))
    with pytest.raises(CorruptObjectError):
        store.overwrite(KEY, b"ours", PLAIN)


def test_an_etag_that_is_no_md5_makes_the_bytes_be_read_back(simulator: StorageSimulator, store: SupabaseStore) -> None:
    simulator.inject(Fault(action=info_answer(etag="0" * 32 + "-2"), path_contains="object/info/models/_tmp/"))
    store.create(KEY, b"ours", PLAIN)
    assert simulator.object_bytes(BUCKET, KEY) == b"ours"
    assert simulator.count("GET", "object/models/_tmp/") == 1


def test_an_md5_that_fits_is_enough(simulator: StorageSimulator, store: SupabaseStore, file: Path) -> None:
    store.overwrite(KEY, file, PLAIN)
    assert simulator.count("GET", "object/models/") == 0


def test_overwrite_does_not_judge_what_somebody_else_wrote_after_it(
    simulator: StorageSimulator, store: SupabaseStore
) -> None:
    other = {"size": 9, "etag": "x", "last_modified": "2026-11-22T16:55:19Z", "metadata": {"upload": "somebody else's"}}
    simulator.inject(Fault(action=Respond(200, json.dumps(other).encode()), path_contains="object/info/"))
    store.overwrite(KEY, b"ours", PLAIN)


@pytest.mark.parametrize("action", [CutRequestAfter(300_000), CutAfterHandling(), BUSY])
def test_a_broken_upload_is_sent_again_and_counted_once(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, action: Action
) -> None:
    simulator.inject(Fault(action=action, method="POST", path_contains="object/models/", times=3))
    moved: list[int] = []
    store.overwrite(KEY, file, PutOptions(sha256=hashlib.sha256(BIG).hexdigest()), moved.append)
    assert simulator.object_bytes(BUCKET, KEY) == BIG
    assert sum(moved) == len(BIG)
    assert min(moved) > 0


# --- trying again, and when not ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("action", [HTML, BUSY, CutBeforeHandling(), CutAfterHandling(), Respond(544), Respond(429)])
def test_what_fails_three_times_succeeds_the_fourth(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, operation: str, action: Action
) -> None:
    simulator.put_object(BUCKET, "m/a", b"content")
    simulator.inject(Fault(action=action, times=3))
    operations(store, file)[operation]()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_fails_always_is_named_after_four_tries(
    simulator: StorageSimulator, store: SupabaseStore, file: Path, operation: str
) -> None:
    simulator.put_object(BUCKET, "m/a", b"content")
    simulator.inject(Fault(action=HTML))
    with pytest.raises(StoreUnavailableError, match="HTTP 502"):
        operations(store, file)[operation]()
    assert simulator.count() == 4


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_endless_hang_ends_within_the_timeout(simulator: StorageSimulator, file: Path, operation: str) -> None:
    simulator.put_object(BUCKET, "m/a", b"content")
    simulator.inject(Fault(action=Hang()))
    store = supabase_store(simulator, timeout=0.5)
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="no answer in time"):
        operations(store, file)[operation]()
    assert time.monotonic() - started < 20
    assert simulator.count() == 1
    store.close()


@pytest.mark.usefixtures("store")
def test_a_move_that_hangs_ends_in_a_named_error(simulator: StorageSimulator) -> None:
    hasty = supabase_store(simulator, timeout=0.3)
    simulator.inject(Fault(action=Hang(), path_contains="object/move"))
    with pytest.raises(StoreUnavailableError):
        hasty.create(KEY, b"ours", PLAIN)
    assert simulator.object_keys(BUCKET, "m/") == []
    hasty.close()


def test_a_server_that_is_away_is_unavailable(simulator: StorageSimulator, store: SupabaseStore, file: Path) -> None:
    simulator.stop()
    for call in operations(store, file).values():
        with pytest.raises(StoreUnavailableError):
            call()


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(("asked", "slept"), [("1", 1.0), ("3600", 2.0)])
def test_the_server_says_how_long_to_wait_within_reason(simulator: StorageSimulator, asked: str, slept: float) -> None:
    simulator.put_object(BUCKET, "m/a", b"content")
    simulator.inject(Fault(action=Respond(429, b"", {"retry-after": asked}), times=1))
    pauses: list[float] = []
    patient = SupabaseStore(
        url=simulator.url,
        key=SecretStr(simulator.service_key),
        bucket=BUCKET,
        timeout=timedelta(seconds=5),
        pause=pauses.append,
    )
    assert patient.read("m/a", limit_bytes=LIMIT) == b"content"
    assert pauses == [slept]
    patient.close()


def refused_for_now(fields: str) -> StoreUnavailableError:
    """Return the error after only 503 responses with these header fields."""
    with hostile(lambda talk: talk.send(answer(b"", status="503 Service Unavailable", headers=fields))) as server:
        store = SupabaseStore(
            url=server.url, key=SecretStr("a"), bucket=BUCKET, timeout=timedelta(seconds=5), pause=lambda _seconds: None
        )
        with pytest.raises(StoreUnavailableError) as caught:
            store.stat("m/a")
        store.close()
    return caught.value


@pytest.mark.parametrize(
    ("headers", "asked"),
    [
        ({"retry-after": "120"}, timedelta(minutes=2)),
        (
            {"date": "Sun, 22 Nov 2026 16:55:19 GMT", "retry-after": "Sun, 22 Nov 2026 16:57:19 GMT"},
            timedelta(minutes=2),
        ),
        # The form of RFC 850, which recipients must accept too.
        (
            {"date": "Sun, 22 Nov 2026 16:55:19 GMT", "retry-after": "Sunday, 22-Nov-26 16:57:19 GMT"},
            timedelta(minutes=2),
        ),
        (
            {"date": "Sun, 22 Nov 2026 16:55:19 GMT", "retry-after": "Sun, 22 Nov 2026 16:50:19 GMT"},
            timedelta(0),
        ),
        ({"retry-after": "9" * 20}, None),
        ({"retry-after": "Sun, 99 Nov 2026 99:99:99 GMT"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_the_error_says_when_the_server_wants_to_be_asked_again(
    headers: dict[str, str], asked: timedelta | None
) -> None:
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    assert refused_for_now(fields).retry_after == asked


def test_a_date_without_the_servers_own_is_held_against_this_machines_clock() -> None:
    later = format_datetime(datetime.now(timezone.utc) + timedelta(hours=1), usegmt=True)
    fields = f"Retry-After: {later}\r\n"
    asked = refused_for_now(fields).retry_after
    assert asked is not None
    assert timedelta(minutes=59) < asked <= timedelta(hours=1)


def test_pauses_grow_and_stay_within_three_seconds(simulator: StorageSimulator) -> None:
    simulator.inject(Fault(action=BUSY))
    pauses: list[float] = []
    store = SupabaseStore(
        url=simulator.url, key=SecretStr("a"), bucket=BUCKET, timeout=timedelta(seconds=5), pause=pauses.append
    )
    with pytest.raises(StoreUnavailableError):
        store.stat("m/a")
    assert len(pauses) == 3
    assert sum(pauses) <= 3
    assert all(0.125 * 3**tried <= pause <= 0.25 * 3**tried for tried, pause in enumerate(pauses))
    store.close()


def test_conflicts_are_not_tried_again(simulator: StorageSimulator, store: SupabaseStore) -> None:
    simulator.put_object(BUCKET, KEY, b"theirs")
    with pytest.raises(ObjectExistsError):
        store.create(KEY, b"ours", PLAIN)
    assert simulator.count("POST", "object/move") == 1


def test_a_redirect_is_not_followed(simulator: StorageSimulator, store: SupabaseStore) -> None:
    simulator.put_object(BUCKET, "m/b", b"elsewhere")
    elsewhere = f"{simulator.url}/storage/v1/object/models/m/b"
    simulator.inject(Fault(action=Respond(307, b"", {"location": elsewhere}), path_contains="m/a"))
    with pytest.raises(UnexpectedResponseError):
        store.read("m/a", limit_bytes=LIMIT)
    assert simulator.count() == 1


# --- answers in the middle of something -------------------------------------------------------------------------------


def test_a_compressed_body_is_refused_because_it_cannot_be_counted(
    simulator: StorageSimulator, store: SupabaseStore
) -> None:
    simulator.inject(Fault(action=Respond(200, b"\x1f\x8b", {"content-encoding": "gzip"}), path_contains="m/a"))
    with pytest.raises(UnexpectedResponseError):
        store.read("m/a", limit_bytes=LIMIT)


def test_an_answer_that_cannot_be_read_is_no_answer(simulator: StorageSimulator, store: SupabaseStore) -> None:
    for body in (
        b"",
        b"<html>",
        b"[]",
        b"null",
        b'{"size":"many"}',
        b'{"size":1,"last_modified":"2026-11-22T16:55:19"}',
    ):
        simulator.clear_faults()
        simulator.inject(Fault(action=Respond(200, body, {"content-type": "application/json"})))
        with pytest.raises(StoreUnavailableError):
            store.stat("m/a")
        with pytest.raises(StoreUnavailableError):
            list(store.list(""))
