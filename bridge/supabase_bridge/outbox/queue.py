"""The outbox as the worker sees it: take an event, keep it, finish it; each model's events in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.sql.expression import ColumnElement

from supabase_bridge.errors import (
    EventNotFoundError,
    LeaseLostError,
    NotAnMlflowDatabaseError,
    OutboxContendedError,
    RegistryUnavailableError,
)
from supabase_bridge.outbox import clock, statements
from supabase_bridge.outbox.bells import Bell, open_bell
from supabase_bridge.outbox.events import Event, EventState
from supabase_bridge.outbox.rows import milliseconds, to_event, to_ms
from supabase_bridge.outbox.schema import META, OUTBOX, ensure_schema
from supabase_bridge.storable import storable

_OUTCOME_LIMIT = 2_000
_PAGE = 500
_BATCH = 500
_CANDIDATES = 32
_ROUNDS = 10
_DEADLOCK = {"40P01", "40001", 1213}


class Outbox:
    """The outbox in one database. Thread-safe. Every method is one transaction.

    Events of one model are handed out one at a time, in the order of their ids: while one is held by a worker, or an
    earlier one waits for its next attempt, no other is. Only the mirroring of a new version comes after all the rest,
    of its own model and of others: it moves no pointer, and a promotion mirrors what it needs. Models do not wait for
    each other.

    Raises (every method):
        RegistryUnavailableError: the database did not answer.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def engine(self) -> Engine:
        """The database that the outbox is in."""
        return self._engine

    def prepare(self) -> None:
        """Check that this is MLflow's database, and create the outbox's tables where they are missing.

        Raises:
            NotAnMlflowDatabaseError: it is reachable, but has no model registry.
            OutboxNewerError: a later release of the bridge has migrated its outbox.
        """
        with _named_errors("open its database"):
            url = self._engine.url
            # SQLite would create a file that is not there.
            absent = url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file()
            if absent or not sa.inspect(self._engine).has_table("registered_models"):
                raise NotAnMlflowDatabaseError(url.set(query={}).render_as_string(hide_password=True))
            ensure_schema(self._engine)

    def registry_id(self) -> str:
        """The identity of this registry: with an event's id it names a change once and for all."""
        with self._transaction() as connection:
            return str(connection.execute(sa.select(META.c.registry_id)).scalar_one())

    def now(self) -> datetime:
        """The time by the database's clock, which all workers of a registry share."""
        with _named_errors("reach its database"):
            return clock.database_now(self._engine)

    def claim(self, worker: str, *, lease: timedelta, now: datetime | None = None) -> Event | None:
        """Take the first event that may be worked on now, or None. It counts as an attempt.

        No other worker gets an event of the same model while the lease lasts. An event whose lease has ended is taken
        over; whoever held it, or another event of its model for too long, can write nothing more about it.

        Args:
            now: The time, in place of the database's own. Workers on several machines leave it to the database: their
                clocks differ.
        """
        moment = clock.moment(now)
        for _ in range(_ROUNDS):
            with self._transaction() as connection:
                ids = connection.execute(statements.due(moment, limit=_CANDIDATES)).scalars().all()
            if not ids:
                return None
            try:
                event = self._take_one(ids, worker, moment, milliseconds(lease))
            except OutboxContendedError:
                continue
            if event is not None:
                return event
        return None

    def _take_one(self, ids: Sequence[int], worker: str, moment: ColumnElement[int], lease_ms: int) -> Event | None:
        """Lease the first of some events that is due still and in no other worker's hands; None: there is none."""
        with self._transaction() as connection:
            if connection.dialect.name == "sqlite":
                # Alone from here on: a transaction that reads first and writes then fails if another one wrote between.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            event_id = connection.execute(statements.lock_one(ids, moment)).scalar_one_or_none()
            if event_id is None:
                return None
            due = connection.execute(statements.still_due(event_id, moment)).first()
            if due is None:
                return None
            ended = connection.execute(statements.ended_leases(due.workspace, due.model, moment)).scalars().all()
            if ended:
                connection.execute(statements.end_leases(ended, moment))
            connection.execute(statements.take(event_id, worker, moment, lease_ms))
            return self._get(connection, event_id)

    def until_due(self, *, now: datetime | None = None) -> timedelta | None:
        """How long until an event that waits may be taken up; None where none waits for a time to come."""
        with self._transaction() as connection:
            left_ms = connection.execute(statements.until_due(clock.moment(now))).scalar_one()
        return None if left_ms is None else timedelta(milliseconds=left_ms)

    def bell(self, *, poll_interval: timedelta) -> Bell:
        """What tells a worker that the outbox has changed, as this database can tell it.

        Args:
            poll_interval: How long to wait where it cannot.
        """
        return open_bell(self._engine, poll_interval=poll_interval)

    def renew(self, event: Event, worker: str, *, lease: timedelta, now: datetime | None = None) -> None:
        """Keep an event that is still being worked on.

        Args:
            now: See `claim`.

        Raises:
            LeaseLostError: another worker has taken it over.
        """
        self._change_held(event, worker, leased_until_ms=clock.moment(now) + milliseconds(lease))

    def finish(
        self, event: Event, worker: str, state: EventState, outcome: str, *, now: datetime | None = None
    ) -> None:
        """Close an event for good, and say what became of it.

        Args:
            now: See `claim`.

        Raises:
            LeaseLostError: another worker has taken it over; nothing is written.
        """
        self._change_held(
            event,
            worker,
            state=state.value,
            outcome=storable(outcome, limit=_OUTCOME_LIMIT),
            finished_ms=clock.moment(now),
            leased_by=None,
            leased_until_ms=None,
        )

    def postpone(self, event: Event, worker: str, reason: str, *, until: datetime) -> None:
        """Give an event back; nobody takes it up before `until`.

        Raises:
            LeaseLostError: another worker has taken it over; nothing is written.
        """
        self._change_held(
            event,
            worker,
            not_before_ms=to_ms(until),
            outcome=storable(reason, limit=_OUTCOME_LIMIT),
            leased_by=None,
            leased_until_ms=None,
        )

    def arrivals(self, workspace: str, model: str, *, stages: Sequence[str], aliases: Sequence[str]) -> Sequence[Event]:
        """Each version's newest arrival in one of the stages or aliases, the newest first.

        Events that a person discarded do not count: what they asked for was taken back. Nor do those of a deleted model
        that had the same name.
        """
        with self._transaction() as connection:
            rows = connection.execute(statements.arrivals(workspace, model, stages, aliases))
            return [to_event(row) for row in rows]

    def has_failed_since(self, event: Event) -> bool:
        """Whether a later event about the same version failed for good."""
        with self._transaction() as connection:
            return connection.execute(statements.failed_since(event)).first() is not None

    def events(
        self,
        *,
        states: Sequence[EventState] = (),
        model: str | None = None,
        after: int | None = None,
        newest_first: bool = False,
    ) -> Iterator[Event]:
        """All events, or those in some states or of one model, the oldest first, read page by page.

        Args:
            after: Begin behind this event, in the order asked for.
            newest_first: The newest first instead.
        """
        query = OUTBOX.select().order_by(OUTBOX.c.id.desc() if newest_first else OUTBOX.c.id).limit(_PAGE)
        if states:
            query = query.where(OUTBOX.c.state.in_([state.value for state in states]))
        if model is not None:
            query = query.where(OUTBOX.c.model == model)
        while True:
            page = query
            if after is not None:
                page = query.where(OUTBOX.c.id < after if newest_first else OUTBOX.c.id > after)
            with self._transaction() as connection:
                rows = connection.execute(page).all()
            yield from map(to_event, rows)
            if len(rows) < _PAGE:
                return
            after = rows[-1].id

    def remove_finished(self, *, older_than: timedelta, after: int = 0, now: datetime | None = None) -> int | None:
        """Remove a batch of events finished longer ago than this that nothing needs any more.

        What is kept: failed events, which wait for a person, and each version's newest arrival in a stage or alias and
        the newest that was carried out, by which `arrivals` answers.

        Args:
            after: Where to go on: what the call before returned.

        Returns:
            The last id of the batch; None where nothing is left to remove.
        """
        with self._transaction() as connection:
            before_ms = connection.execute(sa.select(clock.moment(now))).scalar_one() - milliseconds(older_than)
            ids = connection.execute(statements.removable(before_ms, after_id=after, limit=_BATCH)).scalars().all()
        if not ids:
            return None
        with self._transaction() as connection:
            connection.execute(statements.remove(ids))
        return int(ids[-1])

    def get(self, event_id: int) -> Event:
        """One event.

        Raises:
            EventNotFoundError: there is none.
        """
        with self._transaction() as connection:
            return self._get(connection, event_id)

    def retry(self, event_id: int) -> None:
        """Let a dead or waiting event be taken up again at once, its attempts counted anew.

        Raises:
            EventNotFoundError: there is none, or it is neither dead nor waiting.
        """
        self._change_by_hand(
            event_id,
            (EventState.DEAD, EventState.PENDING),
            state=EventState.PENDING.value,
            attempts=0,
            not_before_ms=0,
            started_ms=None,
            finished_ms=None,
        )

    def discard(self, event_id: int, *, now: datetime | None = None) -> None:
        """Let an event go for good without doing what it asks for.

        Args:
            now: See `claim`.

        Raises:
            EventNotFoundError: there is none, or it is neither dead nor waiting.
        """
        self._change_by_hand(
            event_id,
            (EventState.DEAD, EventState.PENDING),
            state=EventState.DISCARDED.value,
            outcome="discarded by hand",
            finished_ms=clock.moment(now),
        )

    def _get(self, connection: Connection, event_id: int) -> Event:
        row = connection.execute(OUTBOX.select().where(OUTBOX.c.id == event_id)).first()
        if row is None:
            raise EventNotFoundError(event_id, "there")
        return to_event(row)

    def _change_held(self, event: Event, worker: str, **values: Any) -> None:
        for left in reversed(range(_ROUNDS)):
            try:
                with self._transaction() as connection:
                    if connection.execute(statements.change_held(event, worker, values)).rowcount != 1:
                        raise LeaseLostError(event.id)
                    self._ring(connection)
            except OutboxContendedError:
                if left == 0:
                    raise
            else:
                return

    def _change_by_hand(self, event_id: int, states: Sequence[EventState], **values: Any) -> None:
        free = OUTBOX.c.leased_by.is_(None) & OUTBOX.c.state.in_([state.value for state in states])
        with self._transaction() as connection:
            if connection.execute(OUTBOX.update().where(OUTBOX.c.id == event_id, free).values(values)).rowcount != 1:
                raise EventNotFoundError(event_id, "dead or waiting (and not being worked on)")
            self._ring(connection)

    def _ring(self, connection: Connection) -> None:
        """Wake the workers at the commit: this event, or the next one of its model, may be due."""
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_notify(statements.CHANNEL, "")))

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with _named_errors("reach its database"), self._engine.begin() as connection:
            yield connection


@contextmanager
def _named_errors(operation: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        # Refused by the index of events in hand, or chosen to end a deadlock: another worker was faster.
        overtaken = isinstance(error, IntegrityError) or _DEADLOCK & {*_codes_of(cause)}
        kind = OutboxContendedError if overtaken else RegistryUnavailableError
        raise kind(operation, str(cause).strip().split("\n")[0][:300]) from error


def _codes_of(cause: BaseException) -> Iterator[Any]:
    """How PostgreSQL's drivers name an error, and MySQL's."""
    yield from (getattr(cause, "sqlstate", None), getattr(cause, "pgcode", None), *cause.args[:1])
