"""The time that an operation may take. It imports no HTTP library, because importing one takes the client 0.1 s."""

from __future__ import annotations

import math
import time
from datetime import timedelta


class TimeBudget:
    """The time that is left for an operation: a fixed deadline, or a timeout that transferred bytes extend.

    With a minimum rate, transferred bytes extend the time, so that a transfer above that rate never times out. It never
    exceeds `total`, so that fast bytes do not excuse a later stall; `pause` stops the clock while the caller is busy.
    Without a minimum rate, the budget is a fixed deadline: neither bytes nor pauses change it.

    One thread changes a budget; other threads may read it.

    Args:
        minimum_rate: Bytes per second; None for a fixed deadline.
    """

    def __init__(self, total: timedelta, *, minimum_rate: int | None = None) -> None:
        self.seconds = total.total_seconds()
        self.is_deadline = minimum_rate is None
        self._rate = minimum_rate or math.inf
        # Replaced as a whole, so that another thread reads a consistent pair: the end, or the time left while paused.
        self._state: tuple[float | None, float] = (time.monotonic() + self.seconds, self.seconds)

    def left(self) -> float:
        """Seconds that are left; 0 or less when the time is over."""
        end, left = self._state
        return left if end is None else end - time.monotonic()

    def moved(self, size_bytes: int) -> None:
        """Add the time for bytes that were transferred, up to `total`."""
        self._set(min(self.seconds, self.left() + size_bytes / self._rate))

    def extend(self, size_bytes: int) -> None:
        """Add the time for bytes that will be reported as one transfer, above `total` if need be."""
        self._set(min(self.seconds, self.left()) + size_bytes / self._rate)

    def reset(self) -> None:
        """Start again with `total`."""
        self._set(self.seconds)

    def pause(self) -> None:
        """Stop the clock while the caller, not the server, is busy."""
        self._set(self.left(), paused=True)

    def resume(self) -> None:
        """Start the clock again."""
        self._set(self.left())

    def _set(self, left: float, *, paused: bool = False) -> None:
        if not self.is_deadline:
            self._state = (None if paused else time.monotonic() + left, left)
