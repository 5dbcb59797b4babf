"""Claim events, keep their leases, retry, give up."""

from __future__ import annotations

import logging
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from supabase_bridge.core.backoff import backoff
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.core.events import Event, EventState
from supabase_bridge.outbox.errors import EventEndsWorkersError, LeaseLostError
from supabase_bridge.outbox.notify import open_listener
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.registry.errors import ModelNotFoundError, VersionNotFoundError
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.errors import StoreUnavailableError
from supabase_bridge.worker.decide import Outcome, Wait
from supabase_bridge.worker.periodic import PeriodicTask, run_periodic_tasks
from supabase_bridge.worker.processor import Processor
from supabase_bridge.worker.running import Room, RunningEvents

logger = logging.getLogger(__name__)

_FIRST_PAUSE = timedelta(seconds=1)

_UNEXPECTED_LIMIT = 5
"""How often an event is attempted that ends in an exception which is no `BridgeError`."""

_STOP_PAUSE = timedelta(seconds=5)
"""How long a worker that is stopped waits for the events in progress. A supervisor kills it after ten seconds."""

_LONGEST_PAUSE = timedelta(seconds=30)
"""Maximum time between two polls. A notification is lost when the connection drops, so the worker polls anyway."""


def _place_of(error: Exception) -> str:
    """The file, line and function that raised an exception."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{Path(last.filename).name}:{last.lineno} ({last.name})"


@dataclass(frozen=True, kw_only=True)
class EventResult:
    """The result of one attempt at an event: a final state, or PENDING where the worker retries it later."""

    event: Event
    state: EventState
    outcome: str


class Worker:
    """Processes the outbox of one registry. Any number of workers may do so at the same time.

    The database's clock decides about leases, so workers on machines whose clocks differ agree on them.

    Args:
        name: Written into the leases; unique for each worker.
        on_handled: Called after each attempt, by one thread at a time.
        clock: Returns the time, instead of the database's clock.
        periodic_tasks: What `run` repeats in the background.
    """

    def __init__(
        self,
        *,
        name: str,
        settings: Settings,
        outbox: Outbox,
        processor: Processor,
        on_handled: Callable[[EventResult], None] | None = None,
        clock: Callable[[], datetime] | None = None,
        periodic_tasks: Sequence[PeriodicTask] = (),
    ) -> None:
        self._name = name
        self._settings = settings
        self._outbox = outbox
        self._processor = processor
        self._on_handled = on_handled
        self._calling = threading.Lock()
        self._clock = clock
        self._periodic_tasks = periodic_tasks
        self._given_back: set[int] = set()
        self._random = random.Random()  # noqa: S311 - jitter, not secrecy

    @property
    def gave_back(self) -> bool:
        """True if it was stopped while an event was in progress, of which threads may still run."""
        return bool(self._given_back)

    def run(self, stop: threading.Event) -> None:
        """Process events until `stop` is set. Database outages are retried.

        After `stop` the worker finishes what takes up to five seconds, and gives the other events back: they are due at
        once, and the attempt does not count.
        """
        listener = open_listener(self._outbox.engine, poll_interval=self._settings.poll_interval)
        background = threading.Lock()
        running = self._running_events(self._handle_and_log, background)
        failures = 0
        with closing(listener), run_periodic_tasks(self._periodic_tasks, background):
            while not stop.is_set():
                listener.prepare()
                try:
                    event, pause = self._next(running, listener.is_event_driven)
                except BridgeError as error:
                    failures += 1
                    logger.warning("the outbox cannot be read", extra={"reason": str(error), "failures": failures})
                    stop.wait(self._backoff(failures).total_seconds())
                    continue
                failures = 0
                if event is None:
                    listener.wait(pause, stop)
                else:
                    running.when_done(event, lambda: None if stop.is_set() else listener.wake())
            self._end(running)

    def drain(self, since: datetime | None = None, stop: threading.Event | None = None) -> int:
        """Process events until none is due that was not attempted before; returns how many attempts were made.

        Each event is attempted once. An event that waits for its next attempt stays for a later call.

        Args:
            since: The events that a worker claimed at or after this time were attempted. Default: now.
            stop: Once it is set, the worker stops as `run` does.

        Raises:
            RegistryUnavailableError: the database did not answer.
        """
        count = 0
        since = since or self._now() or self._outbox.now()
        # An event beyond `concurrency` that needs an upload would use up its one attempt.
        running = self._running_events(self._handle, one_more=False)
        try:
            while stop is None or not stop.is_set():
                if running.claim(lambda room: self._claim(room, unclaimed_since=since)) is not None:
                    count += 1
                elif not running.wait():
                    break
        finally:
            self._end(running)
        return count

    def step(self, event_id: int | None = None) -> EventResult | None:
        """Claim one event, or this one, and process it; return None where none is due.

        Raises:
            RegistryUnavailableError: the database did not answer; a claimed event is due again when its lease ends.
        """
        event = self._claim(Room(lone=True, changes_only=False), event_id=event_id)
        return None if event is None else self._handle(event)

    def _running_events(
        self,
        process: Callable[[Event], object],
        background: threading.Lock | None = None,
        *,
        one_more: bool = True,
    ) -> RunningEvents:
        preparing = self._processor.preparing
        return RunningEvents(self._settings.concurrency, process, background, preparing=preparing, one_more=one_more)

    def _next(self, running: RunningEvents, is_event_driven: bool) -> tuple[Event | None, timedelta]:
        """Start the next event; return it, or how long to wait for one if no notification comes before."""
        longest = min(_LONGEST_PAUSE, self._settings.lease)
        # Asked before the claim, which thus finds what becomes due between the two queries.
        due = self._outbox.until_due(now=self._now()) if is_event_driven else None
        return running.claim(self._claim), longest if due is None else min(due, longest)

    def _claim(
        self, room: Room, *, unclaimed_since: datetime | None = None, event_id: int | None = None
    ) -> Event | None:
        return self._outbox.claim(
            self._name,
            now=self._now(),
            lease=self._settings.lease,
            unclaimed_since=unclaimed_since,
            event_id=event_id,
            lone=room.lone,
            changes_only=room.changes_only,
        )

    def _end(self, running: RunningEvents) -> None:
        """Wait a few seconds for the events in progress, and release those that are not finished then."""
        for event in running.wait_for_all(_STOP_PAUSE):
            self._given_back.add(event.id)
            try:
                self._outbox.postpone(event, self._name, "the worker was stopped", until=None)
            except BridgeError as error:
                logger.warning("an event could not be given back", extra={"event": event.id, "reason": str(error)})

    def _handle_and_log(self, event: Event) -> None:
        """Process an event; an error is logged, and the event is due again when its lease ends."""
        try:
            self._handle(event)
        except BridgeError as error:
            logger.warning("an event could not be finished", extra={"event": event.id, "reason": str(error)})
        except Exception:
            # The worker goes on with the events of other models. A process that exits closes what an event still uses.
            if event.id not in self._given_back:
                logger.exception("an event was not processed to its end", extra={"event": event.id})

    def _handle(self, event: Event) -> EventResult:
        try:
            with self._lease_renewed(event):
                result = self._attempt(event, self._time_since_claim(event))
        except LeaseLostError as error:
            result = EventResult(event=event, state=EventState.PENDING, outcome=str(error))
        facts = {"event": event.id, "kind": event.kind.value, "model": event.model, "version": event.version}
        logger.info("event: %s", result.outcome, extra={**facts, "state": result.state.value})
        if self._on_handled is not None:
            with self._calling:
                self._on_handled(result)
        return result

    def _attempt(self, event: Event, clock: Callable[[], datetime]) -> EventResult:
        """Process an event, and record its outcome, its next attempt or its failure."""
        try:
            if event.ended_lone_worker:
                raise EventEndsWorkersError(event.id, event.takeovers)
            result = self._processor.process(event, clock(), still_held=lambda: self._renew(event))
        except (VersionNotFoundError, ModelNotFoundError) as error:
            result = Outcome(state=EventState.SUPERSEDED, outcome=str(error))
        except LeaseLostError:
            raise
        except Exception as error:
            if not isinstance(error, BridgeError):
                logger.exception("an event failed unexpectedly", extra={"event": event.id})
            result = self._failed(event, clock(), error)
        else:
            if isinstance(result, Wait) and result.reason != event.outcome:
                with self._shown(event):
                    self._processor.report_waiting(event, result.reason)
        if isinstance(result, Wait):
            until = result.until and min(result.until, clock() + self._settings.retry_cap)
            self._outbox.postpone(
                event, self._name, result.reason, until=until, failed=result.failed, unexpected=result.unexpected
            )
            return EventResult(event=event, state=EventState.PENDING, outcome=result.reason)
        self._outbox.finish(event, self._name, result.state, result.outcome, now=self._now())
        return EventResult(event=event, state=result.state, outcome=result.outcome)

    def _failed(self, event: Event, now: datetime, error: Exception) -> Outcome | Wait:
        """Show a failure on the version; the event is retried later, or given up."""
        retryable, rejected, retry_after = event.failures + 1 < _UNEXPECTED_LIMIT, False, timedelta(0)
        reason = f"{type(error).__name__} in {_place_of(error)}: {error}"
        if isinstance(error, BridgeError):
            retryable, rejected, reason = error.retryable, error.rejects, str(error)
        if isinstance(error, StoreUnavailableError):
            retry_after = min(error.retry_after or retry_after, self._settings.retry_cap)
        retrying = retryable and now - (event.started_at or now) < self._settings.give_up_after
        # Another worker that took over the event may have shown a success.
        self._renew(event)
        with self._shown(event):
            self._processor.report_failure(event, reason, retrying=retrying, rejected=rejected)
        if not retrying:
            return Outcome(state=EventState.DEAD, outcome=reason)
        until = now + max(self._backoff(event.attempts), retry_after)
        return Wait(until=until, reason=reason, failed=True, unexpected=not isinstance(error, BridgeError))

    def _now(self) -> datetime | None:
        """The time to pass to the outbox; None where the outbox uses the database's clock."""
        return None if self._clock is None else self._clock()

    def _time_since_claim(self, event: Event) -> Callable[[], datetime]:
        """The database's time without further queries: the time of the claim, plus the time that has passed here."""
        if self._clock is not None:
            return self._clock
        claimed_at = (event.leased_until or event.created_at) - self._settings.lease
        start = time.monotonic()
        return lambda: claimed_at + timedelta(seconds=time.monotonic() - start)

    def _backoff(self, attempts: int) -> timedelta:
        return backoff(attempts, _FIRST_PAUSE, self._settings.retry_cap, self._random.uniform)

    def _renew(self, event: Event) -> None:
        self._outbox.renew(event, self._name, now=self._now(), lease=self._settings.lease)

    @contextmanager
    def _shown(self, event: Event) -> Iterator[None]:
        """Log the error of a block that shows something in MLflow; the event's own result does not depend on it."""
        try:
            yield
        except BridgeError as error:
            facts = {"event": event.id, "reason": str(error)}
            logger.warning("the result of an attempt could not be shown in MLflow", extra=facts)
        except Exception:
            logger.exception("the result of an attempt could not be shown in MLflow", extra={"event": event.id})

    @contextmanager
    def _lease_renewed(self, event: Event) -> Iterator[None]:
        """Renew the event's lease in the background while the block runs."""
        done = threading.Event()
        interval = self._settings.lease.total_seconds() / 3

        def renew() -> None:
            while not done.wait(interval):
                try:
                    self._renew(event)
                except LeaseLostError:
                    return
                except BridgeError as error:
                    logger.warning("a lease could not be renewed", extra={"event": event.id, "reason": str(error)})

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
