"""Events that are recorded once more, because what they did is no longer there."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from supabase_bridge.outbox import duties
from supabase_bridge.outbox.events import EventState, NewEvent
from supabase_bridge.outbox.schema import append
from supabase_bridge.outbox.tables import OUTBOX


def record_again(engine: Engine, event: NewEvent) -> str | None:
    """Record an event about a version, unless the newest one about it waits or has failed for good.

    Returns:
        None where it was recorded; else why not: a failure is not repeated with every pass.
    """
    duties.ensure(engine, duties.RECONCILE)
    with engine.begin() as connection:
        duties.lock(connection, duties.RECONCILE)
        reason = hindrance(connection, event)
        if reason is None:
            append(connection, event)
        return reason


def hindrance(connection: Connection, event: NewEvent) -> str | None:
    """Why an event is not recorded again; None: nothing is in its way."""
    of_version = (
        (OUTBOX.c.workspace == event.workspace)
        & (OUTBOX.c.model == event.model)
        & (OUTBOX.c.version == event.version)
        & ~OUTBOX.c.model_deleted
    )
    open_states = [EventState.PENDING.value, EventState.DEAD.value]
    query = sa.select(OUTBOX.c.id, OUTBOX.c.state).where(of_version).order_by(OUTBOX.c.id.desc()).limit(1)
    newest = connection.execute(query).first()
    if newest is None or newest.state not in open_states:
        return None
    if newest.state == EventState.DEAD.value:
        return f"event {newest.id} failed: supabase-bridge outbox retry {newest.id}"
    return f"event {newest.id} is on its way"


def changes_wait(engine: Engine, workspace: str) -> bool:
    """Whether events of a workspace wait, or are in hand."""
    query = sa.select(OUTBOX.c.id).where(OUTBOX.c.workspace == workspace, OUTBOX.c.state == EventState.PENDING.value)
    with engine.connect() as connection:
        return connection.execute(query.limit(1)).first() is not None
