"""The events that a worker processes at the same time, each in a thread of its own, and which ones it may add."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from datetime import timedelta

from supabase_bridge.core.events import Event

_POLL_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a worker may claim beside the events that it processes; see `Outbox.claim`."""

    lone: bool
    changes_only: bool


class RunningEvents:
    """The events in progress. One thread calls the methods.

    One event beyond `concurrency` is processed if it may move a pointer, so that a rollback waits for no upload. While
    a lone event is processed, nothing else in the process runs. Events that run steps take no room.

    Args:
        concurrency: The number of events that may upload files at the same time.
        process: Processes one event.
        background: Held by a periodic task while it runs, and by a lone event.
        preparing: The ids of the events that run steps now.
        one_more: Whether one event beyond `concurrency` may be processed.
    """

    def __init__(
        self,
        concurrency: int,
        process: Callable[[Event], object],
        background: threading.Lock | None = None,
        *,
        preparing: Collection[int] = (),
        one_more: bool = True,
    ) -> None:
        self._preparing = preparing
        self._limit = concurrency + one_more
        self._concurrency = concurrency
        self._process = process
        self._background = background or threading.Lock()
        self._running: dict[Future[None], Event] = {}

    def claim(self, claim: Callable[[Room], Event | None]) -> Event | None:
        """Claim an event for which there is room, and start it; None if there is none.

        Args:
            claim: Claims an event; called where there is room for one.
        """
        self._running = {future: event for future, event in self._running.items() if not future.done()}
        taking_room = [event for event in self._running.values() if event.id not in self._preparing]
        count = len(taking_room)
        if count >= self._limit or any(event.is_lone for event in taking_room):
            return None
        lone = not self._running and self._background.acquire(blocking=False)
        event: Event | None = None
        try:
            event = claim(Room(lone=lone, changes_only=count == self._concurrency))
        finally:
            if lone and (event is None or not event.is_lone):
                self._background.release()
        if event is not None:
            self._start(event)
        return event

    def when_done(self, event: Event, call: Callable[[], object]) -> None:
        """Call a function when an event is finished, in the event's thread."""
        for future, running in self._running.items():
            if running is event:
                future.add_done_callback(lambda _: call())

    def wait(self) -> bool:
        """Wait until one of the events is finished, but not longer than a moment; return False if there is none.

        Raises:
            Exception: that of the event.
        """
        done, left = wait(self._running, _POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            del self._running[future]
            future.result()
        return bool(done or left)

    def wait_for_all(self, longest: timedelta) -> Sequence[Event]:
        """Wait for all events, but not longer than this; return those that are not finished."""
        _, left = wait(self._running, longest.total_seconds())
        return [self._running[future] for future in left]

    def _start(self, event: Event) -> None:
        future: Future[None] = Future()
        if event.is_lone:
            future.add_done_callback(lambda _: self._background.release())

        def run() -> None:
            try:
                self._process(event)
                future.set_result(None)
            except BaseException as error:  # noqa: BLE001 - `wait` raises it
                future.set_exception(error)

        self._running[future] = event
        # A daemon thread: an upload that the worker has given back does not keep the process from exiting.
        threading.Thread(target=run, name=f"event {event.id}", daemon=True).start()
