"""Capture: every change of the registry becomes an event of the outbox, in the transaction that makes the change.

A gate, where one stands, is asked about each event before it is recorded; its refusal takes the whole change back.

SQLAlchemy's mapper events are the only place that sees every change and its transaction: MLflow's methods open their
own sessions, and archive siblings and drop aliases on the way. What they do not see is SQL past the ORM; a reconcile
pass catches that.

Prompts live in the registry's tables too; they are nothing to us. A version's row is deleted only with its model, and a
model's deletion is one event, not one for each version and alias.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL, STAGE_NONE
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY
from mlflow.store.model_registry.dbmodels.models import (
    SqlModelVersion,
    SqlRegisteredModel,
    SqlRegisteredModelAlias,
)
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import object_session

from mlflow_supabase.gate import TransitionGate
from mlflow_supabase.gate_facts import Holding, RegistryFacts
from supabase_bridge.outbox.events import DEFAULT_WORKSPACE, EventKind, NewEvent
from supabase_bridge.outbox.schema import append, rename_model, retire_model

_LOCK = threading.Lock()
_DATABASES: WeakKeyDictionary[Engine, Hashable] = WeakKeyDictionary()
"""What `_database_of` said when it first saw an engine: a later chdir must not make another file of a relative path."""
_WATCHED: dict[Hashable, TransitionGate] = {}
"""The databases whose changes are recorded, each with the gate that stands before its promotions."""
_MODELS = sa.inspect(SqlRegisteredModel).local_table
_LEFT = "supabase_left"
"""Where a session keeps what its versions have held until this transaction."""
_ASKED_FOR: ContextVar[int | str | None] = ContextVar("supabase_transition_asked_for", default=None)


def watch(engine: Engine, gate: TransitionGate) -> None:
    """Record from now on what changes in this engine's database, and ask the gate; its outbox must exist.

    The database counts, not the engine: a change that another store of this process makes in the same database is
    captured too (MLflow 3 has both share one engine anyway). Other databases are left alone. Idempotent.
    """
    with _LOCK:
        for row_class, moment, listener in _LISTENERS:
            if not sa.event.contains(row_class, moment, listener):
                sa.event.listen(row_class, moment, listener)
        _WATCHED[_database_of(engine)] = gate


@contextmanager
def transition_asked_for(version: int | str) -> Iterator[None]:
    """Within it, the update of this version is recorded even if its stage stays what it is: somebody asked for it.

    The version alone says which row is meant: one transition touches one model, whose name may be spelled otherwise
    than asked for (MySQL compares names without case).
    """
    token = _ASKED_FOR.set(version)
    try:
        yield
    finally:
        _ASKED_FOR.reset(token)


def _database_of(engine: Engine) -> Hashable:
    """What tells an engine's database from others: backend, host, port and name; a path for a file."""
    if engine not in _DATABASES:
        url = engine.url
        backend = url.get_backend_name()
        key: Hashable
        if backend != "sqlite":
            # Without a host the query may name a socket.
            key = (backend, url.host, url.port, url.database, None if url.host else url.query)
        elif not url.database or ":memory:" in url.database or url.query.get("mode") == "memory":
            key = object()
        else:
            key = (backend, Path(url.database).absolute())
        _DATABASES[engine] = key
    return _DATABASES[engine]


def _is_watched(connection: Connection) -> bool:
    return _database_of(connection.engine) in _WATCHED


# --- versions ---------------------------------------------------------------------------------------------------------


def _version_inserted(_mapper: object, connection: Connection, row: Any) -> None:
    if _is_watched(connection):
        stage = row.current_stage or STAGE_NONE
        _record(connection, row, EventKind.VERSION_CREATED, version=row.version, stage=stage)


def _version_updated(_mapper: object, connection: Connection, row: Any) -> None:
    if not _is_watched(connection):
        return
    stage, previous = row.current_stage, _before(row, "current_stage")
    # SQLAlchemy calls this for a row that was assigned to, whether or not a value is another one: a transition to the
    # stage that the version is in arrives here even within one millisecond, when last_updated_time stays as well.
    if _ASKED_FOR.get() == row.version:
        _ASKED_FOR.set(None)
    elif stage == previous:
        return
    if stage != previous:
        _left(row).add(Holding(model=_model_of(connection, row), version=row.version, stage=previous))
    if stage == STAGE_DELETED_INTERNAL:
        _record(connection, row, EventKind.VERSION_DELETED, version=row.version, previous_stage=previous)
    else:
        _record(connection, row, EventKind.STAGE_CHANGED, version=row.version, stage=stage, previous_stage=previous)


# --- aliases ----------------------------------------------------------------------------------------------------------


def _alias_inserted(_mapper: object, connection: Connection, row: Any) -> None:
    if _is_watched(connection):
        _record(connection, row, EventKind.ALIAS_SET, alias=row.alias, version=int(row.version))


def _alias_updated(_mapper: object, connection: Connection, row: Any) -> None:
    # Recorded also where the version stays: whoever sets an alias again wants it, as with a stage.
    if _is_watched(connection):
        previous = _before(row, "version")
        version = int(row.version)  # MLflow 2.22 assigns REST's text
        if previous is not None and int(previous) != version:
            _left(row).add(Holding(model=_model_of(connection, row), version=int(previous), alias=row.alias))
        _record(connection, row, EventKind.ALIAS_SET, alias=row.alias, version=version, previous_version=previous)


def _alias_deleted(_mapper: object, connection: Connection, row: Any) -> None:
    if _is_watched(connection) and not _model_goes_too(row, _model_of(connection, row)):
        _record(connection, row, EventKind.ALIAS_REMOVED, alias=row.alias, version=row.version)


def _model_goes_too(row: Any, model: str) -> bool:
    session = object_session(row)
    return session is not None and any(
        isinstance(other, SqlRegisteredModel) and other.name == model and _workspace(other) == _workspace(row)
        for other in session.deleted
    )


# --- models -----------------------------------------------------------------------------------------------------------


def _model_updated(_mapper: object, connection: Connection, row: Any) -> None:
    old = _before(row, "name")
    if old == row.name or not _is_watched(connection):
        return
    rename_model(connection, workspace=_workspace(row), old=old, new=row.name)
    _record(connection, row, EventKind.MODEL_RENAMED, previous_model=old)


def _model_deleted(_mapper: object, connection: Connection, row: Any) -> None:
    # Its tags are gone from the database by now, but the cascade that deleted them has loaded them.
    if _is_watched(connection) and not any(_says_prompt(tag.key, tag.value) for tag in row.registered_model_tags):
        retire_model(connection, workspace=_workspace(row), model=row.name)
        append(connection, NewEvent(kind=EventKind.MODEL_DELETED, workspace=_workspace(row), model=row.name))


# --- what they share --------------------------------------------------------------------------------------------------

_LISTENERS: tuple[tuple[type, str, Callable[[object, Connection, Any], None]], ...] = (
    (SqlModelVersion, "after_insert", _version_inserted),
    (SqlModelVersion, "after_update", _version_updated),
    (SqlRegisteredModelAlias, "after_insert", _alias_inserted),
    (SqlRegisteredModelAlias, "after_update", _alias_updated),
    (SqlRegisteredModelAlias, "after_delete", _alias_deleted),
    (SqlRegisteredModel, "after_update", _model_updated),
    (SqlRegisteredModel, "after_delete", _model_deleted),
)


def _left(row: Any) -> set[Holding]:
    """What versions held before the row's transaction took it away, as far as it is flushed."""
    session = object_session(row)
    left: set[Holding] = set() if session is None else session.info.setdefault(_LEFT, set())
    return left


def _record(connection: Connection, row: Any, kind: EventKind, **facts: Any) -> None:
    """Append an event about `row`'s model, unless it is a prompt.

    Raises:
        MlflowException: the gate refuses it.
    """
    event = NewEvent(kind=kind, workspace=_workspace(row), model=_model_of(connection, row), **facts)
    model = RegistryFacts(connection, workspace=event.workspace, model=event.model)
    if not any(_says_prompt(key, value) for key, value in model.tags.items()):
        _WATCHED[_database_of(connection.engine)].check(model, event, left=_left(row))
        append(connection, event)


def _model_of(connection: Connection, row: Any) -> str:
    """The registered model's own name: on MySQL and MariaDB a row may spell it as the caller did, in another case."""
    if connection.dialect.name in {"mysql", "mariadb"}:
        query = sa.select(_MODELS.c.name).where(_MODELS.c.name == row.name)
        if "workspace" in _MODELS.c:
            query = query.where(_MODELS.c.workspace == _workspace(row))
        if (found := connection.execute(query).scalar()) is not None:
            return str(found)
    return str(row.name)


def _says_prompt(key: str, value: str | None) -> bool:
    """Whether a tag makes a prompt of a model: the exact value, as MLflow's search has it; `True` leaves it a model."""
    return key == IS_PROMPT_TAG_KEY and value == "true"


def _workspace(row: Any) -> str:
    """The row's workspace; MLflow before 3 has none."""
    return getattr(row, "workspace", None) or DEFAULT_WORKSPACE


def _before(row: Any, attribute: str) -> Any:
    """What an attribute was before this flush; what it is, if it was not changed."""
    history = sa.inspect(row).attrs[attribute].history
    if history.deleted:
        return history.deleted[0]
    return None if history.added else getattr(row, attribute)
