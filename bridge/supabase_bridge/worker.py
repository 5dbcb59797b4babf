"""The worker: takes events from the outbox, carries them out, retries what may pass, gives up what will not."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from supabase_bridge.chores import Chore, doing_chores
from supabase_bridge.config import Settings
from supabase_bridge.crew import Crew
from supabase_bridge.errors import (
    BridgeError,
    LeaseLostError,
    ModelNotFoundError,
    StoreUnavailableError,
    VersionNotFoundError,
)
from supabase_bridge.outbox.events import Event, EventState
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.processing import Finished, Processor, Waiting

logger = logging.getLogger(__name__)

_FIRST_PAUSE = timedelta(seconds=1)
_LONGEST_PAUSE = timedelta(seconds=30)
"""Between two looks at the outbox, whatever the bell says: a notification can be lost with its connection."""


@dataclass(frozen=True, kw_only=True)
class Handled:
    """An event that was taken up, and what came of it: a finished state, or PENDING where it comes again."""

    event: Event
    state: EventState
    outcome: str


class Worker:
    """Works through the outbox of one registry; any number of workers may do so at once.

    The time is the database's: workers on machines whose clocks differ, or jump, agree about who holds what until when.

    Args:
        name: What the leases say; different for every worker.
        on_handled: Called after every event, for people who watch; by one thread at a time.
        clock: The time, in place of the database's.
        chores: What `run` does besides, now and then.
    """

    def __init__(
        self,
        *,
        name: str,
        settings: Settings,
        outbox: Outbox,
        processor: Processor,
        on_handled: Callable[[Handled], None] | None = None,
        clock: Callable[[], datetime] | None = None,
        chores: Sequence[Chore] = (),
    ) -> None:
        self._name = name
        self._settings = settings
        self._outbox = outbox
        self._processor = processor
        self._on_handled = on_handled
        self._telling = threading.Lock()
        self._clock = clock
        self._chores = chores
        self._random = random.Random()  # noqa: S311 - jitter, not secrecy

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; the events in hand are finished first. Outages of the database are waited out."""
        bell = self._outbox.bell(poll_interval=self._settings.poll_interval)
        with closing(bell), doing_chores(self._chores), Crew(self._settings.concurrency, on_done=bell.ring) as crew:
            failures = 0
            while not stop.is_set():
                bell.arm()
                try:
                    event, pause = self._next(bell.hears) if crew.has_room() else (None, _LONGEST_PAUSE)
                    failures = 0
                    if event is None:
                        bell.wait(pause, stop)
                    else:
                        crew.do(partial(self._handle_in_crew, event))
                except BridgeError as error:
                    failures += 1
                    logger.warning("the outbox cannot be read", extra={"reason": str(error), "failures": failures})
                    stop.wait(self._pause(failures).total_seconds())

    def _next(self, hears: bool) -> tuple[Event | None, timedelta]:
        """The next event, or how long to wait for one where the bell does not ring before."""
        event = self._claim()
        longest = min(_LONGEST_PAUSE, self._settings.lease)
        if event is not None or not hears:
            return event, longest
        due = self._outbox.until_due(now=self._now())
        # What became due between the two looks is in neither of them.
        return self._claim(), longest if due is None else min(due, longest)

    def _handle_in_crew(self, event: Event) -> None:
        try:
            self._handle(event)
        except BridgeError as error:
            # Nobody could be told; the event comes back when its lease ends.
            logger.warning("an event could not be finished", extra={"event": event.id, "reason": str(error)})
        except Exception:
            # Other models' events are not kept waiting; if this one is not finished, it comes back likewise.
            logger.exception("an event was not followed to its end", extra={"event": event.id})

    def drain(self) -> int:
        """Work until nothing is due now, and nothing in hand; returns how many events were taken up.

        Raises:
            RegistryUnavailableError: the database did not answer.
        """
        count = 0
        with Crew(self._settings.concurrency) as crew:
            while True:
                event = self._claim() if crew.has_room() else None
                if event is not None:
                    count += 1
                    crew.do(partial(self._handle, event))
                elif not crew.wait_for_one():
                    return count

    def step(self) -> Handled | None:
        """Take one event and carry it out, or return None where nothing is due.

        Raises:
            RegistryUnavailableError: the database did not answer; an event in hand comes back when its lease ends.
        """
        event = self._claim()
        return None if event is None else self._handle(event)

    def _claim(self) -> Event | None:
        return self._outbox.claim(self._name, now=self._now(), lease=self._settings.lease)

    def _handle(self, event: Event) -> Handled:
        try:
            with self._kept(event):
                handled = self._carry_out(event, self._time_since_claim(event))
        except LeaseLostError as error:
            handled = Handled(event=event, state=EventState.PENDING, outcome=str(error))
        facts = {"event": event.id, "kind": event.kind.value, "model": event.model, "version": event.version}
        logger.info("event: %s", handled.outcome, extra={**facts, "state": handled.state.value})
        if self._on_handled is not None:
            with self._telling:
                self._on_handled(handled)
        return handled

    def _carry_out(self, event: Event, clock: Callable[[], datetime]) -> Handled:
        try:
            result = self._processor.process(event, clock(), still_held=lambda: self._renew(event))
        except LeaseLostError:
            raise
        except (VersionNotFoundError, ModelNotFoundError) as error:
            result = Finished(state=EventState.SUPERSEDED, outcome=str(error))
        except BridgeError as error:
            return self._failed(
                event,
                clock(),
                str(error),
                retryable=error.retryable,
                rejected=error.rejects,
                retry_after=error.retry_after if isinstance(error, StoreUnavailableError) else None,
            )
        except Exception as error:
            logger.exception("an event failed unexpectedly", extra={"event": event.id})
            return self._failed(event, clock(), _named(error), retryable=True)
        try:
            return self._ended(event, result)
        except BridgeError:
            raise
        except Exception as error:
            logger.exception("an event failed unexpectedly", extra={"event": event.id})
            return self._failed(event, clock(), _named(error), retryable=True)

    def _ended(self, event: Event, result: Finished | Waiting) -> Handled:
        if isinstance(result, Waiting):
            self._outbox.postpone(event, self._name, result.reason, until=result.until)
            return Handled(event=event, state=EventState.PENDING, outcome=result.reason)
        self._outbox.finish(event, self._name, result.state, result.outcome, now=self._now())
        return Handled(event=event, state=result.state, outcome=result.outcome)

    def _failed(
        self,
        event: Event,
        now: datetime,
        reason: str,
        *,
        retryable: bool,
        rejected: bool = False,
        retry_after: timedelta | None = None,
    ) -> Handled:
        """Say so on the version, then give the event back for later, or up for good."""
        retrying = retryable and now - (event.started_at or now) < self._settings.give_up_after
        # Another worker, which took it over meanwhile, may have shown a success.
        self._renew(event)
        try:
            self._processor.report_failure(event, reason, retrying=retrying, rejected=rejected)
        except BridgeError as error:
            logger.warning("the failure could not be shown in MLflow", extra={"reason": str(error)})
        except Exception:
            logger.exception("the failure could not be shown in MLflow", extra={"event": event.id})
        if retrying:
            asked = min(retry_after or timedelta(0), self._settings.retry_cap)
            until = now + max(self._pause(event.attempts), asked)
            self._outbox.postpone(event, self._name, reason, until=until)
            return Handled(event=event, state=EventState.PENDING, outcome=reason)
        self._outbox.finish(event, self._name, EventState.DEAD, reason, now=self._now())
        return Handled(event=event, state=EventState.DEAD, outcome=reason)

    def _now(self) -> datetime | None:
        """What the outbox is told of the time; None: it is to ask the database."""
        return None if self._clock is None else self._clock()

    def _time_since_claim(self, event: Event) -> Callable[[], datetime]:
        """The outbox's time while an event is in hand, without asking again: that of the claim, and what has passed."""
        if self._clock is not None:
            return self._clock
        claimed_at = (event.leased_until or event.created_at) - self._settings.lease
        start = time.monotonic()
        return lambda: claimed_at + timedelta(seconds=time.monotonic() - start)

    def _pause(self, attempts: int) -> timedelta:
        """Twice as long after every attempt, up to the cap; less at random, so that workers keep out of step."""
        longest: timedelta = min(_FIRST_PAUSE * 2 ** min(attempts - 1, 20), self._settings.retry_cap)
        return longest * self._random.uniform(0.5, 1.0)

    def _renew(self, event: Event) -> None:
        self._outbox.renew(event, self._name, now=self._now(), lease=self._settings.lease)

    @contextmanager
    def _kept(self, event: Event) -> Iterator[None]:
        """Renew the event's lease while it is worked on."""
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

        keeper = threading.Thread(target=renew, name="lease", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            done.set()
            keeper.join()


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
