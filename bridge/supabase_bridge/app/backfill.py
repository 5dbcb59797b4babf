"""Process the outbox to its end, beside other workers: this mirrors an existing registry."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from supabase_bridge.app.runtime import Runtime
from supabase_bridge.core.events import Event, EventState
from supabase_bridge.worker.worker import EventResult

_PAUSE_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class UnfinishedEvent:
    """An event that failed, or that waits for its next attempt; `reason` is that of the last attempt."""

    event: Event
    reason: str


@dataclass(frozen=True, kw_only=True)
class DrainResult:
    """The number of events that this process finished, and the events that are left."""

    done: int
    left: tuple[UnfinishedEvent, ...]


def drain_outbox(runtime: Runtime, model: str | None, *, on_handled: Callable[[EventResult], None]) -> DrainResult:
    """Process every event that is due, and wait for the events that other workers hold.

    A failed event stops no other event, and each event is attempted once. The call may be interrupted and repeated:
    finished work is not repeated.

    Args:
        model: Report the unfinished events of this model only; None: of all models.
    """
    done = 0
    first_claims: dict[int, datetime | None] = {}

    def count(result: EventResult) -> None:
        nonlocal done
        done += result.state is EventState.DONE
        on_handled(result)

    worker = runtime.worker(on_handled=count)
    since = runtime.outbox.now()
    worker.drain(since)
    # Wait for one attempt of each event that another worker holds, and take over those whose lease ends.
    while _is_attempted_by_others(runtime, first_claims):
        time.sleep(_PAUSE_SECONDS)
        worker.drain(since)
    unfinished = runtime.outbox.events(states=(EventState.PENDING, EventState.DEAD), model=model)
    left = tuple(UnfinishedEvent(event=event, reason=event.outcome or "not processed yet") for event in unfinished)
    return DrainResult(done=done, left=left)


def retry_failed(runtime: Runtime, model: str | None) -> int:
    """Make every failed event of one model, or of all, due again; returns their number."""
    failed = list(runtime.outbox.events(states=(EventState.DEAD,), model=model))
    for event in failed:
        runtime.outbox.retry(event.id)
    return len(failed)


def _is_attempted_by_others(runtime: Runtime, first_claims: dict[int, datetime | None]) -> bool:
    """Return whether another worker holds an event for the attempt at which it was first seen; adds new ones."""
    now = runtime.outbox.now()
    pending = runtime.outbox.events(states=(EventState.PENDING,))
    held = [event for event in pending if event.leased_until is not None and event.leased_until >= now]
    for event in held:
        first_claims.setdefault(event.id, event.claimed_at)
    return any(first_claims[event.id] == event.claimed_at for event in held)
