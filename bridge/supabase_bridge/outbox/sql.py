"""SQL statements of the queue and of the promotion gate, each under its name.

Times are milliseconds since 1970; a `moment` is such a time, or the database's clock. Rules that they share:

- An event is *due* if it is pending, its `not_before` has passed, and no worker holds it or its whole model. Waiting
  events delay no other event.
- The newest change of a model comes first, because it supersedes the earlier ones. Mirror events come last: a backlog
  of versions delays no promotion. Models take turns, in the order of their names.
- A worker *holds* a model from the claim of one of its events, except while it uploads the files of a version.
- While a worker uploads the files of a version, the events about that version wait.
- A lease *ends* when the moment is past `leased_until`. A lease that ends later than any worker could have asked for
  was made while a clock was wrong; it does not count, and neither does such a `not_before`. Until another worker claims
  an event of the model, the holder of an ended lease may still finish its event.
- An event whose leases ended three times is *lone*: a worker claims it last, and only while it holds no other event.
- Ids are not in the order of the commits, because PostgreSQL and MySQL assign them earlier. Due events are therefore
  found by state, never by "ids after the last one".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row
from sqlalchemy.sql.expression import ColumnElement

from supabase_bridge.core.events import LONE_AFTER, OF_ALIASES, OF_VERSIONS, Event, EventKind, EventState, Triggers
from supabase_bridge.outbox.database import to_ms, to_time
from supabase_bridge.outbox.tables import OUTBOX

CHANNEL = "supabase_outbox"
"""Channel of PostgreSQL's NOTIFY, sent by each commit after which an event may be due."""

# A literal: with a parameter SQLite does not use the index of pending events.
_PENDING = OUTBOX.c.state == sa.literal_column("'pending'")
_MIRRORS = OUTBOX.c.kind == EventKind.VERSION_CREATED.value
_LONE = OUTBOX.c.takeovers >= LONE_AFTER
_ASSIGNMENT_KINDS = (EventKind.STAGE_CHANGED.value, EventKind.ALIAS_SET.value)
_OF_VERSIONS = tuple(kind.value for kind in OF_VERSIONS)
_OF_ALIASES = tuple(kind.value for kind in OF_ALIASES)


def to_event(row: Row[Any]) -> Event:
    """Convert a row of the outbox to an event."""
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
        made_by=row.made_by,
        state=EventState(row.state),
        attempts=row.attempts,
        claimed_at=None if row.claimed_ms is None else to_time(row.claimed_ms),
        started_at=None if row.started_ms is None else to_time(row.started_ms),
        not_before=to_time(row.not_before_ms) if row.not_before_ms else None,
        finished_at=None if row.finished_ms is None else to_time(row.finished_ms),
        leased_by=row.leased_by,
        leased_until=None if row.leased_until_ms is None else to_time(row.leased_until_ms),
        outcome=row.outcome,
        failures=row.failures,
        takeovers=row.takeovers,
    )


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The time of a claim, the longest times that a lease and a pause may last from it, and what the worker may claim.

    Attributes:
        lone: The worker holds no event, so that it may claim a lone one.
        changes_only: The worker may claim no mirror event.
    """

    now: ColumnElement[int]
    lease_ms: int
    pause_ms: int
    lone: bool = True
    changes_only: bool = False

    def free(self, table: sa.FromClause = OUTBOX) -> ColumnElement[bool]:
        """Whether no worker holds an event: it has no lease, or one that ended or that is too long to be true."""
        until = table.c.leased_until_ms
        return until.is_(None) | (until < self.now) | (until > self.now + self.lease_ms)

    def ready(self) -> ColumnElement[bool]:
        """Whether the worker may claim an event: it is pending and free, its pause is over or too long to be true."""
        paused = (OUTBOX.c.not_before_ms > self.now) & (OUTBOX.c.not_before_ms <= self.now + self.pause_ms)
        excluded = [*([] if self.lone else [_LONE]), *([_MIRRORS] if self.changes_only else [])]
        return sa.and_(_PENDING, ~paused, self.free(), *(~kind for kind in excluded))


def due(
    moment: Moment, *, served: tuple[str, str], limit: int, before_ms: int | None = None, event_id: int | None = None
) -> sa.Select[Any]:
    """Select the ids of due events, in the order of the claims. Locks nothing; the only query of an idle worker.

    No subquery depends on the row, so each runs once. A correlated one would take quadratic time in a model's events.

    Args:
        served: Workspace and model of the last claim; the models after it come first.
        before_ms: Only events that no worker has claimed since this time.
        event_id: Only this event.
    """
    of_model = (OUTBOX.c.workspace, OUTBOX.c.model)
    held = sa.select(*of_model).where(_PENDING, OUTBOX.c.uploading == 0, ~moment.free())
    uploads = sa.select(*of_model, OUTBOX.c.uploading).where(_PENDING, OUTBOX.c.uploading != 0, ~moment.free())
    # A change is claimed once meanwhile, and its version then says what it waits for.
    waits = (_MIRRORS | OUTBOX.c.outcome.is_not(None)) & sa.tuple_(
        *of_model, sa.func.coalesce(OUTBOX.c.version, 0)
    ).in_(uploads)
    wanted = [moment.ready(), sa.tuple_(*of_model).not_in(held), ~waits]
    if before_ms is not None:
        wanted.append(OUTBOX.c.claimed_ms.is_(None) | (OUTBOX.c.claimed_ms < before_ms))
    if event_id is not None:
        return sa.select(OUTBOX.c.id).where(*wanted, OUTBOX.c.id == event_id)
    first = [
        sa.select(sa.func.max(OUTBOX.c.id)).where(*wanted, ~_MIRRORS, ~_LONE).group_by(*of_model),
        sa.select(sa.func.min(OUTBOX.c.id)).where(*wanted, _MIRRORS, ~_LONE).group_by(*of_model),
        sa.select(OUTBOX.c.id).where(*wanted, _LONE),
    ]
    return (
        sa.select(OUTBOX.c.id)
        .where(_PENDING, sa.or_(*map(OUTBOX.c.id.in_, first if moment.lone else first[:2])))
        .order_by(*_turns(served))
        .limit(limit)
    )


def lock_one(ids: Sequence[int], moment: Moment, *, served: tuple[str, str]) -> sa.Select[Any]:
    """Lock the first of these events that is ready and not locked by another transaction (SKIP LOCKED).

    It sees the committed state of these events only; run `still_due` afterwards.
    """
    return (
        sa.select(OUTBOX.c.id)
        .where(OUTBOX.c.id.in_(ids), moment.ready())
        .order_by(*_turns(served))
        .limit(1)
        .with_for_update(skip_locked=True)
    )


def still_due(event_id: int, moment: Moment) -> sa.Select[Any]:
    """Select the event's id and model if it is still due; rows locked by others count as they were before."""
    other = OUTBOX.alias("other")
    held = sa.exists().where(
        other.c.state == sa.literal_column("'pending'"),
        other.c.workspace == OUTBOX.c.workspace,
        other.c.model == OUTBOX.c.model,
        other.c.id != OUTBOX.c.id,
        other.c.uploading == 0,
        ~moment.free(other),
    )
    columns = (OUTBOX.c.id, OUTBOX.c.workspace, OUTBOX.c.model)
    return sa.select(*columns).where(OUTBOX.c.id == event_id, moment.ready(), ~held)


def ended_leases(workspace: str, model: str, moment: Moment) -> sa.Select[Any]:
    """Select id and takeovers of a model's events whose lease has ended. Locks nothing, and usually finds nothing."""
    of_model = (OUTBOX.c.workspace == workspace) & (OUTBOX.c.model == model)
    columns = (OUTBOX.c.id, OUTBOX.c.takeovers)
    return sa.select(*columns).where(_PENDING, of_model, OUTBOX.c.leased_by.is_not(None), moment.free())


def end_lease(event_id: int, moment: Moment, *, takeovers: int, pause_ms: int) -> sa.Update:
    """Remove the ended lease of an event, and count it; the former holder can no longer finish the event."""
    ended = (OUTBOX.c.id == event_id) & OUTBOX.c.leased_by.is_not(None) & moment.free()
    values = {"leased_by": None, "leased_until_ms": None, "takeovers": takeovers}
    return OUTBOX.update().where(ended).values({**values, "not_before_ms": moment.now + pause_ms})


def lease(event_id: int, worker: str, moment: ColumnElement[int], lease_ms: int) -> sa.Update:
    """Lease a locked event, as one more attempt. A unique index refuses a second event that holds the model."""
    return (
        OUTBOX.update()
        .where(OUTBOX.c.id == event_id)
        .values(
            attempts=OUTBOX.c.attempts + 1,
            leased_by=worker,
            leased_until_ms=moment + lease_ms,
            claimed_ms=moment,
            uploading=0,
            started_ms=sa.func.coalesce(OUTBOX.c.started_ms, moment),
        )
    )


def superseded_by(event: Event, followed: Sequence[Triggers], others: Sequence[Triggers]) -> ColumnElement[bool]:
    """Select the earlier changes that an assignment supersedes: they move channels that it assigns, and no others."""
    moves_others = [_moves(item) for item in others]
    return sa.and_(
        _PENDING,
        OUTBOX.c.workspace == event.workspace,
        OUTBOX.c.model == event.model,
        OUTBOX.c.id < event.id,
        sa.or_(*map(_moves, followed)),
        *([sa.not_(sa.or_(*moves_others))] if moves_others else []),
    )


def attempted_versions(events: ColumnElement[bool]) -> sa.Select[Any]:
    """Select the versions of those of these events that a worker has claimed before."""
    return sa.select(OUTBOX.c.version).where(events, (OUTBOX.c.attempts > 0) | OUTBOX.c.outcome.is_not(None)).distinct()


def page(
    states: Sequence[EventState], *, model: str | None, after: int | None, newest_first: bool, limit: int
) -> sa.Select[Any]:
    """Select the next events in the order of their ids: those in some states (none: in any), and of one model."""
    query = OUTBOX.select().order_by(OUTBOX.c.id.desc() if newest_first else OUTBOX.c.id).limit(limit)
    if states:
        query = query.where(OUTBOX.c.state.in_([state.value for state in states]))
    if model is not None:
        query = query.where(OUTBOX.c.model == model)
    if after is not None:
        query = query.where(OUTBOX.c.id < after if newest_first else OUTBOX.c.id > after)
    return query


def supersede(older: ColumnElement[bool], outcome: str, moment: Moment) -> sa.Update:
    """Close the superseded ones of these events that no worker holds; their outcome ends with their version."""
    values = {
        "state": EventState.SUPERSEDED.value,
        "outcome": outcome + sa.cast(OUTBOX.c.version, sa.String(12)),
        "finished_ms": moment.now,
        "leased_by": None,
        "leased_until_ms": None,
    }
    return OUTBOX.update().where(older, moment.free()).values(values)


def _moves(triggers: Triggers) -> ColumnElement[bool]:
    """Whether an event assigns a version to a channel, or removes one from it; never NULL."""
    stages, aliases = triggers.stages or ("",), triggers.aliases or ("",)
    of_stage = sa.or_(
        sa.func.coalesce(OUTBOX.c.stage, "").in_(stages), sa.func.coalesce(OUTBOX.c.previous_stage, "").in_(stages)
    )
    of_alias = OUTBOX.c.kind.in_(_OF_ALIASES) & sa.func.coalesce(OUTBOX.c.alias, "").in_(aliases)
    switches = OUTBOX.c.kind.in_([EventKind.STAGE_CHANGED.value, EventKind.VERSION_DELETED.value])
    named = sa.func.coalesce(OUTBOX.c.stage, OUTBOX.c.previous_stage, OUTBOX.c.alias, "") != ""
    return named & ((switches & of_stage) | of_alias)


def failed_since(event: Event) -> sa.Select[Any]:
    """Select the id of a later dead event about the same version."""
    of_version = (
        OUTBOX.c.workspace == event.workspace,
        OUTBOX.c.model == event.model,
        OUTBOX.c.version == event.version,
    )
    dead = OUTBOX.c.state == EventState.DEAD.value
    return sa.select(OUTBOX.c.id).where(*of_version, OUTBOX.c.id > event.id, dead, ~OUTBOX.c.model_deleted).limit(1)


def open_events(workspace: str, model: str, *, late_since: datetime) -> sa.Select[Any]:
    """Select the events of a model that a worker may still carry out, or an operator retry.

    Args:
        late_since: A worker that lost an event since then may still carry it out.
    """
    unfinished = OUTBOX.c.state.in_([EventState.PENDING.value, EventState.DEAD.value])
    lost = (OUTBOX.c.takeovers > 0) & (OUTBOX.c.state != EventState.DONE.value)
    of_model = (OUTBOX.c.workspace == workspace) & (OUTBOX.c.model == model) & ~OUTBOX.c.model_deleted
    return OUTBOX.select().where(of_model, unfinished | (lost & (OUTBOX.c.finished_ms >= to_ms(late_since))))


def change_held(event: Event, worker: str | None, values: dict[str, Any]) -> sa.Update:
    """Change an event that a worker holds under this claim; no row if it was claimed again or its model renamed."""
    held = (OUTBOX.c.id == event.id) & (OUTBOX.c.leased_by == worker) & (OUTBOX.c.attempts == event.attempts)
    claimed_ms = None if event.claimed_at is None else to_ms(event.claimed_at)
    return OUTBOX.update().where(held, OUTBOX.c.claimed_ms == claimed_ms, OUTBOX.c.model == event.model).values(values)


def until_due(moment: ColumnElement[int]) -> sa.Select[Any]:
    """Select the milliseconds until the next pending event becomes ready or a lease ends; NULL if neither will."""
    lease_ends = sa.func.coalesce(OUTBOX.c.leased_until_ms + 1, 0)
    ready = sa.case((lease_ends > OUTBOX.c.not_before_ms, lease_ends), else_=OUTBOX.c.not_before_ms)
    return sa.select(sa.func.min(ready) - moment).where(_PENDING, ready > moment)


_MODEL = (OUTBOX.c.workspace == sa.bindparam("of_workspace"), OUTBOX.c.model == sa.bindparam("of_model"))
_ASSIGNS = (OUTBOX.c.kind == EventKind.STAGE_CHANGED.value) & OUTBOX.c.stage.in_(
    sa.bindparam("stages", expanding=True)
) | (OUTBOX.c.kind == EventKind.ALIAS_SET.value) & OUTBOX.c.alias.in_(sa.bindparam("aliases", expanding=True))
_ACTIVATED = (*_MODEL, _ASSIGNS, OUTBOX.c.state == EventState.DONE.value, ~OUTBOX.c.model_deleted)

# The next three are built once: SQLAlchemy takes longer to build one than a database to execute it.

ASSIGNMENTS = (
    OUTBOX.select()
    .where(
        OUTBOX.c.id.in_(
            sa.select(sa.func.max(OUTBOX.c.id))
            .where(*_MODEL, _ASSIGNS, OUTBOX.c.state != EventState.DISCARDED.value, ~OUTBOX.c.model_deleted)
            .group_by(OUTBOX.c.version, OUTBOX.c.stage, OUTBOX.c.alias)
        )
    )
    .order_by(OUTBOX.c.id.desc())
)
"""Each version's newest assignment to one of a channel's triggers, the newest first; `removable` keeps them all.

Parameters of the three: see `of_channel`.
"""

LAST_ACTIVATED = (
    OUTBOX.select()
    .where(*_ACTIVATED, OUTBOX.c.version != sa.bindparam("of_version"))
    .order_by(OUTBOX.c.id.desc())
    .limit(1)
)
"""The newest assignment of another version than `of_version` that a worker has carried out."""

WAS_ACTIVATED = sa.select(OUTBOX.c.id).where(*_ACTIVATED, OUTBOX.c.version == sa.bindparam("of_version")).limit(1)
"""Whether a worker has carried out an assignment of version `of_version`."""


def of_channel(workspace: str, model: str, triggers: Triggers, **more: int) -> dict[str, Any]:
    """Return the parameters of the three statements above for one channel of a model."""
    channel = {"stages": triggers.stages, "aliases": triggers.aliases}
    return {"of_workspace": workspace, "of_model": model, **channel, **more}


def removable(before_ms: int, *, after_id: int, limit: int) -> sa.Select[Any]:
    """Select the ids of events that finished before a time and that nothing needs any more.

    Needed are: dead events, because an operator must decide about them; for each version, stage and alias of an
    existing model the newest assignment and the newest activated one; and the newest event about each version and each
    alias, which the reconciler compares with the registry. A pending assignment replaces none of them: an operator can
    still discard it.

    Args:
        after_id: Only ids above this one.
    """
    newer = OUTBOX.alias("newer")
    done = EventState.DONE.value
    outlived = sa.exists().where(
        newer.c.workspace == OUTBOX.c.workspace,
        newer.c.model == OUTBOX.c.model,
        newer.c.version == OUTBOX.c.version,
        newer.c.kind == OUTBOX.c.kind,
        (newer.c.alias == OUTBOX.c.alias) | (newer.c.stage == OUTBOX.c.stage),
        newer.c.id > OUTBOX.c.id,
        ~newer.c.model_deleted,
        (newer.c.state == done) | ((OUTBOX.c.state != done) & (newer.c.state == EventState.SUPERSEDED.value)),
    )
    needless = OUTBOX.c.model_deleted | (OUTBOX.c.state == EventState.DISCARDED.value)
    return (
        sa.select(OUTBOX.c.id)
        .where(OUTBOX.c.id > after_id, OUTBOX.c.finished_ms < before_ms, OUTBOX.c.state != EventState.DEAD.value)
        .where(OUTBOX.c.kind.not_in(_ASSIGNMENT_KINDS) | needless | outlived)
        .where(OUTBOX.c.model_deleted | ~_is_newest())
        .order_by(OUTBOX.c.id)
        .limit(limit)
    )


def _is_newest() -> ColumnElement[bool]:
    """Whether an event is the newest about a version's stage, or about an alias; the reconciler needs it."""
    later = OUTBOX.alias("later")
    same = (later.c.version == OUTBOX.c.version) & later.c.kind.in_(_OF_VERSIONS) & OUTBOX.c.kind.in_(_OF_VERSIONS)
    same_alias = (later.c.alias == OUTBOX.c.alias) & later.c.kind.in_(_OF_ALIASES) & OUTBOX.c.kind.in_(_OF_ALIASES)
    has_later = sa.exists().where(
        later.c.workspace == OUTBOX.c.workspace,
        later.c.model == OUTBOX.c.model,
        later.c.id > OUTBOX.c.id,
        ~later.c.model_deleted,
        same | same_alias,
    )
    return OUTBOX.c.kind.in_([*_OF_VERSIONS, *_OF_ALIASES]) & ~has_later


def remove(ids: Sequence[int]) -> sa.Delete:
    """Delete these events if they are finished."""
    return OUTBOX.delete().where(OUTBOX.c.id.in_(ids), OUTBOX.c.finished_ms.is_not(None))


def _turns(served: tuple[str, str]) -> tuple[ColumnElement[Any], ...]:
    """Sort lone events last, before them mirror events, and within each the models after the one served last first."""
    workspace, model = OUTBOX.c.workspace, OUTBOX.c.model
    later = (workspace > served[0]) | ((workspace == served[0]) & (model > served[1]))
    return _LONE, _MIRRORS, sa.case((later, 0), else_=1), workspace, model, OUTBOX.c.id
