"""Registry events, their states, `Triggers` of a channel, the effective assignment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

DEFAULT_WORKSPACE = "default"

LONE_AFTER = 3
"""After this number of takeovers a worker tries an event alone: the process does nothing else meanwhile."""


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
"""The kinds that change or show the stage of a version."""

OF_ALIASES = (EventKind.ALIAS_SET, EventKind.ALIAS_REMOVED)
"""The kinds that change the version of an alias."""


class EventState(str, Enum):
    """The state of an event: PENDING is open, the others are finished."""

    PENDING = "pending"
    DONE = "done"
    SUPERSEDED = "superseded"
    DEAD = "dead"
    DISCARDED = "discarded"


@dataclass(frozen=True, kw_only=True)
class NewEvent:
    """A change of the registry, as its own transaction records it.

    Attributes:
        model: The registered model's name after the change.
        version: The changed version. None: the model itself changed.
        stage: The stage after the change (STAGE_CHANGED, VERSION_CREATED), in MLflow's spelling.
        previous_stage: The stage before the change (STAGE_CHANGED, VERSION_DELETED).
        alias: The alias (ALIAS_SET, ALIAS_REMOVED).
        previous_version: The version that held the alias before (ALIAS_SET).
        previous_model: The model's name before (MODEL_RENAMED).
        made_by: Who made the change, if it is known: the user of MLflow, or the operating-system user of a command.
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
    made_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class Event(NewEvent):
    """A recorded event.

    Attributes:
        id: Its place in the order of the changes; higher is later.
        created_at: The time of the change, in UTC, to the millisecond.
        started_at: The time of the first claim, which is the `published_at` of the activation in each retry.
        claimed_at: The time of the newest claim; None where that only waited for another event, or was given back.
        attempts: The number of attempts, without the claims that only found that the event has to wait.
        not_before: No worker claims it before this time.
        outcome: The result, or the reason of a failure, as text.
        failures: The number of attempts that ended in an unexpected exception.
        takeovers: The number of leases that ended while a worker held the event, since the last attempt that returned.
            Such a worker was killed, or had no connection to the database for longer than its lease.
    """

    id: int
    created_at: datetime
    state: EventState = EventState.PENDING
    attempts: int = 0
    claimed_at: datetime | None = None
    started_at: datetime | None = None
    not_before: datetime | None = None
    finished_at: datetime | None = None
    leased_by: str | None = None
    leased_until: datetime | None = None
    outcome: str | None = None
    failures: int = 0
    takeovers: int = 0

    @property
    def is_lone(self) -> bool:
        """True if a worker process may try the event only while it does nothing else."""
        return self.takeovers >= LONE_AFTER

    @property
    def ended_lone_worker(self) -> bool:
        """True if also the lease of a process that did nothing else has ended."""
        return self.takeovers > LONE_AFTER


@dataclass(frozen=True, kw_only=True)
class Triggers:
    """The stages and aliases that make a version current in one channel."""

    channel: str
    stages: tuple[str, ...]
    aliases: tuple[str, ...]

    def assigns(self, event: NewEvent) -> bool:
        """Return whether the event gives its version one of them."""
        if event.kind is EventKind.STAGE_CHANGED:
            return event.stage in self.stages
        return event.kind is EventKind.ALIAS_SET and event.alias in self.aliases

    def unassigns(self, event: NewEvent) -> bool:
        """Return whether the event takes one of them away from a version."""
        if event.kind in {EventKind.STAGE_CHANGED, EventKind.VERSION_DELETED}:
            return event.previous_stage in self.stages
        if event.kind is EventKind.ALIAS_SET:
            return event.alias in self.aliases and event.previous_version is not None
        return event.kind is EventKind.ALIAS_REMOVED and event.alias in self.aliases


def triggers_of(*, stages: Mapping[str, str], aliases: Mapping[str, str]) -> tuple[Triggers, ...]:
    """Return the triggers of each channel, from the channel of each stage and of each alias."""
    names = dict.fromkeys([*stages.values(), *aliases.values()])
    return tuple(
        Triggers(channel=name, stages=_keys_to(stages, name), aliases=_keys_to(aliases, name)) for name in names
    )


def effective_assignment(assignments: Sequence[Event], still_holds: Callable[[Event], bool]) -> Event | None:
    """Return the first assignment, of those given newest first, whose version still has its stage or alias."""
    return next((assignment for assignment in assignments if still_holds(assignment)), None)


def _keys_to(mapping: Mapping[str, str], value: str) -> tuple[str, ...]:
    return tuple(key for key, mapped in mapping.items() if mapped == value)
