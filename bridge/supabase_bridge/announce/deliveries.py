"""The deliveries of announcements in the outbox's database: insert, claim, finish, retry, list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, Row

from supabase_bridge.announce.errors import DeliveryNotFoundError
from supabase_bridge.core.announcement import Announcement
from supabase_bridge.core.text import for_database
from supabase_bridge.outbox.database import DatabaseNow, database_errors, milliseconds, to_time
from supabase_bridge.outbox.errors import ContentionError
from supabase_bridge.outbox.tables import DELIVERIES, DESTINATIONS

LEASE = timedelta(seconds=120)
"""Longer than one attempt takes; a delivery whose worker was killed is tried again after it."""

_OUTCOME_LIMIT = 500
_PAGE = 500
_NO_LEASE: dict[str, Any] = {"leased_by": None, "leased_until_ms": None}


class DeliveryState(str, Enum):
    """PENDING is open; DEAD needs a person, and the others are finished."""

    PENDING = "pending"
    DONE = "done"
    DEAD = "dead"
    DISCARDED = "discarded"


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One message to one destination.

    Attributes:
        model, channel: What it is about; no channel where the message is not about one.
        attempts: With the one that is made now.
        started_at: The time of the first attempt.
        outcome: Why the last attempt failed.
    """

    id: int
    destination: str
    message_id: str
    model: str
    channel: str
    kind: str
    body: str
    state: DeliveryState
    attempts: int
    created_at: datetime
    started_at: datetime | None
    not_before: datetime | None
    outcome: str | None


@dataclass(frozen=True, kw_only=True)
class KnownDestination:
    """A destination as the database has it.

    Attributes:
        since: It hears of what happened since then.
        ended: Why it gets nothing any more; None: it gets what happens.
    """

    since: datetime
    ended: str | None


class Deliveries:
    """The deliveries in one database. Thread-safe. Every method is one transaction or more.

    The messages of one channel to one destination are delivered one after the other, in the order in which they were
    inserted. The database's clock decides about leases.

    Raises (every method):
        RegistryUnavailableError: the database did not answer.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def register(self, names: Sequence[str]) -> None:
        """Let destinations hear of what happens from now on; one that is known stays as it is."""
        for name in names:
            with suppress(ContentionError), self.transaction() as connection:
                known = sa.select(DESTINATIONS.c.name).where(DESTINATIONS.c.name == name)
                if connection.execute(known).first() is None:
                    connection.execute(DESTINATIONS.insert().values(name=name, since_ms=DatabaseNow()))

    def destinations(self) -> Mapping[str, KnownDestination]:
        """Return every destination that was ever registered."""
        with self.transaction() as connection:
            rows = connection.execute(sa.select(DESTINATIONS)).all()
        return {row.name: KnownDestination(since=to_time(row.since_ms), ended=row.reason) for row in rows}

    @staticmethod
    def insert(
        connection: Connection,
        announcement: Announcement,
        destinations: Sequence[str],
        *,
        bucket: str,
        model: str,
        channel: str = "",
    ) -> None:
        """Insert a message for destinations that do not have it yet, in the caller's transaction.

        The caller serializes the insertions of one channel.
        """
        once = DELIVERIES.c.message_id == announcement.id
        present = set(connection.execute(sa.select(DELIVERIES.c.destination).where(once)).scalars())
        for name in destinations:
            if name not in present:
                connection.execute(
                    DELIVERIES.insert().values(
                        destination=name,
                        message_id=announcement.id,
                        bucket=bucket,
                        model=for_database(model, limit=256),
                        channel=channel,
                        kind=announcement.kind.value,
                        body=for_database(announcement.to_json(), limit=60_000),
                        state=DeliveryState.PENDING.value,
                        attempts=0,
                        created_ms=DatabaseNow(),
                        not_before_ms=0,
                    )
                )

    def claim(self, destination: str, worker: str) -> Delivery | None:
        """Claim the first message that is due; None if none is. The claim counts as an attempt.

        A message that waits for its next attempt, or that another worker has claimed, keeps the later messages of its
        channel waiting, and no others.
        """
        heads = self._heads(destination).subquery()
        now = DatabaseNow()
        due = [DELIVERIES.c.not_before_ms <= now, _FREE]
        query = sa.select(DELIVERIES.c.id).join(heads, heads.c.id == DELIVERIES.c.id).where(*due)
        with self.transaction() as connection:
            ids = connection.execute(query.order_by(DELIVERIES.c.id).limit(_PAGE)).scalars().all()
        for number in ids:
            with self.transaction() as connection:
                claimed = connection.execute(
                    DELIVERIES.update()
                    .where(DELIVERIES.c.id == number, DELIVERIES.c.state == DeliveryState.PENDING.value, *due)
                    .values(
                        leased_by=worker,
                        leased_until_ms=now + milliseconds(LEASE),
                        attempts=DELIVERIES.c.attempts + 1,
                        started_ms=sa.func.coalesce(DELIVERIES.c.started_ms, now),
                    )
                )
                if claimed.rowcount == 1:
                    return _delivery(connection.execute(_BY_ID, {"of_id": number}).one())
        return None

    def until_due(self, destination: str) -> timedelta | None:
        """Return the time until the next message becomes due; None if none waits."""
        heads = self._heads(destination).subquery()
        held = sa.func.coalesce(DELIVERIES.c.leased_until_ms, 0)
        at_ms = sa.case((held > DELIVERIES.c.not_before_ms, held), else_=DELIVERIES.c.not_before_ms)
        query = sa.select(sa.func.min(at_ms) - DatabaseNow()).join_from(
            DELIVERIES, heads, heads.c.id == DELIVERIES.c.id
        )
        with self.transaction() as connection:
            left_ms = connection.execute(query).scalar_one()
        return None if left_ms is None else timedelta(milliseconds=max(left_ms, 0))

    def finish(self, delivery: Delivery, worker: str, state: DeliveryState, outcome: str) -> None:
        """Close a claimed message; nothing is written where another worker has claimed it meanwhile."""
        self._change_held(delivery, worker, state=state.value, outcome=outcome, finished_ms=DatabaseNow())

    def postpone(self, delivery: Delivery, worker: str, reason: str, *, pause: timedelta) -> None:
        """Let a claimed message wait for its next attempt."""
        self._change_held(delivery, worker, outcome=reason, not_before_ms=DatabaseNow() + milliseconds(pause))

    def end(self, destination: str, reason: str) -> None:
        """End a destination: its messages become dead letters, and it gets no new ones until `resume`."""
        with self.transaction() as connection:
            ended = {"ended_ms": DatabaseNow(), "reason": for_database(reason, limit=_OUTCOME_LIMIT)}
            connection.execute(DESTINATIONS.update().where(DESTINATIONS.c.name == destination).values(ended))
            connection.execute(
                DELIVERIES.update()
                .where(DELIVERIES.c.destination == destination, DELIVERIES.c.state == DeliveryState.PENDING.value)
                .values(state=DeliveryState.DEAD.value, outcome=ended["reason"], finished_ms=DatabaseNow(), **_NO_LEASE)
            )

    def resume(self, destination: str) -> int:
        """Make all dead and waiting messages of a destination due now; one that had ended gets new ones again.

        Returns: the number of its messages that are due.

        Raises:
            DeliveryNotFoundError: no worker has ever had this destination in its settings.
        """
        with self.transaction() as connection:
            of_name = DESTINATIONS.c.name == destination
            if connection.execute(sa.select(DESTINATIONS.c.name).where(of_name)).first() is None:
                raise DeliveryNotFoundError(destination, "of a known destination")
            connection.execute(DESTINATIONS.update().where(of_name).values(ended_ms=None, reason=None))
            return connection.execute(
                DELIVERIES.update().where(DELIVERIES.c.destination == destination, _OPEN, _FREE).values(_DUE)
            ).rowcount

    def retry(self, number: int) -> None:
        """Make a dead or waiting message due now.

        Raises:
            DeliveryNotFoundError: there is no such message.
        """
        self._change_open(number, _DUE)

    def discard(self, number: int) -> None:
        """Close a dead or waiting message without delivering it.

        Raises:
            DeliveryNotFoundError: there is no such message.
        """
        closed = {"state": DeliveryState.DISCARDED.value, "finished_ms": DatabaseNow(), **_NO_LEASE}
        self._change_open(number, {**closed, "outcome": "discarded by hand"})

    def messages(self, *, states: Sequence[DeliveryState] = (), destination: str | None = None) -> Iterator[Delivery]:
        """Yield all messages, or those in some states or to one destination, the oldest first, read page by page."""
        wanted: list[sa.ColumnElement[bool]] = (
            [DELIVERIES.c.state.in_([state.value for state in states])] if states else []
        )
        if destination is not None:
            wanted.append(DELIVERIES.c.destination == destination)
        after = 0
        while True:
            page = sa.select(DELIVERIES).where(DELIVERIES.c.id > after, *wanted).order_by(DELIVERIES.c.id)
            with self.transaction() as connection:
                rows = connection.execute(page.limit(_PAGE)).all()
            yield from map(_delivery, rows)
            if len(rows) < _PAGE:
                return
            after = rows[-1].id

    def counts(self) -> Counter[tuple[str, DeliveryState]]:
        """Return the number of waiting and of dead messages of each destination."""
        query = sa.select(DELIVERIES.c.destination, DELIVERIES.c.state, sa.func.count().label("found"))
        with self.transaction() as connection:
            rows = connection.execute(query.where(_OPEN).group_by(DELIVERIES.c.destination, DELIVERIES.c.state)).all()
        return Counter({(row.destination, DeliveryState(row.state)): row.found for row in rows})

    def remove_finished(self, *, older_than: timedelta) -> None:
        """Delete delivered and discarded messages that were finished longer ago; dead letters stay."""
        finished = DELIVERIES.c.state.in_([DeliveryState.DONE.value, DeliveryState.DISCARDED.value])
        with self.transaction() as connection:
            before_ms = connection.execute(sa.select(DatabaseNow())).scalar_one() - milliseconds(older_than)
            connection.execute(DELIVERIES.delete().where(finished, DELIVERIES.c.finished_ms < before_ms))

    @staticmethod
    def _heads(destination: str) -> sa.Select[Any]:
        """The first open message of each channel, and of each model's other messages."""
        first = sa.func.min(DELIVERIES.c.id).label("id")
        of_destination = DELIVERIES.c.destination == destination
        query = sa.select(first).where(of_destination, DELIVERIES.c.state == DeliveryState.PENDING.value)
        return query.group_by(DELIVERIES.c.bucket, DELIVERIES.c.model, DELIVERIES.c.channel)

    def _change_held(self, delivery: Delivery, worker: str, *, outcome: str, **values: Any) -> None:
        held = (DELIVERIES.c.id == delivery.id) & (DELIVERIES.c.leased_by == worker)
        values = {"outcome": for_database(outcome, limit=_OUTCOME_LIMIT), **values, **_NO_LEASE}
        with self.transaction() as connection:
            connection.execute(DELIVERIES.update().where(held).values(values))

    def _change_open(self, number: int, values: Mapping[str, Any]) -> None:
        with self.transaction() as connection:
            changed = connection.execute(
                DELIVERIES.update().where(DELIVERIES.c.id == number, _OPEN, _FREE).values(values)
            )
            if changed.rowcount != 1:
                raise DeliveryNotFoundError(str(number), "dead or waiting (and not being sent)")

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a transaction whose errors are the bridge's."""
        with database_errors("record announcements"), self.engine.begin() as connection:
            yield connection


_FREE = DELIVERIES.c.leased_until_ms.is_(None) | (DELIVERIES.c.leased_until_ms < DatabaseNow())

_OPEN = DELIVERIES.c.state.in_([DeliveryState.PENDING.value, DeliveryState.DEAD.value])

_DUE: dict[str, Any] = {
    "state": DeliveryState.PENDING.value,
    "attempts": 0,
    "not_before_ms": 0,
    "started_ms": None,
    "finished_ms": None,
    **_NO_LEASE,
}

_BY_ID = sa.select(DELIVERIES).where(DELIVERIES.c.id == sa.bindparam("of_id"))


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        id=row.id,
        destination=row.destination,
        message_id=row.message_id,
        model=row.model,
        channel=row.channel,
        kind=row.kind,
        body=row.body,
        state=DeliveryState(row.state),
        attempts=row.attempts,
        created_at=to_time(row.created_ms),
        started_at=None if row.started_ms is None else to_time(row.started_ms),
        not_before=to_time(row.not_before_ms) if row.not_before_ms else None,
        outcome=row.outcome,
    )
