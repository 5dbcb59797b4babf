"""Duties that one worker of a registry does at a time, now and then: when each is due next, and a lock on each."""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError

from supabase_bridge.outbox import clock
from supabase_bridge.outbox.rows import milliseconds
from supabase_bridge.outbox.tables import METADATA

RECONCILE = "reconcile"

DUTIES = sa.Table(
    "supabase_bridge_duties",
    METADATA,
    sa.Column("name", sa.String(96), primary_key=True),
    sa.Column("due_ms", sa.BigInteger, nullable=False),
    # How far the last round came, in the duty's own words; empty: at the beginning.
    sa.Column("place", sa.String(512), nullable=False),
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
    mysql_collate="utf8mb4_bin",
    mariadb_collate="utf8mb4_bin",
)
"""A row for each duty, made when it is first asked for."""


def take(engine: Engine, name: str, *, interval: timedelta, now: datetime | None = None) -> bool:
    """Whether this caller shall do a duty now; for `interval` nobody else is told so.

    Of any number of callers at one moment one is told True. A caller that is killed in the middle has cost one round.

    Args:
        now: The time, in place of the database's own: the callers' clocks differ.
    """
    moment = clock.moment(now)
    due = (DUTIES.c.name == name) & (DUTIES.c.due_ms <= moment)
    ensure(engine, name)
    with engine.begin() as connection:
        taken = connection.execute(DUTIES.update().where(due).values(due_ms=moment + milliseconds(interval)))
        return taken.rowcount == 1


def lock(connection: Connection, name: str) -> None:
    """Keep every other holder of this lock waiting until the transaction of `connection` ends.

    The transaction's first statement: a write, so that on SQLite nothing it has read can be out of date.
    """
    connection.execute(DUTIES.update().where(DUTIES.c.name == name).values(name=name))


def place(engine: Engine, name: str) -> str:
    """How far the last round of a duty came."""
    ensure(engine, name)
    with engine.begin() as connection:
        return str(connection.execute(sa.select(DUTIES.c.place).where(DUTIES.c.name == name)).scalar_one())


def set_place(engine: Engine, name: str, reached: str) -> None:
    """Remember how far a round came; what is remembered already is not written."""
    moved = (DUTIES.c.name == name) & (DUTIES.c.place != reached)
    with engine.begin() as connection:
        connection.execute(DUTIES.update().where(moved).values(place=reached))


def move_on(connection: Connection, name: str, reached: str) -> bool:
    """Count a round of a duty whose place is a number; False where somebody else has done so since it was `reached`."""
    same = (DUTIES.c.name == name) & (DUTIES.c.place == reached)
    following = str(int(reached or "0") + 1)
    return connection.execute(DUTIES.update().where(same).values(place=following)).rowcount == 1


def ensure(engine: Engine, name: str) -> None:
    """Make a duty's row where it is missing; before `lock`, which needs it."""
    try:
        with engine.begin() as connection:
            if connection.execute(sa.select(DUTIES.c.name).where(DUTIES.c.name == name)).first() is None:
                connection.execute(DUTIES.insert().values(name=name, due_ms=0, place=""))
    except IntegrityError:
        return  # Somebody else was faster.
