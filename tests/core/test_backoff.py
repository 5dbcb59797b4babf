"""The pauses between tries."""

from __future__ import annotations

from datetime import timedelta

import pytest

from supabase_bridge.core.backoff import backoff, takeover_pause

SECOND = timedelta(seconds=1)


def largest(_low: float, high: float) -> float:
    return high


def smallest(low: float, _high: float) -> float:
    return low


@pytest.mark.parametrize(("attempt", "seconds"), [(0, 1), (1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (10**9, 60)])
def test_the_pause_doubles_with_each_failed_try_up_to_the_cap(attempt: int, seconds: int) -> None:
    assert backoff(attempt, SECOND, 60 * SECOND, largest) == seconds * SECOND


def test_jitter_takes_away_at_most_half_by_default() -> None:
    assert backoff(3, SECOND, 60 * SECOND, smallest) == 2 * SECOND


def test_a_caller_chooses_the_bounds_of_the_jitter() -> None:
    assert backoff(9, SECOND, 4 * SECOND, largest, jitter=(1.0, 1.25)) == 5 * SECOND


def test_the_largest_pause_of_all_fits() -> None:
    assert backoff(10**9, timedelta.max, timedelta.max, smallest) < timedelta.max


def test_an_event_whose_lease_ended_is_due_at_once_and_after_each_further_time_twice_as_long_up_to_the_cap() -> None:
    pauses = [takeover_pause(takeovers, 300 * SECOND) for takeovers in range(8)]
    assert pauses == [seconds * SECOND for seconds in (0, 0, 30, 60, 120, 240, 300, 300)]
