"""Write events inside the caller's transaction, and enqueue events again."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from supabase_bridge.core.events import EventState, NewEvent
from supabase_bridge.core.text import time_from_ms
from supabase_bridge.outbox import freezes, periodic
from supabase_bridge.outbox.database import DatabaseNow
from supabase_bridge.outbox.sql import CHANNEL
from supabase_bridge.outbox.tables import OUTBOX

# Statements are built once: SQLAlchemy takes longer to build one than a database to execute it.
_FACTS = (
    "workspace",
    "model",
    "version",
    "stage",
    "previous_stage",
    "alias",
    "previous_version",
    "previous_model",
    "made_by",
)

_APPEND = OUTBOX.insert().values(
    **{name: sa.bindparam(name, type_=OUTBOX.c[name].type) for name in ("kind", *_FACTS)},
    created_ms=sa.func.coalesce(sa.bindparam("changed_ms", type_=sa.BigInteger), DatabaseNow()),
    model_deleted=False,
    state=EventState.PENDING.value,
    attempts=0,
    not_before_ms=0,
)

_APPENDED = _APPEND.returning(OUTBOX.c.id).cte("appended")

_APPEND_AND_NOTIFY = sa.select(sa.func.pg_notify(CHANNEL, "")).select_from(_APPENDED)


def append(connection: Connection, event: NewEvent, *, changed_ms: int | None = None) -> None:
    """Append an event in the caller's transaction, so that the change and its event are committed together.

    On PostgreSQL the same statement wakes the workers at the commit.

    Args:
        changed_ms: Time of the change, in milliseconds since 1970; None means now. So does a number that is no time.
    """
    if time_from_ms(changed_ms) is None:
        changed_ms = None
    statement = _APPEND_AND_NOTIFY if connection.dialect.name == "postgresql" else _APPEND
    facts = {name: getattr(event, name) for name in _FACTS}
    connection.execute(statement, {**facts, "kind": event.kind.value, "changed_ms": changed_ms})


def rename_model(connection: Connection, *, workspace: str, old: str, new: str) -> None:
    """Rename a model in its events and freezes, in the caller's transaction.

    A worker that holds one of them loses its lease, because it knows the model by the old name. The event is due at
    once under the new name.
    """
    named = (OUTBOX.c.workspace == workspace) & (OUTBOX.c.model == old)
    connection.execute(OUTBOX.update().where(named).values(model=new, leased_by=None, leased_until_ms=None))
    freezes.rename(connection, workspace, old=old, new=new)


def retire_model(connection: Connection, *, workspace: str, model: str) -> None:
    """Mark a deleted model's events, so that they do not apply to a later model of the same name; its freezes do."""
    named = (OUTBOX.c.workspace == workspace) & (OUTBOX.c.model == model)
    connection.execute(OUTBOX.update().where(named).values(model_deleted=True))


def enqueue_again(engine: Engine, event: NewEvent) -> str | None:
    """Enqueue an event about a version, unless the newest event about it is pending or dead.

    Returns:
        None if the event was enqueued, else the reason. A dead event is not repeated by each pass.
    """
    periodic.ensure(engine, periodic.RECONCILE)
    with engine.begin() as connection:
        periodic.lock(connection, periodic.RECONCILE)
        reason = reason_not_enqueued(connection, event)
        if reason is None:
            append(connection, event)
        return reason


def reason_not_enqueued(connection: Connection, event: NewEvent) -> str | None:
    """Return why an event may not be enqueued again; None if it may."""
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
    """Return whether a workspace has pending events."""
    query = sa.select(OUTBOX.c.id).where(OUTBOX.c.workspace == workspace, OUTBOX.c.state == EventState.PENDING.value)
    with engine.connect() as connection:
        return connection.execute(query.limit(1)).first() is not None
