"""Poll a channel with jitter and backoff, at once after a hint, and report each new release once."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from types import TracebackType
from typing import Generic, TypeVar

from supabase_bridge.client.hints import HintListener
from supabase_bridge.client.release import Release

T = TypeVar("T")

SHORTEST_INTERVAL = timedelta(seconds=1)
"""The shortest time between two polls, because many consumers share one project, and anyone may send hints."""

LONGEST_PAUSE = timedelta(minutes=5)
_JITTER = 0.25
_SLICE_SECONDS = 0.5

_logger = logging.getLogger(__name__)
_random = random.SystemRandom()


class Watch(Generic[T]):
    """Polls a channel in a background thread until it is stopped; a context manager that stops it.

    It reports the current release at the start, and then each other release that becomes current. Two polls are
    `interval` and up to a quarter of it apart; each failed poll doubles that, up to LONGEST_PAUSE. Failures are logged.

    With a listener, a poll follows each hint at once, but not within SHORTEST_INTERVAL of the poll before. While the
    subscription is alive, the other polls are LONGEST_PAUSE apart. Its begin and its end cause one poll each.

    Args:
        poll: Returns the current release.
        prepare: Makes the callback's argument from a release. If it fails, the next poll tries again.
        callback: Called with each new release. Its errors are logged, and the same release is not reported again.
        last_known: Returns the release that was current when the channel was last read. It is called once, if the first
            poll fails.
        interval: Time between two polls.
        stop: Ends the watch when it is set. None: only `stop` ends it.
        listen: Makes a listener that calls its argument after each hint; None: nothing is listened to.
    """

    def __init__(
        self,
        *,
        poll: Callable[[], Release],
        prepare: Callable[[Release], T],
        callback: Callable[[T], object],
        last_known: Callable[[], Release | None],
        interval: timedelta,
        stop: threading.Event | None = None,
        listen: Callable[[Callable[[], None]], HintListener] | None = None,
    ) -> None:
        self._poll_once = poll
        self._prepare = prepare
        self._callback = callback
        self._last_known = last_known
        self._interval_seconds = interval.total_seconds()
        self._stop = stop or threading.Event()
        self._hinted = threading.Event()
        self._listener = None if listen is None else listen(self._hinted.set)
        self._reported: str | None = None
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="supabase-bridge-watch", daemon=True)

    def start(self) -> Watch[T]:
        """Start the thread, and return this watch."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the watch, and wait for its thread unless the callback calls this method."""
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait until the watch has ended; return False if `timeout` passed first."""
        self._thread.join(None if timeout is None else timeout.total_seconds())
        return not self._thread.is_alive()

    def __enter__(self) -> Watch[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        with self._listener or nullcontext():
            while not self._stop.is_set():
                started = time.monotonic()
                self._poll()
                self._wait(started)

    def _wait(self, started: float) -> None:
        """Wait until the next poll is due: after the pause, or after a hint."""
        seconds = self._pause_seconds()
        if self._listener is None:
            self._stop.wait(seconds)
            return
        end = time.monotonic() + seconds
        # An event of the caller's may stop the watch, so no single wait covers both.
        while not self._stop.is_set() and (left := end - time.monotonic()) > 0:
            if self._hinted.wait(min(left, _SLICE_SECONDS)):
                self._hinted.clear()
                self._stop.wait(max(0.0, started + SHORTEST_INTERVAL.total_seconds() - time.monotonic()))
                return

    def _poll(self) -> None:
        try:
            self._report(self._poll_once())
        except Exception as error:  # noqa: BLE001 - a network, or a signer of URLs, may raise anything, and the watch must go on
            self._failures += 1
            facts = {"reason": str(error), "failures": self._failures}
            _logger.warning("A poll of a watched channel failed; the last reported release stays", extra=facts)
            if self._failures == 1 and self._reported is None:
                self._report_last_known()
        else:
            if self._failures:
                _logger.warning("A watched channel can be polled again", extra={"failures": self._failures})
            self._failures = 0

    def _report_last_known(self) -> None:
        """Report the release that an earlier poll found, perhaps one of another process."""
        try:
            release = self._last_known()
            if release is not None:
                self._report(release)
        except Exception as error:  # noqa: BLE001 - nothing is reported until a poll succeeds
            _logger.warning("A watch has no release to report yet", extra={"reason": str(error)})

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
        """Return the time to the next poll; jitter spreads the polls of programs that started together."""
        longest = max(self._interval_seconds, LONGEST_PAUSE.total_seconds())
        seconds = min(longest, self._interval_seconds * 2 ** min(self._failures, 30))
        if self._listener is not None and self._listener.alive and not self._failures:
            seconds = longest
        return min(float(seconds * _random.uniform(1.0, 1.0 + _JITTER)), threading.TIMEOUT_MAX)
