"""Decide what one event requires of the worker. Pure: the event and facts that were read before; no input or output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from supabase_bridge.core.documents import Cause, Manifest
from supabase_bridge.core.events import Event, EventKind, EventState, Triggers
from supabase_bridge.core.release_log import commits, pinned

_FIRST_PAUSE = timedelta(seconds=1)
_LONGEST_PAUSE = timedelta(seconds=30)
_LATEST = timedelta(hours=1)
"""A worker that was paused for longer than this is not expected to continue."""
_PROMOTION_STAGES = {"Staging", "Production"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The final state of an event, and one sentence about it for people. As an action: change nothing."""

    state: EventState
    outcome: str


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Process the event later.

    Attributes:
        until: See `Outbox.postpone`.
        failed: The attempt failed. Any other one does not count as an attempt.
        unexpected: It ended in an unexpected exception.
        note: What the version's tag says meanwhile.
    """

    until: datetime | None
    reason: str
    failed: bool = False
    unexpected: bool = False
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """Mirror the event's version."""


@dataclass(frozen=True, kw_only=True)
class Activate:
    """Make the release of a version the current one of a channel.

    Attributes:
        head: The log's newest entry on which this was decided.
        promoted_at: When the version was promoted; None: another version was current and lost its stage or alias.
        always: Add an entry also where the version is current already; see `may_be_late`.
    """

    channel: str
    version: int
    head: Manifest | None
    cause: Cause
    promoted_at: datetime | None
    always: bool = False


@dataclass(frozen=True, kw_only=True)
class Repair:
    """Finish an activation that an earlier attempt at this event committed: the log holds its entry already.

    Attributes:
        lost: The stage or alias that the version has lost meanwhile, if no other version has one of the channel's.
    """

    channel: str
    entry: Manifest
    lost: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stay:
    """Keep the channel where it is: no other version has one of its stages or aliases.

    Attributes:
        lost: The stage or alias that the event's version lost.
        is_current: True where the channel points to that version, which then gets a note.
    """

    channel: str
    lost: str
    is_current: bool


Action: TypeAlias = Outcome | Wait | Mirror | Activate | Repair | Stay


@dataclass(frozen=True, kw_only=True)
class ChannelFacts:
    """Facts about one channel that the event concerns.

    Attributes:
        effective: The newest assignment whose version still holds its stage or alias; see `effective_assignment`.
        version_is_active: True where the event's version exists and its tags call it active.
        late: An earlier assignment may still be carried out; see `may_be_late`.
        needs_head: The decision depends on the log.
        head: The log's newest entry; None where the log is empty, or the decision does not depend on it.
    """

    triggers: Triggers
    effective: Event | None
    version_is_active: bool
    late: bool = False
    needs_head: bool = False
    head: Manifest | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that the decision about one event needs.

    Attributes:
        cause: The event as the log names it.
        version_exists: For a new version: False where it was deleted meanwhile.
        running: For a new version: the id of its training run where that has not ended; None otherwise.
        run_grace: For a new version: how long after its registration the worker waits for the end of its run.
        ended_at: For a new version: when its run ended.
        missing_metrics: For a new version: the metrics that its gate names and its run lacks; none if promoted.
        channels: For all other events: one for each channel that the event concerns.
    """

    now: datetime
    cause: Cause
    version_exists: bool = True
    running: str | None = None
    run_grace: timedelta = timedelta(0)
    ended_at: datetime | None = None
    missing_metrics: tuple[str, ...] = ()
    channels: tuple[ChannelFacts, ...] = ()


def decide(event: Event, facts: Facts) -> tuple[Action, ...]:
    """The actions that an event requires, in their order: one, or one for each channel that it concerns."""
    if event.version is None:
        return (Outcome(state=EventState.DONE, outcome="releases stay where they are"),)
    if event.kind is EventKind.VERSION_CREATED:
        return (_decide_new(event, facts),)
    if not facts.channels:
        target = promotion_target(event)
        # A worker never carries such a promotion out, so the gate does not take it for an activation.
        state = EventState.DONE if target is None else EventState.SUPERSEDED
        return (Outcome(state=state, outcome=f"no channel follows {target or 'this change'}"),)
    return tuple(_decide_channel(event, facts.cause, channel) for channel in facts.channels)


def concerned(event: Event, triggers: Sequence[Triggers]) -> list[Triggers]:
    """The channels that an event assigns its version to, or removes it from."""
    return [item for item in triggers if item.assigns(event) or item.unassigns(event)]


def promotion_target(event: Event) -> str | None:
    """The stage or alias to which an event promotes its version; None where it promotes none."""
    if event.kind is EventKind.ALIAS_SET:
        return f"alias `{event.alias}`"
    promotes = event.kind is EventKind.STAGE_CHANGED and event.stage in _PROMOTION_STAGES
    return f"stage {event.stage}" if promotes else None


def needs_head(event: Event, channel: ChannelFacts) -> bool:
    """Whether the decision depends on the channel's log; where it does not, the worker sends no request to storage."""
    if _tried_before(event):
        return True
    follows = channel.effective is not None or channel.version_is_active
    return follows and _superseded(event, channel) is None


def may_be_late(event: Event, assignments: Sequence[Event], now: datetime) -> bool:
    """Whether a worker that lost an earlier assignment may still add an entry for it, if none comes before.

    A worker that was paused after its last check does not know that its lease has ended.
    """
    return any(
        item.id < event.id and item.takeovers > 0 and now - (item.finished_at or now) < _LATEST
        for item in assignments
        if item.state in {EventState.PENDING, EventState.SUPERSEDED}
    )


def combine(event: Event, triggers: Sequence[Triggers], outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of an event that concerns several channels, from the outcome in each.

    An assignment is done where it was done in any channel that it assigns: the promotion gate accepts such a version
    again as one that was current before.
    """
    assigned = [outcome for item, outcome in zip(triggers, outcomes, strict=True) if item.assigns(event)]
    counted = outcomes if promotion_target(event) is None else assigned
    done = any(outcome.state is EventState.DONE for outcome in counted)
    state = EventState.DONE if done else EventState.SUPERSEDED
    return Outcome(state=state, outcome="; ".join(outcome.outcome for outcome in outcomes))


def stays_pinned(head: Manifest) -> Outcome:
    """The outcome of a promotion that does not move a channel which an operator moved manually after it."""
    outcome = f"{head.channel} was moved to {head.current.run_id} manually and stays there until the next promotion"
    return Outcome(state=EventState.SUPERSEDED, outcome=outcome)


def _decide_new(event: Event, facts: Facts) -> Action:
    if not facts.version_exists:
        return Outcome(state=EventState.SUPERSEDED, outcome="the version is gone")
    if facts.running is not None and facts.now < event.created_at + facts.run_grace:
        return Wait(until=facts.now + _pause(event, facts), reason=f"run {facts.running} has not ended yet")
    if facts.missing_metrics and facts.ended_at is not None:
        # A run that was reopened may end later; a trainer's clock cannot make the worker wait longer.
        ended_at = min(facts.ended_at, event.created_at + facts.run_grace)
        if facts.now < ended_at + facts.run_grace:
            reason = f"waits for the metrics {', '.join(facts.missing_metrics)}"
            return Wait(until=facts.now + _pause(event, facts), reason=reason, note=reason)
    return Mirror()


def _pause(event: Event, facts: Facts) -> timedelta:
    """The pauses grow, so that many versions that wait cost little."""
    return min(max((facts.now - event.created_at) / 10, _FIRST_PAUSE), _LONGEST_PAUSE)


def _decide_channel(event: Event, cause: Cause, channel: ChannelFacts) -> Action:
    """One channel: finish an earlier attempt, follow the effective assignment, or keep the channel where it is."""
    head, name, effective = channel.head, channel.triggers.channel, channel.effective
    if _tried_before(event) and head is not None and commits(head, cause):
        lost = (event.stage or f"@{event.alias}") if effective is None and channel.triggers.assigns(event) else None
        return Repair(channel=name, entry=head, lost=lost)
    if (superseded := _superseded(event, channel)) is not None:
        return superseded
    current = None if head is None else head.current.model_version
    if effective is None or effective.version is None:
        is_current = channel.version_is_active and current == event.version
        return Stay(channel=name, lost=event.previous_stage or f"@{event.alias}", is_current=is_current)
    promoted_at = event.created_at if channel.triggers.assigns(event) else None
    if head is not None and pinned(head, promoted_at=promoted_at):
        return stays_pinned(head)
    if effective.id != event.id and current == effective.version and not channel.late:
        return Outcome(state=EventState.DONE, outcome=f"{name} is version {effective.version} already")
    return Activate(
        channel=name,
        version=effective.version,
        head=head,
        cause=cause,
        promoted_at=promoted_at,
        always=channel.late,
    )


def _superseded(event: Event, channel: ChannelFacts) -> Outcome | None:
    """The outcome of an event that another one supersedes; None where this event must be carried out."""
    effective, name = channel.effective, channel.triggers.channel
    if channel.triggers.assigns(event):
        carried_out = effective is not None and effective.id == event.id
    else:
        carried_out = effective is None or effective.state is not EventState.PENDING
    if carried_out:
        return None
    if effective is not None and effective.id > event.id:
        reason = f"version {effective.version} came to {name} after version {event.version}"
    else:
        reason = f"version {event.version} no longer holds what makes it {name}"
    return Outcome(state=EventState.SUPERSEDED, outcome=reason)


def _tried_before(event: Event) -> bool:
    """Whether an earlier attempt may have committed: a retry by an operator resets the attempts, not the outcome."""
    return event.attempts > 1 or event.outcome is not None
