"""A large object behind a slow connection is read in several parts at once, and is whole or refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import timedelta

import pytest
from pydantic import SecretStr

from supabase_bridge.storage.errors import CorruptObjectError, DeadlineExceededError, StoreUnavailableError
from supabase_bridge.storage.http import BoundedTransport
from supabase_bridge.storage.supabase.endpoint import ProjectEndpoint
from supabase_bridge.storage.supabase.read import LARGE_BYTES, PART_BYTES, HttpReader
from supabase_bridge.storage.time_budget import TimeBudget
from tests.support.distant import distant
from tests.support.simulators.faults import CutResponseAfter, Fault, Respond
from tests.support.simulators.storage import StorageSimulator
from tests.support.stores import BUCKET

KEY = "m/large"
LARGE = bytes(range(251)) * (LARGE_BYTES // 251 + 40_000)
ROUND_TRIP_MS, WINDOW_BYTES = 20, 256 * 1024


@contextmanager
def reader(simulator: StorageSimulator, *, far: bool = True) -> Iterator[HttpReader]:
    server = distant(simulator.url, round_trip_ms=ROUND_TRIP_MS, window_bytes=WINDOW_BYTES)
    with server if far else nullcontext(simulator.url) as url:
        place = ProjectEndpoint(url=url, bucket=BUCKET, key=SecretStr(simulator.service_key))
        transport = BoundedTransport(timedelta(minutes=1))
        # A busy machine makes any connection slow.
        with closing(HttpReader(place, transport=transport, fast_rate=10**9 if far else 1)) as opened:
            yield opened


def read(opened: HttpReader, *, size_bytes: int = len(LARGE), seconds: float = 60) -> bytes:
    return b"".join(opened.stream(KEY, size_bytes=size_bytes, deadline=TimeBudget(timedelta(seconds=seconds))))


def requests(simulator: StorageSimulator) -> list[int]:
    """Return the status of each request for the object."""
    return [call.status for call in simulator.calls() if call.path.endswith(KEY)]


@pytest.fixture
def large(simulator: StorageSimulator) -> StorageSimulator:
    simulator.put_object(BUCKET, KEY, LARGE)
    return simulator


def test_from_far_away_the_rest_comes_in_parts(large: StorageSimulator) -> None:
    with reader(large) as opened:
        assert read(opened) == LARGE
    found = requests(large)
    assert (found[0], found[1:].count(206)) == (200, len(found) - 1)
    assert len(found) > 3


def test_a_fast_connection_brings_it_in_one_request(large: StorageSimulator) -> None:
    with reader(large, far=False) as opened:
        assert read(opened) == LARGE
    assert requests(large) == [200]


def test_a_part_that_is_cut_off_or_refused_for_now_is_asked_for_again(large: StorageSimulator) -> None:
    large.inject(Fault(action=CutResponseAfter(1000), path_contains=KEY, times=2, skip=1))
    large.inject(Fault(action=Respond(503, b"{}"), path_contains=KEY, times=1, skip=2))
    with reader(large) as opened:
        opened.pause = lambda _seconds: None
        assert read(opened) == LARGE
    assert requests(large).count(503) == 1


def test_two_contents_are_never_joined(large: StorageSimulator) -> None:
    large.inject(Fault(action=CutResponseAfter(1000), path_contains=KEY, times=1, skip=1))
    with reader(large) as opened:
        opened.pause = lambda _seconds: large.put_object(BUCKET, KEY, LARGE[::-1])
        with pytest.raises(StoreUnavailableError, match="changed while it was being read"):
            read(opened)


def test_an_object_of_another_size_is_refused_at_once(large: StorageSimulator) -> None:
    with reader(large) as opened, pytest.raises(CorruptObjectError):
        read(opened, size_bytes=len(LARGE) + 1)
    assert len(requests(large)) == 1


def test_the_deadline_ends_all_parts(large: StorageSimulator) -> None:
    with reader(large) as opened, pytest.raises(DeadlineExceededError):
        read(opened, seconds=0.5)


def test_a_reader_that_stops_early_ends_the_parts(large: StorageSimulator) -> None:
    with reader(large) as opened:
        for piece in opened.stream(KEY, size_bytes=len(LARGE), deadline=TimeBudget(timedelta(minutes=1))):
            if len(piece) == PART_BYTES:
                break
        large.reset_calls()
        assert read(opened) == LARGE
