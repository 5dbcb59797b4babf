"""Servers that send a few bytes now and then: every wait ends with an error that names the cause."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from supabase_bridge.core.errors import BridgeError
from supabase_bridge.storage.base import ObjectInfo, PutOptions
from supabase_bridge.storage.errors import StoreUnavailableError
from supabase_bridge.storage.http import BoundedTransport
from supabase_bridge.storage.supabase.store import SupabaseStore
from tests.storage.large_files import KEY, TUS, resumable_store
from tests.support.simulators.faults import Fault, Hang
from tests.support.simulators.hostile import Conversation, Script, answer, hostile
from tests.support.simulators.storage import StorageSimulator
from tests.support.stores import BUCKET, supabase_store

TIMEOUT_SECONDS = 0.3
BOUND_SECONDS = 20.0
BIG = bytes(range(251)) * 4001
# Where the machine stands still between head and body, the head itself comes too late.
LATE = re.compile("too slowly|no answer in time")
SLOW_HEAD = b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 10_000
INFO = ObjectInfo(key="m/a", size_bytes=10_000, modified_at=datetime(2026, 11, 22, tzinfo=timezone.utc), etag="x")


def store_at(url: str, *, pause: Callable[[float], None] = lambda _seconds: None) -> SupabaseStore:
    timeout = timedelta(seconds=TIMEOUT_SECONDS)
    return SupabaseStore(url=url, key=SecretStr("key"), bucket=BUCKET, timeout=timeout, pause=pause)


def failure_of(call: Callable[[], object], *, bound_seconds: float = BOUND_SECONDS) -> Exception:
    """Return the error of a call; fail if it takes longer than the bound."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            call()
        except (BridgeError, httpx.HTTPError) as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(bound_seconds)
    assert not thread.is_alive(), "it is still waited for"
    assert raised, "it succeeded"
    return raised[0]


def refused(script: Script, call: Callable[[SupabaseStore], object]) -> StoreUnavailableError:
    with hostile(script) as server:
        store = store_at(server.url)
        error = failure_of(lambda: call(store))
        store.close()
    assert isinstance(error, StoreUnavailableError)
    assert error.retryable
    return error


def ranged(talk: Conversation, *, of: int, chunked: bool = False) -> int:
    """Send the head of a response for the requested range; return where the range begins."""
    found = re.search(rb"range: bytes=([0-9]+)-", talk.head, re.IGNORECASE)
    start = int(found[1]) if found else 0
    status = "206 Partial Content" if found else "200 OK"
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {of - start}"
    span = f"Content-Range: bytes {start}-{of - 1}/{of}"
    talk.send(f'HTTP/1.1 {status}\r\n{length}\r\nETag: "x"\r\n{span}\r\n\r\n'.encode())
    return start


def wait(seconds: float) -> None:
    """Let time pass without another request."""
    threading.Event().wait(seconds)


ASKING: dict[str, Callable[[SupabaseStore], object]] = {
    "read": lambda store: store.read("m/a", limit_bytes=10**6),
    "read_part": lambda store: store.read_part(INFO, start=0, size_bytes=10_000),
    "stat": lambda store: store.stat("m/a"),
    "list": lambda store: list(store.list("m/")),
    "overwrite": lambda store: store.overwrite("m/a", b"1", PutOptions()),
    "delete": lambda store: store.delete(["m/a"]),
}


# --- answers that trickle ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ASKING)
def test_an_answer_whose_head_comes_byte_by_byte_is_given_up(operation: str) -> None:
    error = refused(lambda talk: talk.trickle(SLOW_HEAD), ASKING[operation])
    assert "no answer in time" in error.reason


def test_an_answer_is_given_up_on_a_connection_that_has_served_before_too() -> None:
    def script(talk: Conversation) -> None:
        talk.send(b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\nETag: "x"\r\n\r\ncontent')
        if talk.connection.recv(65536):
            talk.trickle(SLOW_HEAD)

    with hostile(script) as server:
        store = store_at(server.url)
        assert store.read("m/a", limit_bytes=100) == b"content"
        error = failure_of(lambda: store.read("m/a", limit_bytes=100))
        assert isinstance(error, StoreUnavailableError)
        assert len(server.heads) == 1
        store.close()


@pytest.mark.parametrize("operation", ASKING)
@pytest.mark.parametrize("chunked", [False, True])
def test_an_answer_whose_body_comes_byte_by_byte_is_given_up(operation: str, chunked: bool) -> None:
    def script(talk: Conversation) -> None:
        ranged(talk, of=10_000, chunked=chunked)
        talk.trickle(b"1\r\n \r\n" * 2000 if chunked else b" " * 10_000)

    assert LATE.search(refused(script, ASKING[operation]).reason)


def test_what_came_fast_at_first_excuses_no_trickle_later() -> None:
    def script(talk: Conversation) -> None:
        ranged(talk, of=200_000)
        talk.send(b" " * 100_000)
        talk.trickle(b" " * 100_000)

    assert LATE.search(refused(script, ASKING["stat"]).reason)


def test_a_chunk_that_never_begins_is_given_up() -> None:
    def script(talk: Conversation) -> None:
        ranged(talk, of=10_000, chunked=True)
        talk.trickle(b"5;" + b"x" * 10_000)

    assert LATE.search(refused(script, ASKING["stat"]).reason)


def test_a_refusal_that_comes_byte_by_byte_is_given_up() -> None:
    def script(talk: Conversation) -> None:
        talk.send(answer(b"", length=10_000, status="400 Bad Request"))
        talk.trickle(b" " * 10_000)

    assert LATE.search(refused(script, ASKING["stat"]).reason)


def test_a_body_of_unknown_length_that_is_cut_off_is_not_taken_for_a_whole_one() -> None:
    def script(talk: Conversation) -> None:
        talk.send(b'HTTP/1.1 200 OK\r\n\r\n{"size": 1, "last_modified": "2026-11-22T16:55:19Z"}')
        talk.trickle(b" " * 10_000)

    assert LATE.search(refused(script, ASKING["stat"]).reason)


def test_a_body_that_stays_above_the_minimum_rate_may_take_longer_than_the_timeout() -> None:
    def script(talk: Conversation) -> None:
        talk.send(answer(b"", length=60_000, headers='ETag: "x"\r\n'))
        for _ in range(30):
            talk.send(b"x" * 2_000)
            talk.stopping.wait(TIMEOUT_SECONDS / 10)

    with hostile(script) as server:
        store = store_at(server.url)
        assert store.read("m/a", limit_bytes=10**6) == b"x" * 60_000
        assert len(server.heads) == 1
        store.close()


def test_time_that_the_caller_takes_is_not_the_servers(simulator: StorageSimulator) -> None:
    simulator.put_object(BUCKET, "m/big", BIG)
    store = supabase_store(simulator, timeout=TIMEOUT_SECONDS)
    pieces = store.stream("m/big")
    read = next(pieces)
    wait(2 * TIMEOUT_SECONDS)
    assert read + b"".join(pieces) == BIG
    assert simulator.count("GET", "m/big") == 1
    store.close()


# --- uploads that are taken slowly ------------------------------------------------------------------------------------


def test_a_body_that_is_taken_slower_than_the_minimum_rate_is_given_up() -> None:
    def script(talk: Conversation) -> None:
        while not talk.stopping.wait(0.02) and talk.connection.recv(65536):
            pass

    def send(url: str) -> None:
        rate = 50_000_000
        with httpx.Client(transport=BoundedTransport(timedelta(seconds=1), minimum_rate=rate), timeout=1) as client:
            client.post(url, content=iter([b"x" * 65536] * 1000))

    with hostile(script) as server:
        error = failure_of(lambda: send(server.url))
    assert isinstance(error, httpx.WriteTimeout)
    assert "too slowly" in str(error)


def test_time_that_the_callers_body_takes_is_not_the_servers(simulator: StorageSimulator, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(BIG[:300_000])
    store = supabase_store(simulator, timeout=TIMEOUT_SECONDS)
    store.ensure_bucket()
    store.overwrite("m/a", path, PutOptions(), lambda _size: wait(2 * TIMEOUT_SECONDS))
    assert simulator.object_bytes(BUCKET, "m/a") == BIG[:300_000]
    store.close()


# --- stalls, each after some progress ---------------------------------------------------------------------------------


def _part(talk: Conversation, size_bytes: int, *, of: int) -> None:
    """Send a few bytes of the requested range, then nothing."""
    start = ranged(talk, of=of)
    talk.send(b"x" * min(size_bytes, of - start))
    if start + size_bytes < of:
        talk.hang()


def test_a_stream_goes_on_after_a_stall() -> None:
    with hostile(lambda talk: _part(talk, 40_000, of=100_000)) as server:
        store = store_at(server.url)
        assert b"".join(store.stream("m/a")) == b"x" * 100_000
        assert len(server.heads) == 3
        store.close()


def test_a_stream_that_stalls_after_every_byte_is_given_up() -> None:
    with hostile(lambda talk: _part(talk, 1, of=100)) as server:
        store = store_at(server.url)
        error = failure_of(lambda: list(store.stream("m/a")))
        store.close()
    assert isinstance(error, StoreUnavailableError)


def test_a_stream_that_breaks_off_after_every_byte_is_given_up() -> None:
    def script(talk: Conversation) -> None:
        ranged(talk, of=100_000)
        talk.send(b"x")

    with hostile(script) as server:
        store = store_at(server.url, pause=wait)
        error = failure_of(lambda: list(store.stream("m/a")))
        store.close()
    assert isinstance(error, StoreUnavailableError)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes(13_303_000))
    return path


def test_an_upload_in_chunks_goes_on_after_a_stall(simulator: StorageSimulator, large: Path) -> None:
    store = resumable_store(simulator, timeout=1.0)
    store.ensure_bucket()
    simulator.inject(Fault(action=Hang(), method="PATCH", path_contains=TUS, skip=1, times=1))
    store.overwrite(KEY, large, PutOptions())
    assert simulator.object_bytes(BUCKET, KEY) == large.read_bytes()
    assert (simulator.count("POST", TUS), simulator.count("PATCH", TUS)) == (1, 4)
    store.close()


class Upload:
    """Accept one byte of each PATCH: close the first connection, then stop responding."""

    def __init__(self) -> None:
        self.offset = 0

    def __call__(self, talk: Conversation) -> None:
        close = "Tus-Resumable: 1.0.0\r\nConnection: close\r\n"
        verb = talk.head.partition(b" ")[0]
        if verb == b"POST":
            self.described = re.search(rb"upload-metadata: ([^\r]+)", talk.head, re.IGNORECASE)
            talk.send(answer(b"", status="201 Created", headers=f"Location: /upload/abc\r\n{close}"))
        elif verb == b"HEAD":
            assert self.described is not None
            known = f"Upload-Metadata: {self.described[1].decode()}\r\nUpload-Length: 13303000\r\n"
            talk.send(answer(b"", headers=f"Upload-Offset: {self.offset}\r\n{known}{close}"))
        else:
            self.offset += 1
            if self.offset > 1:
                talk.hang()


def test_an_upload_in_chunks_that_stalls_after_every_byte_is_given_up(large: Path) -> None:
    upload = Upload()
    with hostile(upload) as server:
        store = SupabaseStore(
            url=server.url,
            key=SecretStr("key"),
            bucket=BUCKET,
            timeout=timedelta(seconds=TIMEOUT_SECONDS),
            resumable_threshold_bytes=1_000_000,
            pause=lambda _seconds: None,
        )
        error = failure_of(lambda: store.overwrite(KEY, large, PutOptions()))
        store.close()
    assert isinstance(error, StoreUnavailableError)
    assert upload.offset > 2


# --- proxies ----------------------------------------------------------------------------------------------------------


def test_the_environments_proxy_is_used_unless_no_proxy_names_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with hostile(lambda talk: talk.send(answer(b"content", headers='ETag: "x"\r\n'))) as server:
        monkeypatch.setenv("http_proxy", server.url)
        store = store_at("http://project.invalid")
        assert store.read("m/a", limit_bytes=100) == b"content"
        store.close()
        assert server.heads[0].startswith(b"GET http://project.invalid/storage/v1/object/models/m/a")
        monkeypatch.setenv("no_proxy", "project.invalid")
        hidden = store_at("http://project.invalid")
        with pytest.raises(StoreUnavailableError):
            hidden.read("m/a", limit_bytes=100)
        hidden.close()
        assert len(server.heads) == 1
