"""Announce in a worker: find new switches, insert their deliveries, and deliver them in the background."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta

from supabase_bridge.announce.changes import ChangeAnnouncer
from supabase_bridge.announce.courier import POLL, Courier, Wake
from supabase_bridge.announce.deliveries import Deliveries
from supabase_bridge.announce.senders import open_sender
from supabase_bridge.announce.switches import Marked, SwitchLog
from supabase_bridge.core.backoff import backoff
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.registry.client import Registry
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.trust.signer import SigningPolicy

logger = logging.getLogger(__name__)

_FIRST_PAUSE = timedelta(seconds=5)
_LONGEST_PAUSE = timedelta(minutes=5)


class Announcer:
    """Announces what the release logs of one process's buckets show. Thread-safe.

    A process that only marks channels (a command) neither reads secrets nor delivers: a worker does, within seconds.
    """

    def __init__(
        self,
        settings: Settings,
        outbox: Outbox,
        registry: Registry,
        open_store: Callable[[str], ObjectStore],
        signing: SigningPolicy,
    ) -> None:
        self._settings = settings
        self._deliveries = Deliveries(outbox.engine)
        self._switches = SwitchLog(outbox.engine, settings.announce, open_store, signing)
        self._changes = ChangeAnnouncer(settings, outbox, registry, open_store, signing)
        self._couriers: list[Courier] = []
        self._wake = Wake()
        self._failures: dict[tuple[str, ChannelPaths], tuple[int, float]] = {}

    def mark(self, bucket: str, paths: ChannelPaths) -> None:
        """Remember that a channel may have switched. An error is only logged: the reconcile pass marks it again."""
        if not self._settings.announce:
            return
        try:
            self._switches.mark(bucket, paths)
        except BridgeError as error:
            facts = {"channel": paths.manifest, "reason": str(error)}
            logger.warning("a switch is not announced before the next reconcile pass", extra=facts)
        self._wake.set()

    def open(self) -> None:
        """Read the secrets of every destination, and let new destinations hear of what happens from now on.

        Raises:
            SettingsError: a secret is missing or malformed, or an address is not allowed.
            RegistryUnavailableError: the database did not answer.
        """
        if self._couriers or not self._settings.announce:
            return
        with ExitStack() as undo:
            for item in self._settings.announce.values():
                courier = Courier(item, open_sender(item), self._deliveries, self._settings)
                undo.callback(courier.close)
                self._couriers.append(courier)
            self._deliveries.register(list(self._settings.announce))
            undo.pop_all()

    def close(self) -> None:
        """Close the connections."""
        for courier in self._couriers:
            courier.close()

    def tasks(self) -> Iterator[tuple[str, Callable[[threading.Event], None]]]:
        """Yield the name of each task of a running worker, and its function, which runs until its event is set."""
        if self._couriers:
            yield "announcements", self.run
        yield from ((f"announce to {courier.destination.name}", courier.run) for courier in self._couriers)

    def run(self, stop: threading.Event) -> None:
        """Insert the deliveries of new switches and changes until `stop` is set."""
        while not stop.is_set():
            if not self.insert_new():
                self._wake.wait(stop, POLL)

    def insert_new(self) -> int:
        """Insert the deliveries of some of what is new; return 0 if there is nothing more."""
        marked = self._switches.marked(more=len(self._failures))
        count = sum(map(self._announce, marked)) + self._changes.announce()
        if count:
            for courier in self._couriers:
                courier.wake.set()
        return count

    def deliver_due(self, stop: threading.Event) -> int:
        """Insert what is new, and make one attempt at each message that is due; return how many were made."""
        while not stop.is_set() and self.insert_new():
            pass
        return sum(courier.deliver_due(stop) for courier in self._couriers)

    def remove_finished(self) -> None:
        """Delete old finished deliveries."""
        self._deliveries.remove_finished(older_than=self._settings.outbox_retention)

    def _announce(self, marked: Marked) -> int:
        """Announce one channel, and return 1; 0: its log cannot be read, so it keeps its mark and waits a while."""
        key = (marked.bucket, marked.paths)
        failures, not_before = self._failures.get(key, (0, 0.0))
        if time.monotonic() < not_before:
            return 0
        try:
            self._switches.announce(marked)
        except BridgeError as error:
            pause = backoff(failures + 1, _FIRST_PAUSE, _LONGEST_PAUSE, max)
            self._failures[key] = (failures + 1, time.monotonic() + pause.total_seconds())
            facts = {"channel": marked.paths.manifest, "reason": str(error)}
            logger.warning("a switch cannot be announced yet", extra=facts)
            return 0
        self._failures.pop(key, None)
        return 1
