"""The storage simulator beyond the recordings: faults, races, real clients."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from storage3 import SyncStorageClient
from storage3.exceptions import StorageApiError

from tests.support.simulators.storage import (
    Action,
    Call,
    CorruptResponse,
    CutAfterHandling,
    CutBeforeHandling,
    CutRequestAfter,
    CutResponseAfter,
    Delay,
    Fault,
    Hang,
    Respond,
    StorageSimulator,
)
from tests.support.simulators.storage_services import ServerCosts

BIG = bytes(range(256)) * 1200  # 300 kB: more than a wedge needs, more than one read
TUS = {"tus-resumable": "1.0.0", "content-type": "application/offset+octet-stream"}


def http_client(simulator: StorageSimulator, timeout: float | httpx.Timeout = 30.0) -> httpx.Client:
    headers = {"authorization": f"Bearer {simulator.legacy_service_key}"}
    return httpx.Client(base_url=f"{simulator.url}/storage/v1", headers=headers, timeout=timeout)


@pytest.fixture
def simulator() -> Iterator[StorageSimulator]:
    with StorageSimulator() as running:
        running.put_object("models", "m/big.bin", BIG, {"sha256": "x"})
        yield running


@pytest.fixture
def client(simulator: StorageSimulator) -> Iterator[httpx.Client]:
    with http_client(simulator) as opened:
        yield opened


@pytest.fixture
def storage3(simulator: StorageSimulator) -> Iterator[SyncStorageClient]:
    headers = {"authorization": f"Bearer {simulator.service_key}", "apikey": simulator.service_key}
    with SyncStorageClient(f"{simulator.url}/storage/v1/", headers) as opened:
        yield opened


def resumable(client: httpx.Client, key: str, size: int, **headers: str) -> str:
    fields = {"bucketName": "models", "objectName": key, "metadata": '{"n":1}'}
    metadata = ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in fields.items())
    head = {"tus-resumable": "1.0.0", "upload-length": str(size), "upload-metadata": metadata, **headers}
    created = client.post("/upload/resumable", headers=head)
    assert created.status_code == 201, created.text
    return created.headers["location"]


def offset(client: httpx.Client, location: str) -> int:
    return int(client.head(location, headers=TUS).headers["upload-offset"])


def test_an_ordered_answer_comes_instead_of_the_work_and_leaves_the_connection_usable(
    simulator: StorageSimulator, client: httpx.Client
) -> None:
    simulator.inject(Fault(method="POST", action=Respond(503, b"busy", {"retry-after": "1"}), times=1))
    refused = client.post("/object/models/new.bin", content=BIG)
    assert (refused.status_code, refused.content, refused.headers["retry-after"]) == (503, b"busy", "1")
    assert client.post("/object/models/new.bin", content=BIG).status_code == 200


def test_a_fault_strikes_after_its_skips_so_often_as_it_says_and_only_what_it_names(
    simulator: StorageSimulator, client: httpx.Client
) -> None:
    simulator.inject(Fault(method="GET", path_contains="m/b", skip=1, times=2, action=Respond(500)))
    statuses = [client.get("/object/models/m%2Fbig.bin").status_code for _ in range(5)]
    assert statuses == [200, 500, 500, 200, 200]
    simulator.inject(Fault(path_contains="elsewhere", action=Respond(500)))
    assert client.get("/bucket").status_code == 200
    simulator.inject(Fault(action=Respond(500)))
    assert client.get("/bucket").status_code == 500
    simulator.clear_faults()
    assert client.get("/bucket").status_code == 200


def test_the_same_seed_makes_the_same_faults() -> None:
    def statuses(seed: int) -> list[int]:
        with StorageSimulator(seed=seed) as simulator, http_client(simulator) as client:
            simulator.inject(Fault(action=Respond(500), probability=0.5))
            return [client.get("/bucket").status_code for _ in range(30)]

    assert statuses(1) == statuses(1) != statuses(2)
    assert set(statuses(1)) == {200, 500}


def test_a_delayed_request_is_handled_in_the_end(simulator: StorageSimulator, client: httpx.Client) -> None:
    simulator.inject(Fault(action=Delay(0.05), times=1))
    answer = client.get("/bucket")
    assert answer.status_code == 200
    assert answer.elapsed >= timedelta(seconds=0.05)


@pytest.mark.parametrize(
    ("action", "is_stored"),
    [(CutBeforeHandling(), False), (CutAfterHandling(), True), (CutRequestAfter(100_000), False)],
)
def test_a_cut_upload_gets_no_answer_whether_it_was_stored_or_not(
    simulator: StorageSimulator, client: httpx.Client, action: Action, is_stored: bool
) -> None:
    simulator.inject(Fault(method="POST", action=action, times=1))
    with pytest.raises(httpx.TransportError):
        client.post("/object/models/new.bin", content=BIG)
    assert ("new.bin" in simulator.object_keys("models")) is is_stored
    assert simulator.calls() == [Call("POST", "/storage/v1/object/models/new.bin", 0)]


def test_a_request_cut_after_more_bytes_than_it_has_is_handled_but_not_answered(
    simulator: StorageSimulator, client: httpx.Client
) -> None:
    simulator.inject(Fault(method="POST", action=CutRequestAfter(len(BIG)), times=1))
    with pytest.raises(httpx.TransportError):
        client.post("/object/models/new.bin", content=BIG)
    assert simulator.object_bytes("models", "new.bin") == BIG


def test_a_cut_response_ends_after_exactly_the_bytes_ordered(simulator: StorageSimulator, client: httpx.Client) -> None:
    simulator.inject(Fault(method="GET", action=CutResponseAfter(70_000)))
    received: list[bytes] = []
    with client.stream("GET", "/object/models/m/big.bin") as answer, pytest.raises(httpx.RemoteProtocolError):
        received.extend(answer.iter_raw())
    assert b"".join(received) == BIG[:70_000]
    assert answer.headers["content-length"] == str(len(BIG))


@pytest.mark.parametrize("place", [0, 150_000, len(BIG) - 1])
def test_a_corrupt_response_differs_in_one_byte(simulator: StorageSimulator, client: httpx.Client, place: int) -> None:
    simulator.inject(Fault(action=CorruptResponse(place)))
    assert client.head("/object/models/m/big.bin").status_code == 200
    got = client.get("/object/models/m/big.bin").content
    assert [index for index, pair in enumerate(zip(got, BIG, strict=True)) if pair[0] != pair[1]] == [place]


def test_a_hanging_request_hangs_until_the_simulator_stops(simulator: StorageSimulator) -> None:
    simulator.inject(Fault(method="GET", action=Hang()))
    timeout = httpx.Timeout(30, read=0.1)
    with http_client(simulator, timeout=timeout) as impatient, pytest.raises(httpx.ReadTimeout):
        impatient.get("/bucket")
    with ThreadPoolExecutor() as pool, http_client(simulator) as patient:
        asked = pool.submit(patient.get, "/bucket")
        while len(simulator.calls()) < 2:
            assert not asked.done()
        simulator.stop()
        assert isinstance(asked.exception(), httpx.TransportError)


@pytest.mark.parametrize(
    ("wedging", "size", "hangs"), [(True, len(BIG), True), (True, 50_000, False), (False, len(BIG), False)]
)
def test_a_refused_big_upload_wedges_its_connection_and_no_other(wedging: bool, size: int, hangs: bool) -> None:
    with StorageSimulator(wedge_refused_uploads=wedging) as simulator, http_client(simulator) as client:
        simulator.put_object("models", "taken", b"")
        refused = client.post("/object/models/taken", content=b"x" * size)
        assert refused.json()["code"] == "KeyAlreadyExists"
        if hangs:
            with pytest.raises(httpx.ReadTimeout):
                client.get("/bucket", timeout=0.3)
        assert client.get("/bucket").status_code == 200


# Races


def at_once(work: Callable[[int], httpx.Response]) -> list[httpx.Response]:
    barrier = threading.Barrier(8)

    def run(index: int) -> httpx.Response:
        barrier.wait()
        return work(index)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(run, range(8)))


def test_of_eight_concurrent_movers_onto_one_key_exactly_one_wins(
    simulator: StorageSimulator, client: httpx.Client
) -> None:
    for attempt in range(5):
        for index in range(8):
            simulator.put_object("models", f"{attempt}/{index}.tmp", str(index).encode())

        def move(index: int, attempt: int = attempt) -> httpx.Response:
            body = {"bucketId": "models", "sourceKey": f"{attempt}/{index}.tmp", "destinationKey": f"{attempt}/key"}
            return client.post("/object/move", json=body)

        answers = at_once(move)
        winners = [index for index, answer in enumerate(answers) if answer.status_code == 200]
        assert len(winners) == 1
        assert simulator.object_bytes("models", f"{attempt}/key") == str(winners[0]).encode()
        assert {answer.json()["code"] for answer in answers if answer.status_code != 200} == {"ResourceAlreadyExists"}
        assert len(simulator.object_keys("models", f"{attempt}/")) == 8


def test_of_eight_concurrent_uploads_to_a_new_key_all_succeed_and_the_last_one_stays(
    simulator: StorageSimulator, client: httpx.Client
) -> None:
    all_passed_the_check, finished = threading.Barrier(8), threading.Semaphore(0)

    def body(index: int) -> Iterator[bytes]:
        # More than fits the socket's buffers: it can only leave once the server, past its check, is reading.
        yield bytes([index]) * 8_000_000
        all_passed_the_check.wait()
        for _ in range(7 if index == 7 else 0):
            finished.acquire()
        yield b"end"

    def upload(index: int) -> httpx.Response:
        answer = client.post("/object/models/raced", content=body(index))
        finished.release()
        return answer

    assert [answer.status_code for answer in at_once(upload)] == [200] * 8
    assert simulator.object_bytes("models", "raced") == b"\x07" * 8_000_000 + b"end"
    assert client.post("/object/models/raced", content=b"late").json()["code"] == "KeyAlreadyExists"


def test_a_bucket_is_created_once_and_a_key_removed_once(client: httpx.Client) -> None:
    created = at_once(lambda _: client.post("/bucket", json={"name": "new"}))
    assert sorted(answer.status_code for answer in created) == [200] + [400] * 7
    removed = at_once(lambda _: client.request("DELETE", "/object/models", json={"prefixes": ["m/big.bin"]}))
    assert sorted(len(answer.json()) for answer in removed) == [0] * 7 + [1]


# Reading


@pytest.mark.parametrize(("asked", "start", "stop"), [("0-9", 0, 10), ("-5", -5, None), ("1000-", 1000, None)])
def test_a_range_is_read_exactly(client: httpx.Client, asked: str, start: int, stop: int | None) -> None:
    answer = client.get("/object/models/m/big.bin", headers={"range": f"bytes={asked}"})
    assert answer.status_code == 206
    assert answer.content == BIG[start:stop]


def test_a_public_bucket_is_read_without_a_key_and_a_private_one_is_not(
    simulator: StorageSimulator, client: httpx.Client
) -> None:
    url = f"{simulator.url}/storage/v1/object/public/models/m/big.bin"
    assert httpx.get(url).json()["code"] == "NoSuchBucket"
    client.put("/bucket/models", json={"public": True})
    assert httpx.get(url).content == BIG


def test_a_signed_url_expires_with_the_clock() -> None:
    now = [datetime(2026, 1, 1, tzinfo=timezone.utc)]
    with StorageSimulator(clock=lambda: now[0]) as simulator, http_client(simulator) as client:
        simulator.put_object("models", "a", b"a")
        path = client.post("/object/sign/models/a", json={"expiresIn": 60}).json()["signedURL"]
        assert client.get("/object/info/models/a").json()["created_at"] == "2026-01-01T00:00:00.000Z"
        now[0] += timedelta(seconds=59)
        assert client.get(path).content == b"a"
        now[0] += timedelta(seconds=1)
        assert client.get(path).json()["code"] == "InvalidJWT"


def test_the_folder_listing_ignores_case_and_the_prefix_listing_does_not(
    simulator: StorageSimulator, client: httpx.Client
) -> None:
    simulator.put_object("models", "M/other.bin", b"")
    v1 = client.post("/object/list/models", json={"prefix": "m"}).json()
    v2 = client.post("/object/list-v2/models", json={"prefix": "m/"}).json()
    assert [row["name"] for row in v1] == ["big.bin", "other.bin"]
    assert [row["name"] for row in v2["objects"]] == ["m/big.bin"]


def test_the_prefix_listing_gives_at_most_a_thousand_keys_a_page(
    simulator: StorageSimulator, client: httpx.Client
) -> None:
    keys = [f"n/{number:04}" for number in range(1001)]
    for key in keys:
        simulator.put_object("models", key, b"")
    first = client.post("/object/list-v2/models", json={"prefix": "n/", "limit": 5000}).json()
    rest = client.post("/object/list-v2/models", json={"prefix": "n/", "cursor": first["nextCursor"]}).json()
    assert [row["name"] for row in first["objects"] + rest["objects"]] == keys
    assert (len(rest["objects"]), rest["hasNext"]) == (1, False)


# Resumable uploads


def test_a_resumable_upload_cut_in_the_middle_goes_on_where_it_stopped(
    simulator: StorageSimulator, client: httpx.Client
) -> None:
    location = resumable(client, "new.bin", len(BIG))
    simulator.inject(Fault(method="PATCH", action=CutRequestAfter(123_456), times=1))
    with pytest.raises(httpx.TransportError):
        client.patch(location, headers={**TUS, "upload-offset": "0"}, content=BIG)
    assert offset(client, location) == 123_456
    assert "new.bin" not in simulator.object_keys("models")
    done = client.patch(location, headers={**TUS, "upload-offset": "123456"}, content=BIG[123_456:])
    assert (done.status_code, done.headers["upload-offset"]) == (204, str(len(BIG)))
    assert simulator.object_bytes("models", "new.bin") == BIG
    assert simulator.object_metadata("models", "new.bin") == {"n": 1}


def test_a_resumable_upload_over_an_object_needs_upsert_on_every_request(client: httpx.Client) -> None:
    location = resumable(client, "m/big.bin", 1, **{"x-upsert": "true"})
    assert client.patch(location, headers={**TUS, "upload-offset": "0"}, content=b"!").status_code == 409
    upsert = {**TUS, "upload-offset": "0", "x-upsert": "true"}
    assert client.patch(location, headers=upsert, content=b"!").status_code == 204
    assert client.get("/object/models/m/big.bin").content == b"!"


def test_an_upload_can_be_created_with_its_bytes(simulator: StorageSimulator, client: httpx.Client) -> None:
    metadata = "bucketName bW9kZWxz,objectName bmV3"  # models, new
    headers = {**TUS, "upload-length": "3", "upload-metadata": metadata}
    assert client.post("/upload/resumable", headers=headers, content=b"abc").headers["upload-offset"] == "3"
    assert simulator.object_bytes("models", "new") == b"abc"


def test_expired_uploads_are_forgotten(simulator: StorageSimulator, client: httpx.Client) -> None:
    location = resumable(client, "new.bin", 10)
    simulator.expire_uploads()
    assert client.head(location, headers=TUS).status_code == 404
    assert client.patch(location, headers={**TUS, "upload-offset": "0"}, content=b"x").status_code == 404


# Real clients


def test_storage3_works_against_it(storage3: SyncStorageClient, tmp_path: Path) -> None:
    storage3.create_bucket("new", options={"public": False})
    assert {bucket.id for bucket in storage3.list_buckets()} == {"models", "new"}
    file, bucket = tmp_path / "f.bin", storage3.from_("new")
    file.write_bytes(BIG)
    options: Any = {"content-type": "application/x-onnx", "metadata": {"sha256": "é"}, "upsert": "true"}
    bucket.upload("r/f.bin", file, options)
    bucket.upload("r/f.bin", file, options)
    info = bucket.info("r/f.bin")
    assert (info["size"], info["metadata"], info["cache_control"]) == (len(BIG), {"sha256": "é"}, "max-age=3600")
    assert info["content_type"] == "application/x-onnx"
    with pytest.raises(StorageApiError, match="already exists"):
        bucket.upload("r/f.bin", b"small")
    bucket.copy("r/f.bin", "r/g.bin")
    bucket.move("r/g.bin", "r/h.bin")
    assert [row["name"] for row in bucket.list("r")] == ["f.bin", "h.bin"]
    assert [found.name for found in bucket.list_v2({"prefix": "r/"}).objects] == ["r/f.bin", "r/h.bin"]
    assert bucket.download("r/h.bin") == BIG
    assert httpx.get(bucket.create_signed_url("r/f.bin", 60)["signedURL"] or "").content == BIG
    assert [row["name"] for row in bucket.remove(["r/h.bin", "r/none"])] == ["r/h.bin"]
    bucket.update("r/f.bin", b"", {"content-type": "text/plain"})
    assert (bucket.download("r/f.bin"), bucket.info("r/f.bin")["metadata"]) == (b"", {})


def test_calls_are_recorded_in_order_and_counted(simulator: StorageSimulator, client: httpx.Client) -> None:
    client.get("/object/models/no%20such")
    client.post("/object/list/models", json={"prefix": ""})
    assert [(call.method, call.status) for call in simulator.calls()] == [("GET", 400), ("POST", 200)]
    assert (simulator.count(), simulator.count("GET"), simulator.count(path_contains="no such")) == (2, 1, 1)
    simulator.reset_calls()
    assert simulator.calls() == []


def test_a_stopped_simulator_leaves_no_thread_and_comes_back_with_its_objects(simulator: StorageSimulator) -> None:
    url, before = simulator.url, threading.active_count()
    with http_client(simulator) as client:
        client.get("/bucket")
        simulator.stop()
        assert threading.active_count() < before
        with pytest.raises(httpx.TransportError):
            client.get("/bucket")
        simulator.start()
        assert simulator.url == url
        assert client.get("/object/models/m/big.bin").content == BIG


def test_it_serves_as_a_process_until_its_standard_input_closes() -> None:
    command = [sys.executable, "-m", "tests.support.simulators.storage"]
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        headers = {"apikey": told["service_key"]}
        assert httpx.get(f"{told['url']}/storage/v1/bucket", headers=headers).json() == []
        process.stdin.close()
        assert process.wait(timeout=60) == 0


def test_a_move_and_a_copy_take_what_the_bytes_cost_on_a_real_server() -> None:
    costs = ServerCosts(move_seconds_per_mb=0.2, copy_seconds_per_mb=0.3)
    with StorageSimulator(costs=costs) as simulator, http_client(simulator) as client:
        simulator.put_object("models", "a", bytes(1_000_000))
        taken = []
        for route, key in (("copy", "b"), ("move", "c"), ("move", "b")):
            start = time.monotonic()
            body = {"bucketId": "models", "sourceKey": "a", "destinationKey": key}
            client.post(f"/object/{route}", json=body)
            taken.append(time.monotonic() - start)
        assert taken[0] >= 0.3
        assert taken[1] >= 0.2
        assert simulator.object_bytes("models", "b") == simulator.object_bytes("models", "c") == bytes(1_000_000)


def test_uploads_at_the_same_time_share_the_rate_of_a_real_server() -> None:
    with StorageSimulator(costs=ServerCosts(upload_seconds_per_mb=0.2)) as simulator, http_client(simulator) as client:
        simulator.put_object("models", "a", b"")
        start = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            answers = pool.map(lambda name: client.post(f"/object/models/{name}", content=bytes(500_000)), "bc")
            assert [answer.status_code for answer in answers] == [200, 200]
        assert time.monotonic() - start >= 0.2
