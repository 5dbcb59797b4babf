"""The outbox as the worker sees it: take an event, keep it, finish it; each model's events in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from supabase_bridge.errors import (
    EventNotFoundError,
    LeaseLostError,
    NotAnMlflowDatabaseError,
    RegistryUnavailableError,
)
from supabase_bridge.outbox.events import Event, EventKind, EventState
from supabase_bridge.outbox.rows import milliseconds, to_event, to_ms
from supabase_bridge.outbox.schema import META, OUTBOX, ensure_schema

_OUTCOME_LIMIT = 2_000
_PAGE = 500
_CANDIDATES = 8
_PENDING = OUTBOX.c.state == EventState.PENDING.value


class Outbox:
    """The outbox in one database. Thread-safe. Every method is one transaction.

    Events of one model are handed out one at a time, in the order of their ids: while one is held by a worker, or an
    earlier one waits for its next attempt, no other is. Only the mirroring of a new version holds nobody up while it
    waits: it moves no pointer, and a promotion mirrors what it needs. Models do not wait for each other.

    Raises (every method):
        RegistryUnavailableError: the database did not answer.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def prepare(self) -> None:
        """Check that this is MLflow's database, and create the outbox's tables where they are missing.

        Raises:
            NotAnMlflowDatabaseError: it is reachable, but has no model registry.
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

    def claim(self, worker: str, *, now: datetime, lease: timedelta) -> Event | None:
        """Take the oldest event that may be worked on now, or None. It counts as an attempt.

        Two workers never get the same event while its lease lasts: the row changes only if it still is as it was read.
        Two that took different events of one model at the same moment each look again; the later event is given back.
        """
        for found, attempts in self._due(now):
            event = self._take(found, attempts, worker, now=now, lease=lease)
            if event is not None and self._is_earliest_held(event, now):
                return event
            if event is not None:
                self._change_held(event, worker, attempts=attempts, leased_by=None, leased_until_ms=None)
        return None

    def _due(self, now: datetime) -> Sequence[tuple[int, int]]:
        """The ids and attempts of events that may be worked on now, the oldest first."""
        moment = to_ms(now)
        other = OUTBOX.alias("other")
        comes_first = (other.c.id < OUTBOX.c.id) & (other.c.kind != EventKind.VERSION_CREATED.value)
        blocked = sa.exists().where(
            other.c.state == EventState.PENDING.value,
            other.c.workspace == OUTBOX.c.workspace,
            other.c.model == OUTBOX.c.model,
            other.c.id != OUTBOX.c.id,
            comes_first | (other.c.leased_until_ms >= moment),
        )
        query = (
            sa.select(OUTBOX.c.id, OUTBOX.c.attempts)
            .where(_PENDING, OUTBOX.c.not_before_ms <= moment, _free(moment), ~blocked)
            .order_by(OUTBOX.c.id)
            .limit(_CANDIDATES)
        )
        with self._transaction() as connection:
            return [(row.id, row.attempts) for row in connection.execute(query)]

    def _take(self, event_id: int, attempts: int, worker: str, *, now: datetime, lease: timedelta) -> Event | None:
        """Lease an event if it still is as it was read."""
        moment = to_ms(now)
        unchanged = (OUTBOX.c.id == event_id) & _PENDING & _free(moment) & (OUTBOX.c.attempts == attempts)
        values = {
            "attempts": attempts + 1,
            "leased_by": worker,
            "leased_until_ms": moment + milliseconds(lease),
            "started_ms": sa.func.coalesce(OUTBOX.c.started_ms, moment),
        }
        with self._transaction() as connection:
            taken = connection.execute(OUTBOX.update().where(unchanged).values(values)).rowcount == 1
            return self._get(connection, event_id) if taken else None

    def _is_earliest_held(self, event: Event, now: datetime) -> bool:
        """False where a worker holds an earlier event of the same model."""
        earlier = sa.select(OUTBOX.c.id).where(
            _PENDING,
            OUTBOX.c.workspace == event.workspace,
            OUTBOX.c.model == event.model,
            OUTBOX.c.id < event.id,
            OUTBOX.c.leased_until_ms >= to_ms(now),
        )
        with self._transaction() as connection:
            return connection.execute(earlier).first() is None

    def renew(self, event: Event, worker: str, *, now: datetime, lease: timedelta) -> None:
        """Keep an event that is still being worked on.

        Raises:
            LeaseLostError: another worker has taken it over.
        """
        self._change_held(event, worker, leased_until_ms=to_ms(now) + milliseconds(lease))

    def finish(self, event: Event, worker: str, state: EventState, outcome: str, *, now: datetime) -> None:
        """Close an event for good, and say what became of it.

        Raises:
            LeaseLostError: another worker has taken it over; nothing is written.
        """
        self._change_held(
            event,
            worker,
            state=state.value,
            outcome=outcome[:_OUTCOME_LIMIT],
            finished_ms=to_ms(now),
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
            outcome=reason[:_OUTCOME_LIMIT],
            leased_by=None,
            leased_until_ms=None,
        )

    def arrivals(self, workspace: str, model: str, *, stages: Sequence[str], aliases: Sequence[str]) -> Sequence[Event]:
        """Each version's newest arrival in one of the stages or aliases, the newest first.

        Events that a person discarded do not count: what they asked for was taken back. Nor do those of a deleted model
        that had the same name.
        """
        staged = (OUTBOX.c.kind == EventKind.STAGE_CHANGED.value) & OUTBOX.c.stage.in_(stages)
        aliased = (OUTBOX.c.kind == EventKind.ALIAS_SET.value) & OUTBOX.c.alias.in_(aliases)
        newest = (
            sa.select(sa.func.max(OUTBOX.c.id))
            .where(OUTBOX.c.workspace == workspace, OUTBOX.c.model == model, staged | aliased)
            .where(OUTBOX.c.state != EventState.DISCARDED.value, ~OUTBOX.c.model_deleted)
            .group_by(OUTBOX.c.version, OUTBOX.c.stage, OUTBOX.c.alias)
        )
        with self._transaction() as connection:
            rows = connection.execute(OUTBOX.select().where(OUTBOX.c.id.in_(newest)).order_by(OUTBOX.c.id.desc()))
            return [to_event(row) for row in rows]

    def events(self, *, states: Sequence[EventState] = (), model: str | None = None) -> Iterator[Event]:
        """All events, or those in some states or of one model, the oldest first, read page by page."""
        query = OUTBOX.select().order_by(OUTBOX.c.id).limit(_PAGE)
        if states:
            query = query.where(OUTBOX.c.state.in_([state.value for state in states]))
        if model is not None:
            query = query.where(OUTBOX.c.model == model)
        last = 0
        while True:
            with self._transaction() as connection:
                rows = connection.execute(query.where(OUTBOX.c.id > last)).all()
            yield from map(to_event, rows)
            if len(rows) < _PAGE:
                return
            last = rows[-1].id

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

    def discard(self, event_id: int, *, now: datetime) -> None:
        """Let an event go for good without doing what it asks for.

        Raises:
            EventNotFoundError: there is none, or it is neither dead nor waiting.
        """
        self._change_by_hand(
            event_id,
            (EventState.DEAD, EventState.PENDING),
            state=EventState.DISCARDED.value,
            outcome="discarded by hand",
            finished_ms=to_ms(now),
        )

    def _get(self, connection: Connection, event_id: int) -> Event:
        row = connection.execute(OUTBOX.select().where(OUTBOX.c.id == event_id)).first()
        if row is None:
            raise EventNotFoundError(event_id, "there")
        return to_event(row)

    def _change_held(self, event: Event, worker: str, **values: Any) -> None:
        held = (OUTBOX.c.id == event.id) & (OUTBOX.c.leased_by == worker) & (OUTBOX.c.attempts == event.attempts)
        with self._transaction() as connection:
            if connection.execute(OUTBOX.update().where(held).values(values)).rowcount != 1:
                raise LeaseLostError(event.id)

    def _change_by_hand(self, event_id: int, states: Sequence[EventState], **values: Any) -> None:
        free = OUTBOX.c.leased_by.is_(None) & OUTBOX.c.state.in_([state.value for state in states])
        with self._transaction() as connection:
            if connection.execute(OUTBOX.update().where(OUTBOX.c.id == event_id, free).values(values)).rowcount != 1:
                raise EventNotFoundError(event_id, "dead or waiting (and not being worked on)")

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
        raise RegistryUnavailableError(operation, str(cause).strip().split("\n")[0][:300]) from error


def _free(moment: int) -> sa.ColumnElement[bool]:
    """No worker holds the event at a moment, in milliseconds."""
    return OUTBOX.c.leased_until_ms.is_(None) | (OUTBOX.c.leased_until_ms < moment)
