"""Find registry changes without an event and enqueue the missing events.

SQL compares the registry's tables with the newest event about each version and each alias. Each missing event is
enqueued in a transaction that locks the changed rows and compares again: the plugin commits a change together with its
event, so such a transaction sees both or neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from supabase_bridge.core.events import OF_ALIASES, OF_VERSIONS, EventKind, NewEvent
from supabase_bridge.outbox import periodic
from supabase_bridge.outbox.record import append, retire_model
from supabase_bridge.outbox.tables import OUTBOX
from supabase_bridge.registry.promotion_gate import PromotionGate
from supabase_bridge.registry.tables import DELETED_STAGE, NO_STAGE, RegistryTables

_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class MissingEvent:
    """A missing event; `changed_ms` is the earliest time of the change, None if that is unknown.

    A channel that an operator moved manually stays, unless the change was certainly made later.
    """

    event: NewEvent
    changed_ms: int | None = None


def find_missing_events(engine: Engine, tables: RegistryTables, *, model: str | None = None) -> Iterator[MissingEvent]:
    """Yield every missing event, those that move channels first. Writes nothing.

    Args:
        model: Only of this registered model.
    """
    for search in _SEARCHES:
        with engine.connect() as connection:
            rows = connection.execute(search.query(tables, model)).all()
        yield from search.events(rows)


def enqueue_missing_events(
    engine: Engine, tables: RegistryTables, *, model: str | None = None, gate: PromotionGate | None = None
) -> Iterator[NewEvent]:
    """Enqueue every missing event, in batches; yields each event after its commit.

    If several versions were moved to one stage without events, the highest is enqueued last and so becomes current: the
    order of the moves is unknown, and MLflow too resolves `models:/name/Production` to the highest version.

    Args:
        gate: Blocks promotions that fail their criteria; the next pass finds them again.
    """
    periodic.ensure(engine, periodic.RECONCILE)
    for search in _SEARCHES:
        while True:
            # Each query finds the blocked promotions again, because they still differ.
            known = 0 if gate is None else len(gate.blocked)
            query = search.query(tables, model).limit(_BATCH + known)
            with engine.begin() as connection:
                candidates = connection.execute(query).all()
            if gate is not None:
                # Outside of any transaction, because this waits for MLflow.
                gate.judge(item.event for item in search.events(candidates))
            if not candidates:
                break
            with engine.begin() as connection:
                recorded = _record(connection, tables, search, candidates, model, _admits(gate))
            yield from recorded
            if not recorded and (gate is None or len(gate.blocked) == known):
                break  # The rest is locked by others, or blocked; the next pass finds it again.


def record_in(
    connection: Connection, tables: RegistryTables, *, in_order_of_time: bool, admits: Callable[[NewEvent], bool]
) -> list[NewEvent]:
    """Enqueue every missing event in the caller's transaction; no other process may write these tables.

    Args:
        in_order_of_time: Order the versions that were moved to one stage by the time of their last change, not by
            number; for registries where that is the time of the transition.
        admits: Whether an event may be enqueued; an event that may not stays missing.
    """
    recorded: list[NewEvent] = []
    for search in _SEARCHES:
        rows = connection.execute(search.query(tables, None)).all()
        if in_order_of_time:
            rows = sorted(rows, key=lambda row: row._mapping.get("changed_ms") or 0)
        recorded += _append(connection, search.events(rows), admits)
    return recorded


def record_replaced_models(connection: Connection, workspace: str, models: Iterable[str]) -> list[NewEvent]:
    """Enqueue that models were deleted: other models now have their names. In the caller's transaction."""
    events = [NewEvent(kind=EventKind.MODEL_DELETED, workspace=workspace, model=model) for model in sorted(models)]
    return _append(connection, [MissingEvent(event=event) for event in events], lambda _: True)


def record_replaced_versions(
    connection: Connection, workspace: str, replaced: Mapping[tuple[str, int], str]
) -> list[NewEvent]:
    """Enqueue that versions were deleted and others registered under their numbers. In the caller's transaction.

    Args:
        replaced: From model and number to the stage in which the deleted version was.
    """
    events: list[NewEvent] = []
    for (model, version), stage in sorted(replaced.items()):
        about = NewEvent(kind=EventKind.VERSION_CREATED, workspace=workspace, model=model, version=version)
        if stage != DELETED_STAGE:
            events.append(replace(about, kind=EventKind.VERSION_DELETED, previous_stage=stage))
        events.append(replace(about, stage=NO_STAGE))
    return _append(connection, [MissingEvent(event=event) for event in events], lambda _: True)


@dataclass(frozen=True, kw_only=True)
class _Search:
    """One kind of difference between the registry and the events: a query, and the missing events for its rows."""

    query: Callable[[RegistryTables, str | None], sa.Select[Any]]
    events: Callable[[Sequence[Any]], list[MissingEvent]]


def _record(
    connection: Connection,
    tables: RegistryTables,
    search: _Search,
    candidates: Sequence[Any],
    model: str | None,
    admits: Callable[[NewEvent], bool],
) -> list[NewEvent]:
    """Enqueue the candidates that are still missing and whose rows no other transaction has locked."""
    periodic.lock(connection, periodic.RECONCILE)
    held = {(row.workspace, row.model, row.version) for row in candidates}
    if tables.rows is not None and connection.dialect.name != "sqlite":
        held = _held(connection, tables, held)
    query = search.query(tables, model).limit(len(candidates))
    rows = [row for row in connection.execute(query) if (row.workspace, row.model, row.version) in held]
    return _append(connection, search.events(rows), admits)


def _held(connection: Connection, tables: RegistryTables, wanted: set[Any]) -> set[Any]:
    """Lock the versions' rows, and skip those that others have locked: waiting could cause a deadlock."""
    assert tables.rows is not None  # noqa: S101 - the caller checks it
    table, workspace, name, version = tables.rows
    columns = (name, version) if workspace is None else (workspace, name, version)
    numbered = [key[-len(columns) :] for key in wanted if key[2] is not None]
    query = sa.select(*columns).select_from(table).where(sa.tuple_(*columns).in_(numbered))
    locked = {tuple(row) for row in connection.execute(query.with_for_update(skip_locked=True))} if numbered else set()
    return {key for key in wanted if key[2] is None or key[-len(columns) :] in locked}


def _admits(gate: PromotionGate | None) -> Callable[[NewEvent], bool]:
    return (lambda _: True) if gate is None else gate.admits


def _append(
    connection: Connection, missing: Sequence[MissingEvent], admits: Callable[[NewEvent], bool]
) -> list[NewEvent]:
    recorded: list[NewEvent] = []
    blocked: set[tuple[str, str, int | None]] = set()
    for item in missing:
        event = item.event
        about = (event.workspace, event.model, event.version)
        if not admits(event):
            blocked.add(about)
            continue
        if event.kind is EventKind.VERSION_CREATED and about in blocked:
            # The version is mirrored. Its stage stays unrecorded, so the next pass finds the promotion again.
            event = replace(event, stage=NO_STAGE)
        if event.kind is EventKind.MODEL_DELETED:
            retire_model(connection, workspace=event.workspace, model=event.model)
        append(connection, event, changed_ms=item.changed_ms)
        recorded.append(event)
    return recorded


# --- models -----------------------------------------------------------------------------------------------------------


def _vanished_models(tables: RegistryTables, model: str | None) -> sa.Select[Any]:
    there = sa.exists().where(tables.models.c.model == OUTBOX.c.model, tables.models.c.workspace == OUTBOX.c.workspace)
    alive = ~OUTBOX.c.model_deleted & (OUTBOX.c.kind != EventKind.MODEL_DELETED.value)
    nothing = sa.literal(None, sa.Integer).label("version")
    return (
        sa.select(OUTBOX.c.workspace, OUTBOX.c.model, nothing)
        .where(alive, ~there, *_only(OUTBOX, tables, model))
        .distinct()
        .order_by(OUTBOX.c.workspace, OUTBOX.c.model)
    )


def _model_events(rows: Sequence[Any]) -> list[MissingEvent]:
    return [
        MissingEvent(event=NewEvent(kind=EventKind.MODEL_DELETED, workspace=row.workspace, model=row.model))
        for row in rows
    ]


# --- versions ---------------------------------------------------------------------------------------------------------


def _differing_versions(tables: RegistryTables, model: str | None, *, staged: bool) -> sa.Select[Any]:
    said, versions = OUTBOX.alias("said"), tables.versions
    newest = _newest(OF_VERSIONS, "version")
    same = [newest.c[name] == versions.c[name] for name in ("workspace", "model", "version")]
    deleted = versions.c.stage == DELETED_STAGE
    said_deleted = said.c.kind == EventKind.VERSION_DELETED.value
    other_stage = ~said_deleted & (versions.c.stage != sa.func.coalesce(said.c.stage, NO_STAGE))
    differs = (newest.c.id.is_(None) & ~deleted) | (said_deleted & ~deleted) | other_stage
    moves_pointers = versions.c.stage != NO_STAGE
    return (
        sa.select(versions, said.c.kind.label("said_kind"), said.c.stage.label("said_stage"))
        .select_from(versions.outerjoin(newest, sa.and_(*same)).outerjoin(said, said.c.id == newest.c.id))
        .where(differs, moves_pointers if staged else ~moves_pointers, *_only(versions, tables, model))
        .order_by(versions.c.workspace, versions.c.model, versions.c.version)
    )


def _version_events(rows: Sequence[Any]) -> list[MissingEvent]:
    """Return the events of each version; for unknown versions first the stages, then the creations."""
    moved = [_moved(row) for row in rows if row.stage != NO_STAGE or row.said_kind is not None]
    created = [_unrecorded(row, EventKind.VERSION_CREATED, stage=row.stage) for row in rows if row.said_kind is None]
    return [*moved, *created]


def _moved(row: Any) -> MissingEvent:
    gone = row.said_kind == EventKind.VERSION_DELETED.value
    before = NO_STAGE if gone else row.said_stage or NO_STAGE
    if row.stage == DELETED_STAGE:
        return _unrecorded(row, EventKind.VERSION_DELETED, previous_stage=before)
    return _unrecorded(row, EventKind.STAGE_CHANGED, stage=row.stage, previous_stage=before)


# --- aliases ----------------------------------------------------------------------------------------------------------


def _differing_aliases(tables: RegistryTables, model: str | None) -> sa.Select[Any]:
    said, aliases = OUTBOX.alias("said"), tables.aliases
    newest = _newest(OF_ALIASES, "alias")
    same = [newest.c[name] == aliases.c[name] for name in ("workspace", "model", "alias")]
    set_so = (said.c.kind == EventKind.ALIAS_SET.value) & (said.c.version == aliases.c.version)
    return (
        sa.select(aliases, said.c.kind.label("said_kind"), said.c.version.label("said_version"))
        .select_from(aliases.outerjoin(newest, sa.and_(*same)).outerjoin(said, said.c.id == newest.c.id))
        .where(newest.c.id.is_(None) | ~set_so, *_only(aliases, tables, model))
        .order_by(aliases.c.workspace, aliases.c.model, aliases.c.alias)
    )


def _alias_events(rows: Sequence[Any]) -> list[MissingEvent]:
    return [
        _unrecorded(
            row,
            EventKind.ALIAS_SET,
            alias=row.alias,
            previous_version=row.said_version if row.said_kind == EventKind.ALIAS_SET.value else None,
        )
        for row in rows
    ]


def _vanished_aliases(tables: RegistryTables, model: str | None) -> sa.Select[Any]:
    said, aliases, models = OUTBOX.alias("said"), tables.aliases, tables.models
    newest = _newest(OF_ALIASES, "alias")
    there = sa.exists().where(*(aliases.c[name] == said.c[name] for name in ("workspace", "model", "alias")))
    known = sa.exists().where(models.c.model == said.c.model, models.c.workspace == said.c.workspace)
    return (
        sa.select(said.c.workspace, said.c.model, said.c.alias, said.c.version)
        .join(newest, newest.c.id == said.c.id)
        .where(said.c.kind == EventKind.ALIAS_SET.value, ~there, known, *_only(said, tables, model))
        .order_by(said.c.workspace, said.c.model, said.c.alias)
    )


def _removal_events(rows: Sequence[Any]) -> list[MissingEvent]:
    return [
        MissingEvent(
            event=NewEvent(
                kind=EventKind.ALIAS_REMOVED,
                workspace=row.workspace,
                model=row.model,
                alias=row.alias,
                version=row.version,
            )
        )
        for row in rows
    ]


# --- helpers ----------------------------------------------------------------------------------------------------------


def _newest(kinds: Sequence[EventKind], about: str) -> sa.Subquery:
    """Select the newest event of these kinds for each version, or alias, of existing models."""
    columns = (OUTBOX.c.workspace, OUTBOX.c.model, OUTBOX.c[about])
    return (
        sa.select(sa.func.max(OUTBOX.c.id).label("id"), *columns)
        .where(OUTBOX.c.kind.in_([kind.value for kind in kinds]), ~OUTBOX.c.model_deleted)
        .group_by(*columns)
        .subquery("newest")
    )


def _only(table: sa.FromClause, tables: RegistryTables, model: str | None) -> list[sa.ColumnElement[bool]]:
    mapped = table.c.workspace.in_(tables.workspaces)
    return [mapped] if model is None else [mapped, table.c.model == model]


def _unrecorded(row: Any, kind: EventKind, **facts: Any) -> MissingEvent:
    event = NewEvent(kind=kind, workspace=row.workspace, model=row.model, version=row.version, **facts)
    return MissingEvent(event=event, changed_ms=row.changed_ms)


_SEARCHES = (
    _Search(query=_vanished_models, events=_model_events),
    _Search(query=lambda tables, model: _differing_versions(tables, model, staged=True), events=_version_events),
    _Search(query=_differing_aliases, events=_alias_events),
    _Search(query=_vanished_aliases, events=_removal_events),
    _Search(query=lambda tables, model: _differing_versions(tables, model, staged=False), events=_version_events),
)
