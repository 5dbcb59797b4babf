"""The worker: takes events from the outbox, carries them out, retries what may pass, gives up what will not."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from supabase_bridge.config import Settings
from supabase_bridge.errors import BridgeError, LeaseLostError, ModelNotFoundError, VersionNotFoundError
from supabase_bridge.outbox.events import Event, EventState
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.processing import Finished, Processor, Waiting

logger = logging.getLogger(__name__)

_FIRST_PAUSE = timedelta(seconds=1)


def utc_now() -> datetime:
    """The time, aware, in UTC."""
    return datetime.now(timezone.utc)


@dataclass(frozen=True, kw_only=True)
class Handled:
    """An event that was taken up, and what came of it: a finished state, or PENDING where it comes again."""

    event: Event
    state: EventState
    outcome: str


class Worker:
    """Works through the outbox of one registry; any number of workers may do so at once.

    Args:
        name: What the leases say; different for every worker.
        on_handled: Called after every event, for people who watch.
    """

    def __init__(
        self,
        *,
        name: str,
        settings: Settings,
        outbox: Outbox,
        processor: Processor,
        on_handled: Callable[[Handled], None] | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._name = name
        self._settings = settings
        self._outbox = outbox
        self._processor = processor
        self._on_handled = on_handled
        self._clock = clock
        self._random = random.Random()  # noqa: S311 - jitter, not secrecy

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; the event in hand is finished first. Outages of the database are waited out."""
        failures = 0
        while not stop.is_set():
            try:
                handled = self.step()
                failures = 0
            except BridgeError as error:
                failures += 1
                logger.warning("the outbox cannot be read", extra={"reason": str(error), "failures": failures})
                stop.wait(self._pause(failures).total_seconds())
                continue
            if handled is None:
                stop.wait(self._settings.poll_interval.total_seconds())

    def drain(self) -> int:
        """Work until nothing is due now; returns how many events were taken up.

        Raises:
            RegistryUnavailableError: the database did not answer.
        """
        count = 0
        while self.step() is not None:
            count += 1
        return count

    def step(self) -> Handled | None:
        """Take one event and carry it out, or return None where nothing is due.

        Raises:
            RegistryUnavailableError: the database did not answer; an event in hand comes back when its lease ends.
        """
        event = self._outbox.claim(self._name, now=self._clock(), lease=self._settings.lease)
        if event is None:
            return None
        try:
            with self._kept(event):
                handled = self._carry_out(event)
        except LeaseLostError as error:
            handled = Handled(event=event, state=EventState.PENDING, outcome=str(error))
        facts = {"event": event.id, "kind": event.kind.value, "model": event.model, "version": event.version}
        logger.info("event: %s", handled.outcome, extra={**facts, "state": handled.state.value})
        if self._on_handled is not None:
            self._on_handled(handled)
        return handled

    def _carry_out(self, event: Event) -> Handled:
        try:
            result = self._processor.process(event, self._clock(), still_held=lambda: self._renew(event))
        except LeaseLostError:
            raise
        except (VersionNotFoundError, ModelNotFoundError) as error:
            result = Finished(state=EventState.SUPERSEDED, outcome=str(error))
        except BridgeError as error:
            return self._failed(event, str(error), retryable=error.retryable, rejected=error.rejects)
        except Exception as error:
            logger.exception("an event failed unexpectedly", extra={"event": event.id})
            return self._failed(event, f"{type(error).__name__}: {error}", retryable=True)
        if isinstance(result, Waiting):
            self._outbox.postpone(event, self._name, result.reason, until=result.until)
            return Handled(event=event, state=EventState.PENDING, outcome=result.reason)
        self._outbox.finish(event, self._name, result.state, result.outcome, now=self._clock())
        return Handled(event=event, state=result.state, outcome=result.outcome)

    def _failed(self, event: Event, reason: str, *, retryable: bool, rejected: bool = False) -> Handled:
        """Say so on the version, then give the event back for later, or up for good."""
        now = self._clock()
        retrying = retryable and now - (event.started_at or now) < self._settings.give_up_after
        try:
            self._processor.report_failure(event, reason, retrying=retrying, rejected=rejected)
        except BridgeError as error:
            logger.warning("the failure could not be shown in MLflow", extra={"reason": str(error)})
        if retrying:
            until = now + self._pause(event.attempts)
            self._outbox.postpone(event, self._name, reason, until=until)
            return Handled(event=event, state=EventState.PENDING, outcome=reason)
        self._outbox.finish(event, self._name, EventState.DEAD, reason, now=now)
        return Handled(event=event, state=EventState.DEAD, outcome=reason)

    def _pause(self, attempts: int) -> timedelta:
        """Twice as long after every attempt, up to the cap; less at random, so that workers keep out of step."""
        longest: timedelta = min(_FIRST_PAUSE * 2 ** min(attempts - 1, 20), self._settings.retry_cap)
        return longest * self._random.uniform(0.5, 1.0)

    def _renew(self, event: Event) -> None:
        self._outbox.renew(event, self._name, now=self._clock(), lease=self._settings.lease)

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
