"""Exponential backoff with jitter, as a pure function; each retry loop keeps its own policy around it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

_LARGEST_EXPONENT = 30
"""Larger powers of two do not fit into a `timedelta`, and every cap is reached before."""

_FIRST_TAKEOVER_PAUSE = timedelta(seconds=30)


def backoff(
    attempt: int,
    first: timedelta,
    cap: timedelta,
    rng: Callable[[float, float], float],
    *,
    jitter: tuple[float, float] = (0.5, 1.0),
) -> timedelta:
    """Return how long to wait before the next try.

    Args:
        attempt: The number of failed tries, from 1. For 0 the result is that for 1.
        first: The longest wait after the first failed try. It doubles after each further one.
        cap: The longest wait before jitter.
        rng: Returns a random number between two bounds, such as `random.uniform`.
        jitter: The bounds of the factor that spreads clients which failed together.
    """
    seconds = first.total_seconds() * 2.0 ** min(max(attempt - 1, 0), _LARGEST_EXPONENT)
    return timedelta(seconds=min(seconds, cap.total_seconds()) * rng(*jitter))


def takeover_pause(takeovers: int, cap: timedelta) -> timedelta:
    """Return how long an event waits after its lease has ended this often without a result, from 1.

    Nothing after the first time, because a machine may have been restarted. Then the pauses double: the event itself
    may end the workers that process it.
    """
    if takeovers <= 1:
        return timedelta(0)
    return backoff(takeovers - 1, _FIRST_TAKEOVER_PAUSE, cap, max)
