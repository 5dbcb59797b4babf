"""What the outbox holds: one event for each change of the registry, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

DEFAULT_WORKSPACE = "default"


class EventKind(str, Enum):
    """What changed in the registry."""

    VERSION_CREATED = "version_created"
    STAGE_CHANGED = "stage_changed"
    VERSION_DELETED = "version_deleted"
    ALIAS_SET = "alias_set"
    ALIAS_REMOVED = "alias_removed"
    MODEL_RENAMED = "model_renamed"
    MODEL_DELETED = "model_deleted"


OF_VERSIONS = (EventKind.VERSION_CREATED, EventKind.STAGE_CHANGED, EventKind.VERSION_DELETED)
"""The kinds that say where a version stands."""
OF_ALIASES = (EventKind.ALIAS_SET, EventKind.ALIAS_REMOVED)
"""The kinds that say which version has an alias."""


class EventState(str, Enum):
    """What became of an event. Open: PENDING. Finished: the rest."""

    PENDING = "pending"
    DONE = "done"
    SUPERSEDED = "superseded"
    DEAD = "dead"
    DISCARDED = "discarded"


@dataclass(frozen=True, kw_only=True)
class NewEvent:
    """A change of the registry, as the transaction that makes it records it.

    Attributes:
        model: The registered model's name after the change.
        version: The version it is about; None for the model's own changes.
        stage: The stage after the change (STAGE_CHANGED, VERSION_CREATED), in MLflow's spelling.
        previous_stage: The stage before the change (STAGE_CHANGED, VERSION_DELETED).
        alias: The alias (ALIAS_SET, ALIAS_REMOVED).
        previous_version: The version that held the alias before (ALIAS_SET).
        previous_model: The model's name before (MODEL_RENAMED).
    """

    kind: EventKind
    workspace: str
    model: str
    version: int | None = None
    stage: str | None = None
    previous_stage: str | None = None
    alias: str | None = None
    previous_version: int | None = None
    previous_model: str | None = None


@dataclass(frozen=True, kw_only=True)
class Event(NewEvent):
    """A recorded event.

    Attributes:
        id: Its place in the order of the changes; higher is later.
        created_at: When the change was recorded, UTC, to the millisecond.
        started_at: When a worker first took it up: the `published_at` of the switch it makes, however often retried.
        attempts: How often a worker has taken it up.
        not_before: Not taken up again before this time.
        outcome: What became of it, for people: the reason, or what was done.
    """

    id: int
    created_at: datetime
    state: EventState = EventState.PENDING
    attempts: int = 0
    started_at: datetime | None = None
    not_before: datetime | None = None
    finished_at: datetime | None = None
    leased_by: str | None = None
    leased_until: datetime | None = None
    outcome: str | None = None
