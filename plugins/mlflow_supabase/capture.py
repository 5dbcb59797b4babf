"""Write an event to the outbox for every change of the registry, in the transaction that makes the change.

The promotion gate checks each event first; if it refuses, the whole transaction is rolled back.

Only SQLAlchemy's mapper events see every change and its transaction: MLflow's methods open their own sessions, archive
other versions and delete aliases. The reconciler finds changes by SQL that bypassed the ORM.

Prompts are stored in the registry's tables too and are ignored. A version's row is deleted only with its model, and the
deletion of a model is one event, not one for each version and alias.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from mlflow import environment_variables
from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL, STAGE_NONE
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY
from mlflow.store.model_registry.dbmodels.models import (
    SqlModelVersion,
    SqlRegisteredModel,
    SqlRegisteredModelAlias,
)
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.uri import resolve_uri_if_local
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import object_session

from mlflow_supabase.facts import Holding, TransactionFacts
from mlflow_supabase.gate import TransitionGate
from mlflow_supabase.requester import requester
from supabase_bridge.core.events import DEFAULT_WORKSPACE, EventKind, NewEvent
from supabase_bridge.core.tags import inherited
from supabase_bridge.outbox.artifact_roots import ArtifactRoots, record_artifact_roots
from supabase_bridge.outbox.record import append, rename_model, retire_model
from supabase_bridge.outbox.schema import ensure_schema
from supabase_bridge.settings.model import Settings

_LOCK = threading.Lock()
_DATABASES: WeakKeyDictionary[Engine, Hashable] = WeakKeyDictionary()
"""Cache of `_database_of`: after a chdir a relative path would name another file."""
_WATCHED: dict[Hashable, TransitionGate] = {}
"""The captured databases, each with its promotion gate."""
_MODELS = sa.inspect(SqlRegisteredModel).local_table
_LOST = "supabase_lost"
"""Session key for stages and aliases that versions lost in this transaction."""
_REQUESTED: ContextVar[int | str | None] = ContextVar("supabase_requested_transition", default=None)


def watch(engine: Engine, gate: TransitionGate) -> None:
    """Capture the changes of this engine's database from now on; its outbox must exist. Idempotent.

    The database counts, not the engine: a change that another store of this process makes in the same database is
    captured too. Other databases are ignored.
    """
    with _LOCK:
        for row_class, moment, listener in _LISTENERS:
            if not sa.event.contains(row_class, moment, listener):
                sa.event.listen(row_class, moment, listener)
        _WATCHED[_database_of(engine)] = gate


@contextmanager
def requested_transition(version: int | str) -> Iterator[None]:
    """Within this block an update of the version is an event even if its stage does not change: a client requested it.

    The number identifies the row, because one transition changes one model. The name does not: MySQL compares names
    without case, so the row may spell it differently.
    """
    token = _REQUESTED.set(version)
    try:
        yield
    finally:
        _REQUESTED.reset(token)


def _database_of(engine: Engine) -> Hashable:
    """Return the identity of an engine's database: backend, host, port and name; the path of a file."""
    if engine not in _DATABASES:
        url = engine.url
        backend = url.get_backend_name()
        key: Hashable
        if backend != "sqlite":
            # Without a host the query string may name a socket.
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
    # SQLAlchemy calls this for each row that was assigned to, even if no value changed: a transition to the version's
    # own stage gets here even if it happens within the same millisecond and last_updated_time does not change.
    if _REQUESTED.get() == row.version:
        _REQUESTED.set(None)
    elif stage == previous:
        return
    if stage != previous:
        _lost(row).add(Holding(model=_model_of(connection, row), version=row.version, stage=previous))
    if stage == STAGE_DELETED_INTERNAL:
        _record(connection, row, EventKind.VERSION_DELETED, version=row.version, previous_stage=previous)
    else:
        _record(connection, row, EventKind.STAGE_CHANGED, version=row.version, stage=stage, previous_stage=previous)


# --- aliases ----------------------------------------------------------------------------------------------------------


def _alias_inserted(_mapper: object, connection: Connection, row: Any) -> None:
    if _is_watched(connection):
        _record(connection, row, EventKind.ALIAS_SET, alias=row.alias, version=int(row.version))


def _alias_updated(_mapper: object, connection: Connection, row: Any) -> None:
    # An event even if the version does not change: a client that sets an alias again wants it, as with a stage.
    if _is_watched(connection):
        previous = _before(row, "version")
        version = int(row.version)  # MLflow 2.22 assigns the text from REST
        if previous is not None and int(previous) != version:
            _lost(row).add(Holding(model=_model_of(connection, row), version=int(previous), alias=row.alias))
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
    # The cascade has deleted the tags from the database, but had loaded them before.
    if _is_watched(connection) and not any(_is_prompt_tag(tag.key, tag.value) for tag in row.registered_model_tags):
        retire_model(connection, workspace=_workspace(row), model=row.name)
        append(connection, NewEvent(kind=EventKind.MODEL_DELETED, workspace=_workspace(row), model=row.name))


# --- helpers ----------------------------------------------------------------------------------------------------------

_LISTENERS: tuple[tuple[type, str, Callable[[object, Connection, Any], None]], ...] = (
    (SqlModelVersion, "after_insert", _version_inserted),
    (SqlModelVersion, "after_update", _version_updated),
    (SqlRegisteredModelAlias, "after_insert", _alias_inserted),
    (SqlRegisteredModelAlias, "after_update", _alias_updated),
    (SqlRegisteredModelAlias, "after_delete", _alias_deleted),
    (SqlRegisteredModel, "after_update", _model_updated),
    (SqlRegisteredModel, "after_delete", _model_deleted),
)


def _lost(row: Any) -> set[Holding]:
    """Return the stages and aliases that versions lost in the row's transaction, as far as it is flushed."""
    session = object_session(row)
    lost: set[Holding] = set() if session is None else session.info.setdefault(_LOST, set())
    return lost


def _record(connection: Connection, row: Any, kind: EventKind, **values: Any) -> None:
    """Append an event about `row`'s model, unless it is a prompt.

    Raises:
        MlflowException: the gate refuses it.
    """
    event = NewEvent(kind=kind, workspace=_workspace(row), model=_model_of(connection, row), **values)
    facts = TransactionFacts(connection, workspace=event.workspace, model=event.model, lost=_lost(row))
    if not any(_is_prompt_tag(key, value) for key, value in facts.tags.items()):
        gate = _WATCHED[_database_of(connection.engine)]
        gate.check(event, facts)
        append(connection, replace(event, made_by=requester(gate.trusted_user_header)))


def _model_of(connection: Connection, row: Any) -> str:
    """Return the registered model's own name; on MySQL and MariaDB a row may spell it in another case."""
    if connection.dialect.name in {"mysql", "mariadb"}:
        query = sa.select(_MODELS.c.name).where(_MODELS.c.name == row.name)
        if "workspace" in _MODELS.c:
            query = query.where(_MODELS.c.workspace == _workspace(row))
        if (found := connection.execute(query).scalar()) is not None:
            return str(found)
    return str(row.name)


def _is_prompt_tag(key: str, value: str | None) -> bool:
    """Return whether a tag marks a prompt: exactly `true`, as in MLflow's search; `True` does not."""
    return key == IS_PROMPT_TAG_KEY and value == "true"


def _workspace(row: Any) -> str:
    """Return the row's workspace; MLflow before 3 has none."""
    return getattr(row, "workspace", None) or DEFAULT_WORKSPACE


def _before(row: Any, attribute: str) -> Any:
    """Return the value of an attribute before this flush; the current value if it was not changed."""
    history = sa.inspect(row).attrs[attribute].history
    if history.deleted:
        return history.deleted[0]
    return None if history.added else getattr(row, attribute)


# --- the store --------------------------------------------------------------------------------------------------------


class CapturingStore(SqlAlchemyStore):
    """MLflow's store; the promotion gate and the outbox take part in each of its transactions."""

    def __init__(self, db_uri: str) -> None:
        super().__init__(db_uri)  # type: ignore[no-untyped-call]  # MLflow does not annotate it
        ensure_schema(self.engine)
        if (roots := _artifact_roots()) is not None:
            record_artifact_roots(self.engine, roots)
        watch(self.engine, TransitionGate(Settings.for_registry))

    def create_model_version(
        self, name: str, source: str | None, run_id: str | None = None, tags: Any = None, *more: Any, **others: Any
    ) -> Any:
        """Create a version, as MLflow does; a copy of another version does not get our tags of that version."""
        dropped = inherited(source or "", {tag.key: "" for tag in tags or ()})
        kept = [tag for tag in tags or () if tag.key not in dropped]
        return super().create_model_version(name, source, run_id, kept, *more, **others)

    def delete_model_version(self, name: str, version: int | str) -> Any:
        """Delete a version, as MLflow does. MLflow 2.22 deletes its aliases only if the version is a number."""
        return super().delete_model_version(name, _number(version))  # type: ignore[no-untyped-call]  # not annotated

    def transition_model_version_stage(
        self, name: str, version: int | str, stage: str, archive_existing_versions: bool
    ) -> Any:
        """Move a version to a stage, as MLflow does; an event even if the version is in that stage already."""
        version = _number(version)
        with requested_transition(version):
            return super().transition_model_version_stage(  # type: ignore[no-untyped-call]  # MLflow does not annotate it
                name, version, stage, archive_existing_versions
            )


def _artifact_roots() -> ArtifactRoots | None:
    """Return --artifacts-destination and --default-artifact-root of the MLflow server; None in any other process.

    `mlflow server` passes its options to its own processes as variables. A relative path is below its directory.
    """
    # mlflow.server has these names as constants, and takes a second to import.
    default_root = os.environ.get("_MLFLOW_SERVER_ARTIFACT_ROOT")
    if default_root is None:
        return None
    served = os.environ.get("_MLFLOW_SERVER_SERVE_ARTIFACTS") == "true"
    destination = os.environ.get("_MLFLOW_SERVER_ARTIFACT_DESTINATION")
    proxied = default_root.startswith("mlflow-artifacts:")
    return ArtifactRoots(
        artifacts_destination=resolve_uri_if_local(destination) if served and destination else None,
        default_artifact_root=None if proxied else resolve_uri_if_local(default_root),
    )


def _number(version: int | str) -> int | str:
    """Convert a version from REST, which is a text; psycopg 3 refuses to compare a text with an integer column.

    Any other text is returned unchanged, so that MLflow refuses it with its own message.
    """
    try:
        return int(version)
    except ValueError:
        return version


def store_class() -> type[CapturingStore]:
    """Return the store class for this version of MLflow and its settings; MLflow before 3 has no workspaces."""
    switch = getattr(environment_variables, "MLFLOW_ENABLE_WORKSPACES", None)
    if switch is None or not switch.get():
        return CapturingStore
    from mlflow.store.model_registry.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore

    class CapturingWorkspaceStore(CapturingStore, WorkspaceAwareSqlAlchemyStore):
        """The store for workspaces: each request selects one."""

    return CapturingWorkspaceStore
