"""Between the outbox's rows and our types."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from sqlalchemy.engine import Row

from supabase_bridge.outbox.events import Event, EventKind, EventState


def to_event(row: Row[Any]) -> Event:
    """A row of the outbox as an event."""
    return Event(
        id=row.id,
        created_at=to_time(row.created_ms),
        kind=EventKind(row.kind),
        workspace=row.workspace,
        model=row.model,
        version=row.version,
        stage=row.stage,
        previous_stage=row.previous_stage,
        alias=row.alias,
        previous_version=row.previous_version,
        previous_model=row.previous_model,
        state=EventState(row.state),
        attempts=row.attempts,
        started_at=None if row.started_ms is None else to_time(row.started_ms),
        not_before=to_time(row.not_before_ms) if row.not_before_ms else None,
        finished_at=None if row.finished_ms is None else to_time(row.finished_ms),
        leased_by=row.leased_by,
        leased_until=None if row.leased_until_ms is None else to_time(row.leased_until_ms),
        outcome=row.outcome,
    )


def to_ms(time: datetime) -> int:
    """A time as milliseconds since 1970, UTC."""
    return round(time.timestamp() * 1_000)


def to_time(milliseconds: int) -> datetime:
    """Milliseconds since 1970 as a time, UTC."""
    return datetime.fromtimestamp(milliseconds / 1_000, tz=timezone.utc)


def milliseconds(span: timedelta) -> int:
    """A span in whole milliseconds."""
    return round(span / timedelta(milliseconds=1))
