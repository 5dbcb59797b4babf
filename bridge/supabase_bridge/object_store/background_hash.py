"""Hashing beside the reading and sending: hashlib, files and sockets all let go of the interpreter."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

_AHEAD_BYTES = 4 * 1024 * 1024
"""So much may wait; more would cost memory and win nothing."""

_AT_ONCE_BYTES = 256 * 1024
"""Pieces are handed over in lots of at least this size: the network's are small, and each lot costs a wake-up."""


class BackgroundHash:
    """Feeds hashes in a thread of its own, in order, until it is closed.

    Args:
        updates: The `update` of each hash.
    """

    def __init__(self, *updates: Callable[[bytes], object]) -> None:
        self._updates = updates
        self._lot: list[bytes] = []
        self._lot_bytes = 0
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._waiting_bytes = 0
        self._helper = ThreadPoolExecutor(1)

    def update(self, data: bytes) -> None:
        """Hash these bytes next; waits while too many others do."""
        self._lot.append(data)
        self._lot_bytes += len(data)
        if self._lot_bytes >= _AT_ONCE_BYTES:
            self._hand_over()

    def finish(self) -> None:
        """Return when everything is hashed."""
        self._hand_over()
        self._wait(at_most=0)

    def close(self) -> None:
        """End the thread, after what was handed over."""
        self._helper.shutdown()

    def _hand_over(self) -> None:
        self._wait(at_most=_AHEAD_BYTES)
        self._waiting.append((self._helper.submit(self._feed, self._lot), self._lot_bytes))
        self._waiting_bytes += self._lot_bytes
        self._lot, self._lot_bytes = [], 0

    def _wait(self, *, at_most: int) -> None:
        while self._waiting_bytes > at_most:
            done, size_bytes = self._waiting.popleft()
            done.result()
            self._waiting_bytes -= size_bytes

    def _feed(self, lot: Sequence[bytes]) -> None:
        for data in lot:
            for update in self._updates:
                update(data)
