"""Watching for a switch: polls with jitter, backs off in an outage, and reports each release once."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Generic, TypeVar

from supabase_bridge.consumer.release import Release

T = TypeVar("T")

LONGEST_PAUSE = timedelta(minutes=5)
_JITTER = 0.25

_logger = logging.getLogger(__name__)
_random = random.SystemRandom()


class Watch(Generic[T]):
    """Looks at a channel in a thread of its own until it is stopped; a context manager that stops at its end.

    What is current is reported at the start, and then each other release that becomes current. Looks lie `interval`
    and up to a quarter of it apart; after a failed one twice as much, four times, ... until LONGEST_PAUSE. Failures are
    logged, and what was reported last stays what is served.

    Args:
        look: Says what is current.
        prepare: Makes of a release what is reported; where it fails, the release is not reported yet and the next look
            tries again.
        callback: Is told. What it raises is logged; the same release is not reported again, since nobody knows how far
            the callback came.
        fallback: Says what was current when that was last known; asked once, where the first look fails.
        interval: Between two looks.
        stop: Ends the watch when it is set; one is made where none is given.
    """

    def __init__(
        self,
        *,
        look: Callable[[], Release],
        prepare: Callable[[Release], T],
        callback: Callable[[T], object],
        fallback: Callable[[], Release | None],
        interval: timedelta,
        stop: threading.Event | None = None,
    ) -> None:
        self._look = look
        self._prepare = prepare
        self._callback = callback
        self._fallback = fallback
        self._interval_seconds = interval.total_seconds()
        self._stop = stop or threading.Event()
        self._reported: str | None = None
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="supabase-bridge-watch", daemon=True)

    def start(self) -> Watch[T]:
        """Begin; returns this watch."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the watch; returns when its thread has ended, unless it is called from the callback."""
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait until the watch has ended; False where `timeout` was over first."""
        self._thread.join(None if timeout is None else timeout.total_seconds())
        return not self._thread.is_alive()

    def __enter__(self) -> Watch[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._one_look()
            self._stop.wait(self._pause_seconds())

    def _one_look(self) -> None:
        try:
            self._report(self._look())
        except Exception as error:  # noqa: BLE001 - a watch outlives whatever a network, or a signer of URLs, does
            self._failures += 1
            facts = {"reason": str(error), "failures": self._failures}
            _logger.warning("A watch could not look; what it reported last stays", extra=facts)
            if self._failures == 1 and self._reported is None:
                self._fall_back()
        else:
            if self._failures:
                _logger.warning("A watch can look again", extra={"failures": self._failures})
            self._failures = 0

    def _fall_back(self) -> None:
        """Serve what an earlier look, perhaps another process's, found."""
        try:
            release = self._fallback()
            if release is not None:
                self._report(release)
        except Exception as error:  # noqa: BLE001 - nothing is served then, until a look succeeds
            _logger.warning("A watch has nothing to serve yet", extra={"reason": str(error)})

    def _report(self, release: Release) -> None:
        if release.content_id == self._reported or self._stop.is_set():
            return
        prepared = self._prepare(release)
        self._reported = release.content_id
        try:
            self._callback(prepared)
        except Exception:
            _logger.exception("A watch's callback failed; the watch goes on", extra={"run_id": release.run_id})

    def _pause_seconds(self) -> float:
        """Jitter keeps a fleet that started together from asking together."""
        longest = max(self._interval_seconds, LONGEST_PAUSE.total_seconds())
        seconds = min(longest, self._interval_seconds * 2 ** min(self._failures, 30))
        return min(float(seconds * _random.uniform(1.0, 1.0 + _JITTER)), threading.TIMEOUT_MAX)
