"""Announces three switches once for each kill: a forked process ends at one of its side effects, and another goes on.

python -m tests.announce.killed_worker HOME RECEIVER EVERY FIRST: each run has a directory and a channel of its own. A
line of JSON on stdout names each run's channel and the side effect at which its process ended.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Engine

from supabase_bridge.announce.courier import Courier
from supabase_bridge.announce.deliveries import Deliveries, Delivery, DeliveryState
from supabase_bridge.announce.senders import Sender, open_sender
from supabase_bridge.announce.switches import SwitchLog
from supabase_bridge.core.announcement import Announcement
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.outbox.schema import ensure_schema
from supabase_bridge.releases.manual import activate_manually
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.directory import DirectoryStore
from supabase_bridge.trust.signer import NO_SIGNING
from tests.support.outboxes import connect
from tests.support.small_releases import lay_out, run_id

SWITCHES = (1, 2, 1)
KILLED = 9


class Effects:
    """Counts side effects, and ends the process before or after one of them."""

    def __init__(self, kill: int | None) -> None:
        self._left = kill
        self.names: list[str] = []

    def reach(self, name: str) -> None:
        self.names.append(name)
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                os._exit(KILLED)


class CountedDeliveries(Deliveries):
    """Deliveries whose writes are side effects."""

    def __init__(self, engine: Engine, effects: Effects) -> None:
        super().__init__(engine)
        self._effects = effects

    def claim(self, destination: str, worker: str) -> Delivery | None:
        found = super().claim(destination, worker)
        self._effects.reach("after claim")
        return found

    def finish(self, delivery: Delivery, worker: str, state: DeliveryState, outcome: str) -> None:
        self._effects.reach("between the message and its record")
        super().finish(delivery, worker, state, outcome)
        self._effects.reach("after the record")


class CountedSender:
    """A sender whose messages are side effects."""

    def __init__(self, sender: Sender, effects: Effects) -> None:
        self._sender = sender
        self._effects = effects

    def send(self, message_id: str, body: str) -> None:
        self._effects.reach("before the message")
        self._sender.send(message_id, body)

    def close(self) -> None:
        self._sender.close()


class CountedLog(SwitchLog):
    """A log that may end the process in the middle of the transaction that inserts."""

    effects: Effects

    def announce(self, marked: Any) -> int:
        effects = self.effects

        class Inserting(Deliveries):
            @staticmethod
            def insert(connection: Any, announcement: Announcement, destinations: Sequence[str], **place: str) -> None:
                effects.reach("within the insertion")
                Deliveries.insert(connection, announcement, destinations, **place)

        self._deliveries = Inserting(self._engine)
        found = super().announce(marked)
        effects.reach("after the insertion")
        return found


def work(home: Path, settings: Settings, channel: str, *, first: bool, effects: Effects) -> None:
    """Switch and announce as a worker does; the second process finds what the first one left."""
    engine = connect(f"sqlite:///{home / 'outbox.db'}")
    store = DirectoryStore(home / "bucket")
    paths = ChannelPaths(model_key="two_tower", channel=channel)
    log = CountedLog(engine, settings.announce, lambda _: store, NO_SIGNING)
    log.effects = effects
    deliveries = CountedDeliveries(engine, effects)
    destination = settings.announce["api"]
    courier = Courier(destination, CountedSender(open_sender(destination), effects), deliveries, settings)
    if not first:
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE supabase_bridge_deliveries SET leased_until_ms = 1 WHERE leased_by <> ''"
            )
        log.mark("models", paths)
    for number in SWITCHES if first else ():
        activate_manually(store, paths, run_id(number), now=datetime.now(timezone.utc))
        effects.reach("between the commit and the mark")
        log.mark("models", paths)
        effects.reach("after the mark")
        for marked in log.marked():
            log.announce(marked)
        courier.deliver_due(threading.Event())
    for marked in log.marked():
        log.announce(marked)
    courier.deliver_due(threading.Event())
    courier.close()
    engine.dispose()


def forked(home: Path, settings: Settings, channel: str, *, first: bool, kill: int | None) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(home, settings, channel, first=first, effects=Effects(kill))
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(home: Path, url: str, every: int, first: int) -> None:
    announce = {"api": {"url": url, "secret_env": "WEBHOOK_SECRET", "timeout": 5}}
    settings = Settings.load(home=home, environ={}, announce=announce)
    engine = connect(f"sqlite:///{home / 'outbox.db'}")
    ensure_schema(engine)
    Deliveries(engine).register(["api"])
    engine.dispose()
    store = DirectoryStore(home / "bucket")
    store.ensure_bucket()
    for number in sorted(set(SWITCHES)):
        lay_out(store, number)
    rehearsal = Effects(None)
    work(home, settings, "rehearsal", first=True, effects=rehearsal)
    for number in range(first, len(rehearsal.names), every):
        channel = f"c{number}"
        code = forked(home, settings, channel, first=True, kill=number + 1)
        again = forked(home, settings, channel, first=False, kill=None)
        said = {"channel": channel, "effect": rehearsal.names[number], "codes": [code, again]}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
