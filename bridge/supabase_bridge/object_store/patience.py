"""How long the other side is waited for, given how much it moves."""

from __future__ import annotations

import time
from datetime import timedelta

MINIMUM_RATE = 10_000
"""Bytes in a second: what moves slower than this, for as long as a silent server would be waited for, is given up."""


class Patience:
    """An amount of time that runs out while the other side is waited for, and that bytes which move give back.

    It is never more than at the beginning, so that what moved long ago excuses no stall; and all of the waiting takes
    no longer than that, and what the bytes need at the minimum rate. One thread waits; others may ask what is left.

    Args:
        minimum_rate: Bytes in a second.
    """

    def __init__(self, time_given: timedelta, *, minimum_rate: int = MINIMUM_RATE) -> None:
        self._most = time_given.total_seconds()
        self._rate = minimum_rate
        # Each is replaced whole, so that another thread sees one state or the other: until when, or what is kept.
        self._state: tuple[float | None, float] = (None, self._most)
        self.resume()

    def left(self) -> float:
        """Seconds that are left; 0 or less when it is over."""
        until, kept = self._state
        return kept if until is None else until - time.monotonic()

    def moved(self, size_bytes: int) -> None:
        """So many bytes have moved, while they were waited for."""
        self._run(min(self._most, self.left() + size_bytes / self._rate))

    def lend(self, size_bytes: int) -> None:
        """So many bytes are about to move, and will be heard of only when all have: time for them, above the most."""
        self._run(min(self._most, self.left()) + size_bytes / self._rate)

    def renew(self) -> None:
        """Begin again."""
        self._run(self._most)

    def rest(self) -> None:
        """Nobody waits for the other side now, so that time does not count."""
        self._state = (None, self.left())

    def resume(self) -> None:
        """The other side is waited for again."""
        self._run(self.left())

    def _run(self, left: float) -> None:
        self._state = (time.monotonic() + left, left)
