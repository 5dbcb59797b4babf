"""Downloads through interruptions: every byte of one content arrives, or the error names the failure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supabase_bridge.storage.base import PutOptions
from supabase_bridge.storage.download import fetch
from supabase_bridge.storage.errors import StoreUnavailableError, UnexpectedResponseError
from supabase_bridge.storage.hashing import hash_object
from supabase_bridge.storage.supabase.store import SupabaseStore
from tests.support.simulators.faults import CutResponseAfter, Fault, Hang, Respond
from tests.support.simulators.storage import StorageSimulator
from tests.support.stores import BUCKET, info_answer, supabase_store

LIMIT = 10_000_000
BIG = bytes(range(251)) * 4001
BUSY = Respond(503, b'{"statusCode":"503","error":"SlowDown","message":"slow down","code":"SlowDown"}')


@pytest.fixture
def big(simulator: StorageSimulator) -> Iterator[SupabaseStore]:
    simulator.put_object(BUCKET, "m/big", BIG)
    opened = supabase_store(simulator)
    yield opened
    opened.close()


def test_a_stream_goes_on_where_it_was_cut(simulator: StorageSimulator, big: SupabaseStore) -> None:
    simulator.inject(Fault(action=CutResponseAfter(100_000), path_contains="m/big", times=8))
    assert b"".join(big.stream("m/big")) == BIG
    assert simulator.count("GET", "m/big") == 9


def test_a_read_goes_on_where_it_was_cut(simulator: StorageSimulator, big: SupabaseStore) -> None:
    simulator.inject(Fault(action=CutResponseAfter(100_000), path_contains="m/big", times=2))
    simulator.inject(Fault(action=BUSY, path_contains="m/big", times=2))
    assert big.read("m/big", limit_bytes=LIMIT) == BIG


def nonces(simulator: StorageSimulator) -> list[str]:
    """Return the cache nonce of each read of an object; "" for none."""
    readings = [call for call in simulator.calls() if call.method == "GET" and "/info/" not in call.path]
    return [call.query.get("cacheNonce", "") for call in readings]


def test_what_may_have_been_overwritten_is_asked_for_past_caches_and_taken_up_at_the_same_address(
    simulator: StorageSimulator, big: SupabaseStore, tmp_path: Path
) -> None:
    """A hosted project's CDN may be a minute behind; no cache has a URL with a new nonce."""
    simulator.inject(Fault(action=CutResponseAfter(100_000), path_contains="m/big", times=2))
    readings: list[Callable[[], object]] = [
        lambda: big.read("m/big", limit_bytes=LIMIT),
        lambda: list(big.stream("m/big", fresh=True)),
        lambda: fetch(big, "m/big", tmp_path / "here"),
        lambda: hash_object(big, "m/big", size_bytes=len(BIG)),
    ]
    seen: set[str] = set()
    for reading, requests in zip(readings, (3, 1, 1, 1), strict=True):
        simulator.reset_calls()
        reading()
        found = nonces(simulator)
        assert (len(found), len(set(found))) == (requests, 1)
        seen |= set(found)
    assert len(seen - {""}) == len(readings)


def test_what_is_read_back_after_it_was_overwritten_is_asked_for_past_caches(
    simulator: StorageSimulator, big: SupabaseStore
) -> None:
    simulator.inject(Fault(action=info_answer(size=len(BIG), etag=f"{'0' * 32}-3"), path_contains="/info/"))
    simulator.reset_calls()
    big.overwrite("m/big", BIG, PutOptions())
    (nonce,) = nonces(simulator)
    assert nonce


def test_what_is_never_overwritten_may_come_from_a_cache(simulator: StorageSimulator, big: SupabaseStore) -> None:
    assert b"".join(big.stream("m/big")) == BIG
    assert nonces(simulator) == [""]


def test_a_stream_that_gets_nowhere_ends_in_a_named_error(simulator: StorageSimulator, big: SupabaseStore) -> None:
    simulator.inject(Fault(action=CutResponseAfter(0), path_contains="m/big"))
    with pytest.raises(StoreUnavailableError):
        list(big.stream("m/big"))
    assert simulator.count("GET", "m/big") == 4


@pytest.mark.parametrize("other", [BIG[::-1], b"", BIG + b"x"])
def test_a_stream_never_mixes_two_contents(simulator: StorageSimulator, big: SupabaseStore, other: bytes) -> None:
    simulator.inject(Fault(action=CutResponseAfter(100_000), path_contains="m/big", times=1))
    pieces = big.stream("m/big")
    next(pieces)
    simulator.put_object(BUCKET, "m/big", other)
    with pytest.raises(StoreUnavailableError, match="changed while it was being read"):
        list(pieces)


def test_a_stream_that_breaks_and_then_hangs_ends_in_a_named_error(simulator: StorageSimulator) -> None:
    simulator.put_object(BUCKET, "m/big", BIG)
    hasty = supabase_store(simulator, timeout=0.3)
    simulator.inject(Fault(action=CutResponseAfter(100_000), path_contains="m/big", times=1))
    simulator.inject(Fault(action=Hang(), path_contains="m/big"))
    with pytest.raises(StoreUnavailableError):
        list(hasty.stream("m/big"))
    hasty.close()


def test_reads_are_tried_again_where_the_server_fails_now_and_then(
    simulator: StorageSimulator, big: SupabaseStore
) -> None:
    # The real server answered 500 to 23 % of the reads of a key that was being overwritten.
    simulator.inject(Fault(action=Respond(500), method="GET", probability=0.23))
    for _ in range(50):
        assert big.read("m/big", limit_bytes=LIMIT) == BIG


def test_a_stream_that_is_given_up_leaves_the_store_usable(big: SupabaseStore) -> None:
    for _ in range(200):
        next(big.stream("m/big"))
    assert big.stat("m/big").size_bytes == len(BIG)


def test_a_listing_goes_on_after_a_failure(simulator: StorageSimulator, big: SupabaseStore) -> None:
    for number in range(1001):
        simulator.put_object(BUCKET, f"n/{number:04d}", b"")
    simulator.inject(Fault(action=CutResponseAfter(1000), path_contains="list-v2", times=1))
    simulator.inject(Fault(action=BUSY, path_contains="list-v2", skip=1, times=1))
    assert len(list(big.list("n/"))) == 1001


@pytest.mark.parametrize("more", [{}, {"nextCursor": "bDptL2E="}])
def test_a_listing_that_cannot_be_gone_on_with_is_not_taken_for_a_whole_one(
    simulator: StorageSimulator, big: SupabaseStore, more: dict[str, str]
) -> None:
    facts = {"size": 1, "eTag": "x"}
    row = {"id": "1", "name": "m/a", "updated_at": "2026-11-22T16:55:19Z", "created_at": "2026-11-22T16:55:19Z"}
    page = {"hasNext": True, "folders": [], "objects": [{**row, "metadata": facts}], **more}
    simulator.inject(Fault(action=Respond(200, json.dumps(page).encode()), path_contains="list-v2"))
    with pytest.raises(UnexpectedResponseError):
        list(big.list("m/"))
