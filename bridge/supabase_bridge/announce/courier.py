"""Deliver the messages of one destination: one after the other, retried with growing pauses, given up after days."""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from datetime import datetime, timedelta, timezone

from supabase_bridge.announce.deliveries import Deliveries, Delivery, DeliveryState
from supabase_bridge.announce.errors import DeliveryError
from supabase_bridge.announce.senders import Sender
from supabase_bridge.core.backoff import backoff
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.settings.announce import Destination
from supabase_bridge.settings.model import Settings

logger = logging.getLogger(__name__)

POLL = timedelta(seconds=5)
"""Maximum time between two looks at the database: another process may have inserted a message."""

_FIRST_PAUSE = timedelta(seconds=1)
_LONGEST_PAUSE = timedelta(hours=1)
_STOP_SECONDS = 0.25


class Wake:
    """Wakes a thread that waits; a wake-up before the wait is not lost."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Wake the thread."""
        self._event.set()

    def wait(self, stop: threading.Event, longest: timedelta) -> None:
        """Wait until `set` is called or `stop` is set, but not longer than this."""
        end = time.monotonic() + longest.total_seconds()
        while not stop.is_set() and (left := end - time.monotonic()) > 0:
            if self._event.wait(min(left, _STOP_SECONDS)):
                break
        self._event.clear()


class Courier:
    """Delivers to one destination. Any number of processes may deliver to the same one.

    Args:
        sender: Sends to this destination; the courier closes it.
    """

    def __init__(self, destination: Destination, sender: Sender, deliveries: Deliveries, settings: Settings) -> None:
        self.destination = destination
        self.wake = Wake()
        self._sender = sender
        self._deliveries = deliveries
        self._settings = settings
        self._worker = uuid.uuid4().hex

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop` is set.

        Raises:
            RegistryUnavailableError: the database did not answer; the caller calls again.
        """
        name = self.destination.name
        while not stop.is_set():
            if self.deliver_due(stop) == 0:
                due = self._deliveries.until_due(name)
                self.wake.wait(stop, POLL if due is None else min(due, POLL))

    def deliver_due(self, stop: threading.Event) -> int:
        """Make one attempt at each message that is due; return how many were made."""
        count = 0
        while not stop.is_set() and (delivery := self._deliveries.claim(self.destination.name, self._worker)):
            self._attempt(delivery)
            count += 1
        return count

    def close(self) -> None:
        """Close the connections."""
        self._sender.close()

    def _attempt(self, delivery: Delivery) -> None:
        """Send a message once, and record the result."""
        try:
            self._sender.send(delivery.message_id, delivery.body)
        except BridgeError as error:
            self._failed(delivery, error)
        except Exception as error:
            logger.exception("an announcement failed unexpectedly", extra=_facts(delivery))
            self._failed(delivery, DeliveryError(f"unexpected {type(error).__name__}"))
        else:
            self._deliveries.finish(delivery, self._worker, DeliveryState.DONE, "delivered")

    def _failed(self, delivery: Delivery, error: BridgeError) -> None:
        reason = str(error)
        logger.warning("an announcement was not delivered", extra={**_facts(delivery), "reason": reason})
        if isinstance(error, DeliveryError) and error.gone:
            self._deliveries.end(self.destination.name, f"{reason}: the destination takes no messages any more")
            return
        if datetime.now(timezone.utc) - (delivery.started_at or delivery.created_at) >= self._settings.give_up_after:
            self._deliveries.finish(delivery, self._worker, DeliveryState.DEAD, reason)
            return
        pause = backoff(delivery.attempts, _FIRST_PAUSE, _LONGEST_PAUSE, random.uniform)
        if isinstance(error, DeliveryError) and error.retry_after is not None:
            pause = max(pause, min(error.retry_after, self._settings.retry_cap))
        self._deliveries.postpone(delivery, self._worker, reason, pause=pause)


def _facts(delivery: Delivery) -> dict[str, object]:
    return {
        "announcement": delivery.id,
        "destination": delivery.destination,
        "model": delivery.model,
        "channel": delivery.channel,
        "attempts": delivery.attempts,
    }
