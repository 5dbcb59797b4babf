"""Periodic tasks of the whole cluster: next due time, cursor, and a lock so that one worker runs each."""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError

from supabase_bridge.outbox.database import milliseconds, now_sql
from supabase_bridge.outbox.tables import PERIODIC_TASKS

RECONCILE = "reconcile"


def acquire_run(engine: Engine, name: str, *, interval: timedelta, now: datetime | None = None) -> bool:
    """Return whether the caller shall run a task now; no other caller runs it for `interval`.

    Of any number of concurrent callers, exactly one gets True. If that caller is killed, one run is lost.

    Args:
        now: The time. Default: the database's own clock, because the callers' clocks differ.
    """
    moment = now_sql(now)
    due = (PERIODIC_TASKS.c.name == name) & (PERIODIC_TASKS.c.due_ms <= moment)
    ensure(engine, name)
    with engine.begin() as connection:
        next_due = {"due_ms": moment + milliseconds(interval)}
        return connection.execute(PERIODIC_TASKS.update().where(due).values(next_due)).rowcount == 1


def lock(connection: Connection, name: str) -> None:
    """Lock a task until the transaction of `connection` ends; the task's row must exist, see `ensure`.

    It must be the first statement of the transaction. The lock is a write, so on SQLite all later reads are current.
    """
    connection.execute(PERIODIC_TASKS.update().where(PERIODIC_TASKS.c.name == name).values(name=name))


def cursor(engine: Engine, name: str) -> str:
    """Return where the last run of a task stopped; empty at the beginning."""
    ensure(engine, name)
    with engine.begin() as connection:
        query = sa.select(PERIODIC_TASKS.c.place).where(PERIODIC_TASKS.c.name == name)
        return str(connection.execute(query).scalar_one())


def set_cursor(engine: Engine, name: str, reached: str) -> None:
    """Store where a run stopped; an unchanged cursor is not written."""
    moved = (PERIODIC_TASKS.c.name == name) & (PERIODIC_TASKS.c.place != reached)
    with engine.begin() as connection:
        connection.execute(PERIODIC_TASKS.update().where(moved).values(place=reached))


def advance(connection: Connection, name: str, reached: str) -> bool:
    """Increment the cursor of a task that counts its runs.

    Args:
        reached: The cursor that the caller has read.

    Returns:
        False if another caller has incremented it since; nothing is written.
    """
    unchanged = (PERIODIC_TASKS.c.name == name) & (PERIODIC_TASKS.c.place == reached)
    following = str(int(reached or "0") + 1)
    return connection.execute(PERIODIC_TASKS.update().where(unchanged).values(place=following)).rowcount == 1


def ensure(engine: Engine, name: str) -> None:
    """Create the row of a task if it is missing."""
    try:
        with engine.begin() as connection:
            if (
                connection.execute(sa.select(PERIODIC_TASKS.c.name).where(PERIODIC_TASKS.c.name == name)).first()
                is None
            ):
                connection.execute(PERIODIC_TASKS.insert().values(name=name, due_ms=0, place=""))
    except IntegrityError:
        return  # Another caller has created it at the same moment.
