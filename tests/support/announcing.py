"""A channel in a directory, an outbox's database, destinations and what delivers to them; no MLflow."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from sqlalchemy.engine import Engine

from supabase_bridge.announce.courier import Courier
from supabase_bridge.announce.deliveries import Deliveries, Delivery, DeliveryState
from supabase_bridge.announce.senders import open_sender
from supabase_bridge.announce.switches import SwitchLog
from supabase_bridge.core.documents import Manifest
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.outbox.schema import ensure_schema
from supabase_bridge.releases.manual import activate_manually
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.directory import DirectoryStore
from supabase_bridge.trust.signer import NO_SIGNING
from tests.support.outboxes import connect
from tests.support.receivers import Receiver
from tests.support.small_releases import LATEST, lay_out, run_id

BUCKET = "models"
SECRET = "whsec_" + base64.b64encode(b"a secret of at least 24 bytes").decode()


@dataclass(kw_only=True)
class Post:
    """Everything between a release log and the receivers.

    Attributes:
        laid: The numbers of the releases that are there.
    """

    settings: Settings
    store: DirectoryStore
    engine: Engine
    stack: ExitStack
    laid: set[int] = field(default_factory=set)

    @property
    def deliveries(self) -> Deliveries:
        return Deliveries(self.engine)

    @property
    def log(self) -> SwitchLog:
        return SwitchLog(self.engine, self.settings.announce, lambda _: self.store, NO_SIGNING)

    def courier(self, name: str) -> Courier:
        item = self.settings.announce[name]
        courier = Courier(item, open_sender(item), self.deliveries, self.settings)
        self.stack.callback(courier.close)
        return courier

    def switch(self, number: int, *, paths: ChannelPaths = LATEST, mark: bool = True) -> Manifest:
        """Point the channel to release `number`, as the command `activate` does; mark the channel, as a worker does."""
        if number not in self.laid:
            lay_out(self.store, number)
            self.laid.add(number)
        now = datetime.now(timezone.utc)
        activation = activate_manually(self.store, paths, run_id(number), now=now, by="ann")
        if mark:
            self.log.mark(BUCKET, paths)
        return activation.entry

    def insert_new(self) -> int:
        """Insert the deliveries of all marked channels; return the number of new switches."""
        log = self.log
        return sum(map(log.announce, log.marked()))

    def deliver(self, *names: str) -> None:
        """Insert what is new, and make one attempt at each message that is due."""
        self.insert_new()
        for name in names or self.settings.announce:
            self.courier(name).deliver_due(threading.Event())

    def rows(self, *states: DeliveryState, destination: str | None = None) -> list[Delivery]:
        return list(self.deliveries.messages(states=states, destination=destination))

    def make_due(self) -> None:
        """Let the pauses of all waiting messages be over."""
        for row in self.rows(DeliveryState.PENDING):
            with self.engine.begin() as connection:
                connection.exec_driver_sql(
                    f"UPDATE supabase_bridge_deliveries SET not_before_ms = 0 WHERE id = {row.id}"
                )


MakePost: TypeAlias = "Callable[..., Post]"


def webhook(receiver: Receiver, **more: Any) -> dict[str, Any]:
    """Return the settings of a webhook destination."""
    return {"url": receiver.url, "secret_env": "WEBHOOK_SECRET", "timeout": 1, **more}


on_each_database = pytest.mark.parametrize(
    "make_post",
    ["sqlite", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("postgresql", "mariadb"))],
    indirect=True,
)


@pytest.fixture
def make_post(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakePost]:
    """Yield a function that makes a post office with destinations; the database and the store are always the same."""
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    kind = getattr(request, "param", "sqlite")
    url = f"sqlite:///{tmp_path / 'outbox.db'}" if kind == "sqlite" else request.getfixturevalue(kind).create()
    engine = connect(url)
    ensure_schema(engine)
    store = DirectoryStore(tmp_path / "bucket")
    store.ensure_bucket()
    laid: set[int] = set()
    with ExitStack() as stack:
        stack.callback(engine.dispose)

        def make(*, register: bool = True, **announce: Any) -> Post:
            settings = Settings.load(home=tmp_path, environ={}, announce=announce, retry_cap=2)
            post = Post(settings=settings, store=store, engine=engine, stack=stack, laid=laid)
            if register:
                post.deliveries.register(list(settings.announce))
            return post

        yield make
