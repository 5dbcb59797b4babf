"""Hashing beside the reading and sending: hashlib, files and sockets all let go of the interpreter."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

_AHEAD = 16
"""So many pieces may wait; more would cost memory and win nothing."""


class BackgroundHash:
    """Feeds hashes in a thread of its own, in order; a context manager.

    Args:
        updates: The `update` of each hash.
    """

    def __init__(self, *updates: Callable[[bytes], object]) -> None:
        self._updates = updates
        self._waiting: deque[Future[None]] = deque()
        self._helper = ThreadPoolExecutor(1)

    def __enter__(self) -> BackgroundHash:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._helper.shutdown()

    def update(self, data: bytes) -> None:
        """Hash these bytes next; waits while too many others do."""
        self._wait(at_most=_AHEAD)
        self._waiting.append(self._helper.submit(self._feed, data))

    def finish(self) -> None:
        """Return when everything is hashed."""
        self._wait(at_most=0)

    def _wait(self, *, at_most: int) -> None:
        while len(self._waiting) > at_most:
            self._waiting.popleft().result()

    def _feed(self, data: bytes) -> None:
        for update in self._updates:
            update(data)
