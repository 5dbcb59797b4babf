"""Errors of the outbox: database unavailable, contended or unsuitable; unknown event; lost lease."""

from __future__ import annotations

from supabase_bridge.core.errors import BridgeError


class RegistryUnavailableError(BridgeError):
    """MLflow's database or server did not answer."""

    template = "MLflow could not {operation}: {reason}"
    retryable = True
    operation: str
    reason: str


class ContentionError(RegistryUnavailableError):
    """Another worker or server wrote to the outbox at the same moment, and the database preferred its transaction."""


class DatabaseError(BridgeError):
    """The database answers, but this release cannot use it: it is not MLflow's, or its tables are newer."""

    template = "{database} {problem}"
    database: str
    problem: str


class EventNotFoundError(BridgeError):
    """The outbox has no such event, or the event is not in a state that allows the command."""

    template = "the outbox has no event {event_id} that is {wanted}; see `supabase-bridge outbox list`"
    event_id: int
    wanted: str


class EventEndsWorkersError(BridgeError):
    """Each worker process that attempted an event ended before it had a result, also one that did nothing else."""

    template = (
        "{takeovers} worker processes ended while they processed this event, the last one while it did nothing else; "
        "such a process was probably killed because it ran out of memory. Look for the reason in the system's log "
        "(`dmesg`, or the container's exit code 137), give the worker more memory or register a smaller model, then "
        "run `supabase-bridge outbox retry {event_id}`"
    )
    event_id: int
    takeovers: int


class LeaseLostError(BridgeError):
    """A worker no longer holds an event: its lease ended, or the event's model was renamed."""

    template = "event {event_id} was claimed by another worker, or its model was renamed; another worker will finish it"
    event_id: int
