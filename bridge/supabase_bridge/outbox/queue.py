"""The outbox as a queue: claim, renew, finish, postpone, list and remove events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from supabase_bridge.core.backoff import takeover_pause
from supabase_bridge.core.events import Event, EventState, Triggers
from supabase_bridge.core.text import for_database
from supabase_bridge.outbox import database, sql
from supabase_bridge.outbox.database import database_errors, milliseconds, now_sql
from supabase_bridge.outbox.errors import ContentionError, DatabaseError, EventNotFoundError, LeaseLostError
from supabase_bridge.outbox.schema import ensure_schema
from supabase_bridge.outbox.tables import META, OUTBOX
from supabase_bridge.settings.model import Settings

_OUTCOME_LIMIT = 2_000
_NO_LEASE: dict[str, Any] = {"leased_by": None, "leased_until_ms": None}
_PAGE = 500
_LEASE, _LONGEST_PAUSE = timedelta(seconds=60), timedelta(minutes=5)
_CANDIDATES = 32
_ROUNDS = 10


class Outbox:
    """The outbox in one database. Thread-safe. Every method is one transaction.

    A worker that claims an event holds its model, except while it uploads files. The newest change of a model comes
    first, and supersedes the earlier ones of its channels. An event that waits for its next attempt delays no other.
    Events that only mirror a new version come last, after the changes of all models. Models take turns. Only after all
    others comes an event whose leases ended three times; until then the pauses after each ended lease grow.

    Args:
        engine: The engine of the outbox's database.
        lease: The longest lease of any worker. A lease that ends later was made while a clock was wrong.
        longest_pause: The longest time between two attempts at an event.

    Raises (every method):
        RegistryUnavailableError: the database did not answer.
    """

    def __init__(self, engine: Engine, *, lease: timedelta = _LEASE, longest_pause: timedelta = _LONGEST_PAUSE) -> None:
        self.engine = engine
        self._longest_lease = lease
        self._longest_pause = longest_pause
        self._served = ("", "")

    def prepare(self) -> None:
        """Check that this is MLflow's database, and create the outbox's tables if they are missing.

        Raises:
            DatabaseError: the database has no model registry, or a later release has migrated the outbox's tables.
        """
        with database_errors("open its database"):
            url = self.engine.url
            # SQLite would create a missing file.
            absent = url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file()
            if absent or not sa.inspect(self.engine).has_table("registered_models"):
                raise DatabaseError(
                    url.set(query={}).render_as_string(hide_password=True),
                    "is not an MLflow database (it has no table registered_models). Start `supabase-bridge server` "
                    "once, or point SUPABASE_BRIDGE_DATABASE_URL at MLflow's --backend-store-uri",
                )
            ensure_schema(self.engine)

    def registry_id(self) -> str:
        """Return the identity of this registry; together with an event's id it is globally unique."""
        with self._transaction() as connection:
            return str(connection.execute(sa.select(META.c.registry_id)).scalar_one())

    def now(self) -> datetime:
        """Return the time of the database's clock, which all workers of a registry share."""
        with database_errors("reach its database"):
            return database.database_now(self.engine)

    def claim(
        self,
        worker: str,
        *,
        lease: timedelta,
        now: datetime | None = None,
        unclaimed_since: datetime | None = None,
        event_id: int | None = None,
        lone: bool = True,
        changes_only: bool = False,
    ) -> Event | None:
        """Claim the first event that is due; None if there is none. The claim counts as an attempt.

        No other worker can claim an event of the same model during the lease, except after `start_upload`. After the
        lease the event can be claimed again; the worker that held it can then no longer write its result.

        Args:
            now: The time. Default: the database's own clock, because the workers' clocks differ.
            unclaimed_since: Only an event that no worker has claimed at or after this time.
            event_id: Only this event.
            lone: False where the worker process is busy, so that it may claim no event that it has to try alone.
            changes_only: No event that only mirrors a new version.
        """
        moment = replace(self._moment(now), lone=lone, changes_only=changes_only)
        before_ms = None if unclaimed_since is None else database.to_ms(unclaimed_since)
        for _ in range(_ROUNDS):
            query = sql.due(moment, served=self._served, limit=_CANDIDATES, before_ms=before_ms, event_id=event_id)
            with self._transaction() as connection:
                ids = connection.execute(query).scalars().all()
            if not ids:
                break
            try:
                event = self._lease_one(ids, worker, moment, milliseconds(lease))
            except ContentionError:
                continue
            if event is not None:
                self._served = (event.workspace, event.model)
                return event
        return None

    def _lease_one(self, ids: Sequence[int], worker: str, moment: sql.Moment, lease_ms: int) -> Event | None:
        """Lease the first of some events that is still due and free; None if there is none."""
        with self._transaction() as connection:
            if connection.dialect.name == "sqlite":
                # Lock first: a transaction that reads and then writes fails if another one wrote in between.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            event_id = connection.execute(sql.lock_one(ids, moment, served=self._served)).scalar_one_or_none()
            if event_id is None:
                return None
            due = connection.execute(sql.still_due(event_id, moment)).first()
            if due is None:
                return None
            ended = connection.execute(sql.ended_leases(due.workspace, due.model, moment)).all()
            for row in ended:
                takeovers = row.takeovers + 1
                pause_ms = milliseconds(takeover_pause(takeovers, self._longest_pause))
                connection.execute(sql.end_lease(row.id, moment, takeovers=takeovers, pause_ms=pause_ms))
            if ended and connection.execute(sql.still_due(event_id, moment)).first() is None:
                return None  # Its next attempt comes later; the ended leases are recorded.
            connection.execute(sql.lease(event_id, worker, moment.now, lease_ms))
            return self._get(connection, event_id)

    def until_due(self, *, now: datetime | None = None) -> timedelta | None:
        """Return the time until the next event becomes due or a lease ends; None if neither will."""
        with self._transaction() as connection:
            left_ms = connection.execute(sql.until_due(now_sql(now))).scalar_one()
        return None if left_ms is None else timedelta(milliseconds=left_ms)

    def renew(self, event: Event, worker: str, *, lease: timedelta, now: datetime | None = None) -> None:
        """Extend the lease of a held event.

        Raises:
            LeaseLostError: the worker no longer holds the event.
        """
        self._change_held(event, worker, leased_until_ms=now_sql(now) + milliseconds(lease))

    def finish(
        self, event: Event, worker: str, state: EventState, outcome: str, *, now: datetime | None = None
    ) -> None:
        """Close an event with its final state and outcome.

        Raises:
            LeaseLostError: the worker no longer holds the event; nothing is written.
        """
        self._change_held(
            event,
            worker,
            state=state.value,
            outcome=for_database(outcome, limit=_OUTCOME_LIMIT),
            finished_ms=now_sql(now),
            **_NO_LEASE,
        )

    def start_upload(self, event: Event, version: int) -> None:
        """Release the model of a held event, but not the event, while its worker uploads the files of a version.

        Raises:
            LeaseLostError, ContentionError: it no longer holds the event; another event uploads the version.
        """
        self._change_held(event, event.leased_by, uploading=version)

    def end_upload(self, event: Event) -> None:
        """Hold the model again, if it was released.

        Raises:
            LeaseLostError, ContentionError: it no longer holds the event; another event holds the model.
        """
        self._change_held(event, event.leased_by, uploading=0)

    def supersede(
        self,
        event: Event,
        followed: Sequence[Triggers],
        others: Sequence[Triggers],
        *,
        now: datetime | None = None,
    ) -> Sequence[int]:
        """Close the earlier changes that an assignment supersedes, in one statement; no worker may hold them.

        Args:
            followed: The channels that follow the assignment. An event that moves one of the `others` too stays open.

        Returns: the versions of those that a worker has attempted; their tags may describe the attempt.
        """
        older = sql.superseded_by(event, followed, others)
        outcome = f"version {event.version} came to {followed[0].channel} after version "
        with self._transaction() as connection:
            versions = connection.execute(sql.attempted_versions(older)).scalars().all()
            connection.execute(sql.supersede(older, outcome, self._moment(now)))
        return [version for version in versions if version is not None]

    def postpone(
        self,
        event: Event,
        worker: str,
        reason: str,
        *,
        until: datetime | None,
        failed: bool = False,
        unexpected: bool = False,
    ) -> None:
        """Release an event; no worker can claim it before `until`.

        Args:
            until: None: the attempt had no result, because another event holds the model or uploads the version, or
                because the worker stops. The event is due at once, or when the other one has finished.
            failed: The attempt failed. Any other one does not count as an attempt.
            unexpected: It ended in an unexpected exception.

        Raises:
            LeaseLostError: the worker no longer holds the event; nothing is written.
        """
        values: dict[str, Any] = {"claimed_ms": None} if until is None else {"takeovers": 0}
        self._change_held(
            event,
            worker,
            **values,
            attempts=event.attempts - (not failed),
            not_before_ms=0 if until is None else database.to_ms(until),
            outcome=for_database(reason, limit=_OUTCOME_LIMIT),
            failures=event.failures + unexpected,
            **_NO_LEASE,
        )

    def assignments(self, workspace: str, model: str, triggers: Triggers) -> Sequence[Event]:
        """Return each version's newest assignment to each stage and alias of a channel, the newest first.

        Discarded events do not count, nor do those of a deleted model with the same name.
        """
        with self._transaction() as connection:
            rows = connection.execute(sql.ASSIGNMENTS, sql.of_channel(workspace, model, triggers))
            return [sql.to_event(row) for row in rows]

    def last_activated(self, workspace: str, model: str, triggers: Triggers, *, other_than: int) -> Event | None:
        """Return the newest assignment of another version to a channel that a worker has carried out."""
        values = sql.of_channel(workspace, model, triggers, of_version=other_than)
        with self._transaction() as connection:
            row = connection.execute(sql.LAST_ACTIVATED, values).first()
        return None if row is None else sql.to_event(row)

    def was_activated(self, workspace: str, model: str, triggers: Triggers, *, version: int) -> bool:
        """Return whether a worker has carried out an assignment of a version to a channel."""
        values = sql.of_channel(workspace, model, triggers, of_version=version)
        with self._transaction() as connection:
            return connection.execute(sql.WAS_ACTIVATED, values).first() is not None

    def has_failed_since(self, event: Event) -> bool:
        """Return whether a later event about the same version is dead."""
        with self._transaction() as connection:
            return connection.execute(sql.failed_since(event)).first() is not None

    def events(
        self,
        *,
        states: Sequence[EventState] = (),
        model: str | None = None,
        after: int | None = None,
        newest_first: bool = False,
    ) -> Iterator[Event]:
        """Yield all events, or those in some states or of one model, the oldest first, read page by page.

        Args:
            after: Start behind this event, in the requested order.
            newest_first: The newest first instead.
        """
        while True:
            page = sql.page(states, model=model, after=after, newest_first=newest_first, limit=_PAGE)
            with self._transaction() as connection:
                rows = connection.execute(page).all()
            yield from map(sql.to_event, rows)
            if len(rows) < _PAGE:
                return
            after = rows[-1].id

    def remove_finished(self, *, older_than: timedelta, after: int = 0, now: datetime | None = None) -> int | None:
        """Delete a batch of events that finished longer ago than `older_than` and that nothing needs any more.

        Dead events stay, because an operator must decide about them. Each version's newest assignment, and its newest
        activated one, stay for `assignments` and the promotion gate.

        Args:
            after: The result of the previous call.

        Returns:
            The last id of the batch; None if nothing is left to delete.
        """
        with self._transaction() as connection:
            before_ms = connection.execute(sa.select(now_sql(now))).scalar_one() - milliseconds(older_than)
            ids = connection.execute(sql.removable(before_ms, after_id=after, limit=_PAGE)).scalars().all()
        if not ids:
            return None
        with self._transaction() as connection:
            connection.execute(sql.remove(ids))
        return int(ids[-1])

    def get(self, event_id: int) -> Event:
        """Return one event.

        Raises:
            EventNotFoundError: the event does not exist.
        """
        with self._transaction() as connection:
            return self._get(connection, event_id)

    def retry(self, event_id: int, *, now: datetime | None = None) -> None:
        """Make an event that is dead, or that no worker holds, due at once, and reset its attempts.

        Raises:
            EventNotFoundError: there is no such event.
        """
        self._change_free(
            event_id,
            now,
            state=EventState.PENDING.value,
            attempts=0,
            failures=0,
            takeovers=0,
            not_before_ms=0,
            claimed_ms=None,
            started_ms=None,
            finished_ms=None,
        )

    def discard(self, event_id: int, *, now: datetime | None = None) -> None:
        """Close an event without carrying it out.

        Raises:
            EventNotFoundError: the event does not exist, or is neither dead nor waiting.
        """
        discarded = {"state": EventState.DISCARDED.value, "outcome": "discarded by hand", "finished_ms": now_sql(now)}
        self._change_free(event_id, now, **discarded)

    def _moment(self, now: datetime | None) -> sql.Moment:
        return sql.Moment(
            now=now_sql(now),
            lease_ms=milliseconds(self._longest_lease * 1.1),
            pause_ms=milliseconds(self._longest_pause * 1.1),
        )

    def _get(self, connection: Connection, event_id: int) -> Event:
        row = connection.execute(OUTBOX.select().where(OUTBOX.c.id == event_id)).first()
        if row is None:
            raise EventNotFoundError(event_id, "there")
        return sql.to_event(row)

    def _change_held(self, event: Event, worker: str | None, **values: Any) -> None:
        for left in reversed(range(_ROUNDS)):
            try:
                with self._transaction() as connection:
                    if connection.execute(sql.change_held(event, worker, values)).rowcount != 1:
                        raise LeaseLostError(event.id)
                    self._wake(connection)
            except ContentionError:
                if left == 0:
                    raise
            else:
                return

    def _change_free(self, event_id: int, now: datetime | None, **values: Any) -> None:
        open_states = OUTBOX.c.state.in_([EventState.DEAD.value, EventState.PENDING.value])
        free = self._moment(now).free() & open_states
        with self._transaction() as connection:
            changed = connection.execute(
                OUTBOX.update().where(OUTBOX.c.id == event_id, free).values(values | _NO_LEASE)
            )
            if changed.rowcount != 1:
                raise EventNotFoundError(event_id, "dead or waiting (and not being worked on)")
            self._wake(connection)

    def _wake(self, connection: Connection) -> None:
        """Wake the workers at the commit: the next event of the model may be due."""
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_notify(sql.CHANNEL, "")))

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with database_errors("reach its database"), self.engine.begin() as connection:
            yield connection


@contextmanager
def open_outbox(settings: Settings) -> Iterator[Outbox]:
    """Open the outbox of MLflow's database for the length of a block, and create its tables if they are missing.

    Raises:
        SettingsError: the database URL is malformed, or its driver is not installed.
        DatabaseError, RegistryUnavailableError: see `Outbox.prepare`.
    """
    # One connection for each claimed event (one more than `concurrency`), one for each renewal, and one to listen.
    engine = database.connect(settings.database_url, connections=2 * settings.concurrency + 5)
    try:
        outbox = Outbox(engine, lease=settings.lease, longest_pause=settings.retry_cap)
        outbox.prepare()
        yield outbox
    finally:
        engine.dispose()
