"""Follow a remote registry: the poller and the worker in one process."""

from __future__ import annotations

import logging
import random
import threading
import time
from datetime import timedelta

from supabase_bridge.app.errors import CommandError
from supabase_bridge.core.backoff import backoff
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.follower.poller import RegistryPoller
from supabase_bridge.worker.worker import Worker

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = timedelta(seconds=60)


def follow_registry(
    poller: RegistryPoller, worker: Worker, stop: threading.Event, *, interval: timedelta, full_interval: timedelta
) -> None:
    """Poll a remote registry and run the worker, until `stop` is set.

    Args:
        interval: Time between two polls.
        full_interval: Time between two polls that read every version, which find deletions.

    Raises:
        CommandError: the worker ended with an unexpected error. Recorded events stay in the outbox.
    """
    errors: list[Exception] = []

    def work() -> None:
        try:
            worker.run(stop)
        except Exception as error:  # noqa: BLE001 - the thread's last caller: the command reports it
            errors.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    try:
        _poll(poller, stop, interval=interval, full_interval=full_interval)
    finally:
        stop.set()
        thread.join()
    if errors:
        reason = f"{type(errors[0]).__name__}: {errors[0]}"[:500]
        raise CommandError(
            f"the worker ended unexpectedly, so the command ends too: {reason}. The recorded events are kept: start "
            "the command again; if it fails again, check the log of `supabase-bridge -v watch-registry ...`"
        ) from errors[0]


def _poll(poller: RegistryPoller, stop: threading.Event, *, interval: timedelta, full_interval: timedelta) -> None:
    """Poll until `stop` is set. While the server is unavailable, the pauses grow up to a minute."""
    last_full: float | None = None
    failures = 0
    while not stop.is_set():
        pause = interval
        started = time.monotonic()
        try:
            full = last_full is None or started - last_full >= full_interval.total_seconds()
            if poller.poll(full=full).full:
                last_full = started
            failures = 0
        except BridgeError as error:
            failures += 1
            pause = max(interval, backoff(failures, interval, _LONGEST_PAUSE, random.uniform))
            logger.warning("the registry cannot be read", extra={"reason": str(error), "failures": failures})
        stop.wait(pause.total_seconds())
