"""The outbox's SQL, each statement by its name, with what it promises.

Times are milliseconds since 1970; a `moment` is one of them, or the database's own time. What they share:

- An event is *due* when it is pending, its `not_before` has come, nobody holds it, no other event of its model is held,
  and no earlier one of its model waits, other than one that only mirrors a new version. Such a one is due when no other
  kind of its model waits, earlier or later.
- Of those that are due the oldest comes first, but what only mirrors a new version after all others: a backlog of
  versions keeps no promotion waiting.
- A lease *ends* when the moment is past `leased_until`; until somebody takes an event of the model, its holder may
  still finish it.
- Ids are not in the order of the commits (PostgreSQL and MySQL hand them out before): what is due is found by state,
  never by "ids after the last one seen".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.expression import ColumnElement

from supabase_bridge.outbox.events import OF_ALIASES, OF_VERSIONS, Event, EventKind, EventState
from supabase_bridge.outbox.tables import OUTBOX

CHANNEL = "supabase_outbox"
"""Of PostgreSQL's NOTIFY: rings when a transaction is committed after which an event may be due."""

# A literal in the SQL: with a parameter in its place SQLite does not use the index of pending events.
_PENDING = OUTBOX.c.state == sa.literal_column("'pending'")
_MIRRORS = OUTBOX.c.kind == EventKind.VERSION_CREATED.value
_ARRIVALS = (EventKind.STAGE_CHANGED.value, EventKind.ALIAS_SET.value)
_OF_VERSIONS = tuple(kind.value for kind in OF_VERSIONS)
_OF_ALIASES = tuple(kind.value for kind in OF_ALIASES)


def due(moment: ColumnElement[int], *, limit: int) -> sa.Select[Any]:
    """The ids of events that are due, in the order in which they are taken. Locks nothing; the idle worker's one query.

    No subquery depends on the row: each is carried out once, where one asked of each event anew would take the square
    of a model's events.
    """
    of_model = (OUTBOX.c.workspace, OUTBOX.c.model)
    model = sa.tuple_(*of_model)
    held = sa.select(*of_model).where(_PENDING, OUTBOX.c.leased_until_ms >= moment)
    changing = sa.select(*of_model).where(_PENDING, ~_MIRRORS)
    first_changes = sa.select(sa.func.min(OUTBOX.c.id)).where(_PENDING, ~_MIRRORS).group_by(*of_model)
    return (
        sa.select(OUTBOX.c.id)
        .where(_ready(moment), model.not_in(held))
        .where(OUTBOX.c.id.in_(first_changes) | (_MIRRORS & model.not_in(changing)))
        .order_by(_MIRRORS, OUTBOX.c.id)
        .limit(limit)
    )


def lock_one(ids: Sequence[int], moment: ColumnElement[int]) -> sa.Select[Any]:
    """Lock the first of these events that is ready and that no other transaction has locked (SKIP LOCKED).

    It sees what is committed by now, but only of the events themselves: ask `still_due` afterwards.
    """
    return (
        sa.select(OUTBOX.c.id)
        .where(OUTBOX.c.id.in_(ids), _ready(moment))
        .order_by(_MIRRORS, OUTBOX.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )


def still_due(event_id: int, moment: ColumnElement[int]) -> sa.Select[Any]:
    """The event's id and model if it is due, judged anew: what others have locked counts as it was before they did."""
    other = OUTBOX.alias("other")
    is_change = other.c.kind != EventKind.VERSION_CREATED.value
    blocked = sa.exists().where(
        other.c.state == sa.literal_column("'pending'"),
        other.c.workspace == OUTBOX.c.workspace,
        other.c.model == OUTBOX.c.model,
        other.c.id != OUTBOX.c.id,
        (is_change & ((other.c.id < OUTBOX.c.id) | _MIRRORS)) | (other.c.leased_until_ms >= moment),
    )
    columns = (OUTBOX.c.id, OUTBOX.c.workspace, OUTBOX.c.model)
    return sa.select(*columns).where(OUTBOX.c.id == event_id, _ready(moment), ~blocked)


def ended_leases(workspace: str, model: str, moment: ColumnElement[int]) -> sa.Select[Any]:
    """The ids of a model's events whose lease has ended. Locks nothing, and mostly finds nothing."""
    return sa.select(OUTBOX.c.id).where(
        _PENDING, OUTBOX.c.workspace == workspace, OUTBOX.c.model == model, OUTBOX.c.leased_until_ms < moment
    )


def end_leases(ids: Sequence[int], moment: ColumnElement[int]) -> sa.Update:
    """Take the leases that have ended from these events: whoever held one can finish it no more."""
    ended = OUTBOX.c.id.in_(ids) & (OUTBOX.c.leased_until_ms < moment)
    return OUTBOX.update().where(ended).values(leased_by=None, leased_until_ms=None)


def take(event_id: int, worker: str, moment: ColumnElement[int], lease_ms: int) -> sa.Update:
    """Lease a locked event; it counts as an attempt. The index of held events refuses a second one of the model."""
    return (
        OUTBOX.update()
        .where(OUTBOX.c.id == event_id)
        .values(
            attempts=OUTBOX.c.attempts + 1,
            leased_by=worker,
            leased_until_ms=moment + lease_ms,
            started_ms=sa.func.coalesce(OUTBOX.c.started_ms, moment),
        )
    )


def failed_since(event: Event) -> sa.Select[Any]:
    """The ids of later events about an event's version that failed for good."""
    of_version = (
        OUTBOX.c.workspace == event.workspace,
        OUTBOX.c.model == event.model,
        OUTBOX.c.version == event.version,
    )
    dead = OUTBOX.c.state == EventState.DEAD.value
    return sa.select(OUTBOX.c.id).where(*of_version, OUTBOX.c.id > event.id, dead, ~OUTBOX.c.model_deleted).limit(1)


def change_held(event: Event, worker: str, values: dict[str, Any]) -> sa.Update:
    """Change an event that a worker holds; no row where somebody else has taken it since, or the same one anew.

    Nor where its model has another name by now than the worker knows.
    """
    held = (OUTBOX.c.id == event.id) & (OUTBOX.c.leased_by == worker) & (OUTBOX.c.attempts == event.attempts)
    return OUTBOX.update().where(held, OUTBOX.c.model == event.model).values(values)


def until_due(moment: ColumnElement[int]) -> sa.Select[Any]:
    """Milliseconds until the next pending event becomes ready, or the next lease ends; NULL: none will."""
    lease_ends = sa.func.coalesce(OUTBOX.c.leased_until_ms + 1, 0)
    ready = sa.case((lease_ends > OUTBOX.c.not_before_ms, lease_ends), else_=OUTBOX.c.not_before_ms)
    return sa.select(sa.func.min(ready) - moment).where(_PENDING, ready > moment)


def arrivals(workspace: str, model: str, stages: Sequence[str], aliases: Sequence[str]) -> sa.Select[Any]:
    """Each version's newest arrival in one of the stages or aliases; `removable` leaves them all in place."""
    staged = (OUTBOX.c.kind == EventKind.STAGE_CHANGED.value) & OUTBOX.c.stage.in_(stages)
    aliased = (OUTBOX.c.kind == EventKind.ALIAS_SET.value) & OUTBOX.c.alias.in_(aliases)
    newest = (
        sa.select(sa.func.max(OUTBOX.c.id))
        .where(OUTBOX.c.workspace == workspace, OUTBOX.c.model == model, staged | aliased)
        .where(OUTBOX.c.state != EventState.DISCARDED.value, ~OUTBOX.c.model_deleted)
        .group_by(OUTBOX.c.version, OUTBOX.c.stage, OUTBOX.c.alias)
    )
    return OUTBOX.select().where(OUTBOX.c.id.in_(newest)).order_by(OUTBOX.c.id.desc())


def removable(before_ms: int, *, after_id: int, limit: int) -> sa.Select[Any]:
    """The ids, after one of them, of events finished before a time that nothing needs any more.

    Needed are: failed ones, which wait for a person; and of every version, stage and alias of a model that is there,
    the newest arrival and the newest that was carried out, which say what is current and what was. One that may yet be
    discarded takes nobody's place. And the last word about each version and alias, with which a registry is compared.
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
        .where(OUTBOX.c.kind.not_in(_ARRIVALS) | needless | outlived)
        .where(OUTBOX.c.model_deleted | ~_is_last_word())
        .order_by(OUTBOX.c.id)
        .limit(limit)
    )


def _is_last_word() -> ColumnElement[bool]:
    """Whether an event is the newest that says where a version stands, or which version has an alias.

    A reconcile pass compares the registry with it: without it the version would be taken for one that nobody recorded.
    """
    later = OUTBOX.alias("later")
    same = (later.c.version == OUTBOX.c.version) & later.c.kind.in_(_OF_VERSIONS) & OUTBOX.c.kind.in_(_OF_VERSIONS)
    same_alias = (later.c.alias == OUTBOX.c.alias) & later.c.kind.in_(_OF_ALIASES) & OUTBOX.c.kind.in_(_OF_ALIASES)
    said_later = sa.exists().where(
        later.c.workspace == OUTBOX.c.workspace,
        later.c.model == OUTBOX.c.model,
        later.c.id > OUTBOX.c.id,
        ~later.c.model_deleted,
        same | same_alias,
    )
    return OUTBOX.c.kind.in_([*_OF_VERSIONS, *_OF_ALIASES]) & ~said_later


def remove(ids: Sequence[int]) -> sa.Delete:
    """Delete finished events."""
    return OUTBOX.delete().where(OUTBOX.c.id.in_(ids), OUTBOX.c.finished_ms.is_not(None))


def _ready(moment: ColumnElement[int]) -> ColumnElement[bool]:
    free = OUTBOX.c.leased_until_ms.is_(None) | (OUTBOX.c.leased_until_ms < moment)
    return _PENDING & (OUTBOX.c.not_before_ms <= moment) & free
