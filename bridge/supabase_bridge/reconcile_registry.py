"""Changes of the registry that no event tells of: found by SQL, recorded as the events that are missing.

The registry's tables are compared with the newest event about each version and each alias, in the database itself.
What is missing is recorded in transactions that look again: capture commits a change with its event, so whoever holds
the changed rows and then looks sees both or neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from supabase_bridge.arrival_gate import ArrivalGate
from supabase_bridge.outbox import duties
from supabase_bridge.outbox.events import OF_ALIASES, OF_VERSIONS, EventKind, NewEvent
from supabase_bridge.outbox.schema import append, retire_model
from supabase_bridge.outbox.tables import OUTBOX
from supabase_bridge.registry_tables import DELETED_STAGE, NO_STAGE, RegistryTables

_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class Unrecorded:
    """An event that is missing; `changed_ms` is when the change was made at the earliest, None where that is unknown.

    A pointer that somebody moved by hand stays unless the change was certainly made later.
    """

    event: NewEvent
    changed_ms: int | None = None


def find_unrecorded(engine: Engine, tables: RegistryTables, *, model: str | None = None) -> Iterator[Unrecorded]:
    """Every event that is missing now, those that move pointers first. Nothing is written.

    Args:
        model: Only of this registered model.
    """
    for search in _SEARCHES:
        with engine.connect() as connection:
            rows = connection.execute(search.query(tables, model)).all()
        yield from search.events(rows)


def record_unrecorded(
    engine: Engine, tables: RegistryTables, *, model: str | None = None, gate: ArrivalGate | None = None
) -> Iterator[NewEvent]:
    """Record every event that is missing, in batches; each is given back once it is committed.

    Of versions that came to one stage unseen, the highest is recorded last and so becomes current: MLflow too resolves
    `models:/name/Production` to the highest version, and nobody can tell any more in which order people moved them.

    Args:
        gate: Withholds arrivals that fail; each is found again by the next pass.
    """
    duties.ensure(engine, duties.RECONCILE)
    for search in _SEARCHES:
        while True:
            # What is withheld is found again and again: it differs still.
            known = 0 if gate is None else len(gate.withheld)
            query = search.query(tables, model).limit(_BATCH + known)
            with engine.begin() as connection:
                candidates = connection.execute(query).all()
            if gate is not None:
                # Here, where no transaction waits for MLflow's answers.
                gate.judge(item.event for item in search.events(candidates))
            if not candidates:
                break
            with engine.begin() as connection:
                recorded = _record(connection, tables, search, candidates, model, _admits(gate))
            yield from recorded
            if not recorded and (gate is None or len(gate.withheld) == known):
                break  # Others hold what is left, or it is withheld; the next pass looks again.


def record_in(
    connection: Connection, tables: RegistryTables, *, in_order_of_time: bool, admits: Callable[[NewEvent], bool]
) -> list[NewEvent]:
    """Record every event that is missing, in the transaction of `connection`, which alone writes these tables.

    Args:
        in_order_of_time: Of versions that came to one stage unseen, the one that changed last came last, not the
            highest: where the time of their last change is that of the transition.
        admits: Whether an event may be recorded; one that may not is missing still.
    """
    recorded: list[NewEvent] = []
    for search in _SEARCHES:
        rows = connection.execute(search.query(tables, None)).all()
        if in_order_of_time:
            rows = sorted(rows, key=lambda row: row._mapping.get("changed_ms") or 0)
        recorded += _append(connection, search.events(rows), admits)
    return recorded


def record_replaced_models(connection: Connection, workspace: str, models: Iterable[str]) -> list[NewEvent]:
    """Record that models were deleted, so that what is there under their names has no past; like `record_in`."""
    events = [NewEvent(kind=EventKind.MODEL_DELETED, workspace=workspace, model=model) for model in sorted(models)]
    return _append(connection, [Unrecorded(event=event) for event in events], lambda _: True)


def record_replaced_versions(
    connection: Connection, workspace: str, replaced: Mapping[tuple[str, int], str]
) -> list[NewEvent]:
    """Record that versions were deleted and others registered under their numbers; like `record_in`.

    Args:
        replaced: From model and number to the stage in which the deleted version was.
    """
    events: list[NewEvent] = []
    for (model, version), stage in sorted(replaced.items()):
        about = NewEvent(kind=EventKind.VERSION_CREATED, workspace=workspace, model=model, version=version)
        if stage != DELETED_STAGE:
            events.append(replace(about, kind=EventKind.VERSION_DELETED, previous_stage=stage))
        events.append(replace(about, stage=NO_STAGE))
    return _append(connection, [Unrecorded(event=event) for event in events], lambda _: True)


@dataclass(frozen=True, kw_only=True)
class _Search:
    """One way in which the registry and the events can differ: where to look, and what is missing for each row."""

    query: Callable[[RegistryTables, str | None], sa.Select[Any]]
    events: Callable[[Sequence[Any]], list[Unrecorded]]


def _record(
    connection: Connection,
    tables: RegistryTables,
    search: _Search,
    candidates: Sequence[Any],
    model: str | None,
    admits: Callable[[NewEvent], bool],
) -> list[NewEvent]:
    """Record what is still missing of the candidates whose rows nobody else is changing at this moment."""
    duties.lock(connection, duties.RECONCILE)
    held = {(row.workspace, row.model, row.version) for row in candidates}
    if tables.rows is not None and connection.dialect.name != "sqlite":
        held = _held(connection, tables, held)
    query = search.query(tables, model).limit(len(candidates))
    rows = [row for row in connection.execute(query) if (row.workspace, row.model, row.version) in held]
    return _append(connection, search.events(rows), admits)


def _held(connection: Connection, tables: RegistryTables, wanted: set[Any]) -> set[Any]:
    """Lock the versions' rows, without waiting for anybody: who waits can be part of a deadlock."""
    assert tables.rows is not None  # noqa: S101 - the caller has looked
    table, workspace, name, version = tables.rows
    columns = (name, version) if workspace is None else (workspace, name, version)
    numbered = [key[-len(columns) :] for key in wanted if key[2] is not None]
    query = sa.select(*columns).select_from(table).where(sa.tuple_(*columns).in_(numbered))
    locked = {tuple(row) for row in connection.execute(query.with_for_update(skip_locked=True))} if numbered else set()
    return {key for key in wanted if key[2] is None or key[-len(columns) :] in locked}


def _admits(gate: ArrivalGate | None) -> Callable[[NewEvent], bool]:
    return (lambda _: True) if gate is None else gate.admits


def _append(
    connection: Connection, missing: Sequence[Unrecorded], admits: Callable[[NewEvent], bool]
) -> list[NewEvent]:
    recorded: list[NewEvent] = []
    withheld: set[tuple[str, str, int | None]] = set()
    for item in missing:
        event = item.event
        about = (event.workspace, event.model, event.version)
        if not admits(event):
            withheld.add(about)
            continue
        if event.kind is EventKind.VERSION_CREATED and about in withheld:
            # It is mirrored; that it came to its stage is not said, and so is found again.
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


def _model_events(rows: Sequence[Any]) -> list[Unrecorded]:
    return [
        Unrecorded(event=NewEvent(kind=EventKind.MODEL_DELETED, workspace=row.workspace, model=row.model))
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


def _version_events(rows: Sequence[Any]) -> list[Unrecorded]:
    """What happened to each version; of versions unknown so far, first where they stand, then that they are there."""
    moved = [_moved(row) for row in rows if row.stage != NO_STAGE or row.said_kind is not None]
    created = [_unrecorded(row, EventKind.VERSION_CREATED, stage=row.stage) for row in rows if row.said_kind is None]
    return [*moved, *created]


def _moved(row: Any) -> Unrecorded:
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


def _alias_events(rows: Sequence[Any]) -> list[Unrecorded]:
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


def _removal_events(rows: Sequence[Any]) -> list[Unrecorded]:
    return [
        Unrecorded(
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


# --- what they share --------------------------------------------------------------------------------------------------


def _newest(kinds: Sequence[EventKind], about: str) -> sa.Subquery:
    """The newest event of these kinds for each version, or alias, of the models that are there."""
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


def _unrecorded(row: Any, kind: EventKind, **facts: Any) -> Unrecorded:
    event = NewEvent(kind=kind, workspace=row.workspace, model=row.model, version=row.version, **facts)
    return Unrecorded(event=event, changed_ms=row.changed_ms)


_SEARCHES = (
    _Search(query=_vanished_models, events=_model_events),
    _Search(query=lambda tables, model: _differing_versions(tables, model, staged=True), events=_version_events),
    _Search(query=_differing_aliases, events=_alias_events),
    _Search(query=_vanished_aliases, events=_removal_events),
    _Search(query=lambda tables, model: _differing_versions(tables, model, staged=False), events=_version_events),
)
