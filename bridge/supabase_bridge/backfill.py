"""Work through the outbox to its end, beside whatever other workers do: mirror an existing registry."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from supabase_bridge.outbox.events import Event, EventState
from supabase_bridge.runtime import Runtime
from supabase_bridge.worker import Handled

_PAUSE_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Left:
    """A change that has not come to its end; `reason` is the last attempt's."""

    event: Event
    reason: str


@dataclass(frozen=True, kw_only=True)
class Worked:
    """What came of it: how many changes were carried out here; what failed for good, or waits for its next attempt."""

    done: int
    left: tuple[Left, ...]


def work_off(runtime: Runtime, model: str | None, *, on_handled: Callable[[Handled], None]) -> Worked:
    """Carry out every change that is open, and wait for those that other workers hold.

    One that fails stops none of the others. It may be stopped and called again: what is done is not done again.

    Args:
        model: What is left is told of this model only; None: of all.
    """
    done = 0

    def count(handled: Handled) -> None:
        nonlocal done
        done += handled.state is EventState.DONE
        on_handled(handled)

    worker = runtime.worker(on_handled=count)
    # What another worker holds keeps back what comes after it; only what was free before and after is left over.
    held = True
    while worker.drain() or held or _held_by_others(runtime):
        time.sleep(_PAUSE_SECONDS)
        held = _held_by_others(runtime)
    return Worked(done=done, left=_left(runtime, model))


def take_up_failed(runtime: Runtime, model: str | None) -> int:
    """Let every change that failed for good, of one model or all, be tried again; returns how many."""
    failed = list(runtime.outbox.events(states=(EventState.DEAD,), model=model))
    for event in failed:
        runtime.outbox.retry(event.id)
    return len(failed)


def _held_by_others(runtime: Runtime) -> bool:
    now = runtime.outbox.now()
    pending = runtime.outbox.events(states=(EventState.PENDING,))
    return any(event.leased_until is not None and event.leased_until >= now for event in pending)


def _left(runtime: Runtime, model: str | None) -> tuple[Left, ...]:
    unfinished = runtime.outbox.events(states=(EventState.PENDING, EventState.DEAD), model=model)
    return tuple(Left(event=event, reason=event.outcome or "not taken up yet") for event in unfinished)
