"""An outbox on each kind of database, with changes to record and events to claim."""

from __future__ import annotations

import sqlite3
from datetime import datetime, timedelta, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.core.events import DEFAULT_WORKSPACE, Event, EventKind, EventState, NewEvent, Triggers
from supabase_bridge.outbox.database import connect as connect_outbox
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.record import append
from supabase_bridge.outbox.schema import ensure_schema
from supabase_bridge.outbox.tables import OUTBOX

NOW = datetime(2025, 11, 1, 12, tzinfo=timezone.utc)
LEASE = timedelta(seconds=60)
LATEST = Triggers(channel="latest", stages=("Production",), aliases=("champion",))


def connect(url: str) -> Engine:
    """Make an engine as the bridge does; a SQLite file is not flushed to the disk."""
    engine = connect_outbox(url, connections=20)
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def _without_flushing(connection: sqlite3.Connection, _: object) -> None:
            connection.execute("PRAGMA synchronous = OFF")

    return engine


def record(engine: Engine, kind: EventKind = EventKind.STAGE_CHANGED, **facts: Any) -> int:
    """Record a change of version 1 of model "a", unless `facts` say otherwise; returns the event's id."""
    if kind is EventKind.STAGE_CHANGED:
        facts = {"stage": "Production", "previous_stage": "None", **facts}
    event = NewEvent(**{"kind": kind, "workspace": DEFAULT_WORKSPACE, "model": "a", "version": 1, **facts})
    with engine.begin() as connection:
        append(connection, event)
        return int(connection.execute(sa.select(sa.func.max(OUTBOX.c.id))).scalar_one())


def claim(outbox: Outbox, worker: str = "w", *, after: timedelta = timedelta()) -> Event | None:
    return outbox.claim(worker, now=NOW + after, lease=LEASE)


def claimed(outbox: Outbox, worker: str = "w", *, after: timedelta = timedelta()) -> Event:
    event = claim(outbox, worker, after=after)
    assert event is not None
    return event


def finish(outbox: Outbox, event: Event, worker: str = "w", state: EventState = EventState.DONE) -> None:
    outbox.finish(event, worker, state, "outcome", now=NOW)


def in_hand(outbox: Outbox) -> list[int]:
    """Claim all events that are due; return their ids."""
    found: list[int] = []
    while (event := claim(outbox)) is not None:
        found.append(event.id)
    return found


def prepare_with_others(url: str, ready: Any) -> None:
    """Prepare the tables at the same moment as other processes."""
    engine = connect(url)
    ready.wait()
    ensure_schema(engine)
    engine.dispose()
