"""A remote registry, polled: what MLflow's REST API shows, compared with what it showed before, becomes events.

Source: MLflow's REST API. `search_model_versions` can be sorted by the time of the last change, newest first, so that a
poll reads only what changed; aliases, deletions and renames do not change that time. So every poll reads all models
with their aliases, and a full one, now and then, all versions.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from supabase_bridge.completion import RUN_ID_TAG
from supabase_bridge.errors import ModelNotFoundError, RegistryUnavailableError, VersionNotFoundError
from supabase_bridge.identity import MODEL_KEY_TAG
from supabase_bridge.outbox import duties
from supabase_bridge.outbox.events import NewEvent
from supabase_bridge.outbox.watched import WATCHED_ALIASES, WATCHED_MODELS, WATCHED_TAGS, WATCHED_VERSIONS
from supabase_bridge.reconcile_registry import record_in
from supabase_bridge.registry import Registry, mlflow_errors
from supabase_bridge.registry_tables import DELETED_STAGE, NO_STAGE
from supabase_bridge.status_tags import CHANNEL_TAG, STATUS_TAG
from supabase_bridge.watched_tables import watched_tables

logger = logging.getLogger(__name__)

_MODELS_A_PAGE = 1_000
_VERSIONS_A_PAGE = 1_000
_CHANGED_A_PAGE = 50
_OVERLAP = timedelta(minutes=5)
"""A version's time is taken before its transaction ends, by the clock of one of several servers."""
_TAG_LIMIT = 250
_PROMPT_TAG = "mlflow.prompt.is_prompt"
_DUTY = "watch"


@dataclass(frozen=True, kw_only=True)
class Poll:
    """What a poll came to: the events that it recorded, and whether it read every version."""

    events: tuple[NewEvent, ...]
    full: bool


class RegistryWatch:
    """Follows one remote registry. What it has seen is in the database, so that it may be killed at any time.

    Args:
        engine: The database with the outbox and the registry as it was last seen; its tables exist.
    """

    def __init__(self, registry: Registry, engine: Engine) -> None:
        self._registry = registry
        self._engine = engine
        self._newest_ms: int | None = None

    def poll(self, *, full: bool = False) -> Poll:
        """Look at the registry, and record what changed: what is remembered and the events, in one transaction.

        A version that is in a stage, or has an alias, at the first look has just come there. Of several, the highest
        came last.

        Args:
            full: Read every version; the first poll of a process does in any case.

        Raises:
            RegistryUnavailableError, RegistryRefusedError: MLflow did not answer as it should, or the database did not;
                nothing was changed.
        """
        full = full or self._newest_ms is None
        with _database_errors("recall what it saw"):
            turn = duties.place(self._engine, _DUTY)
        models = {model.name: model for model in self._models()}
        since_ms = None if full else (self._newest_ms or 0) - round(_OVERLAP / timedelta(milliseconds=1))
        # A model that has come into being since is seen whole the next time.
        versions = [version for version in self._versions(since_ms) if version.name in models]
        gone = self._gone(models, versions, full=full)
        with _database_errors("remember what it saw"), self._engine.begin() as connection:
            # First a write, so that nothing read afterwards can be out of date.
            if not duties.move_on(connection, _DUTY, turn):
                logger.info("another watcher has looked meanwhile")
                return Poll(events=(), full=False)
            known = bool(connection.execute(sa.select(WATCHED_VERSIONS.c.model).limit(1)).first())
            _remember_models(connection, models, gone.models)
            _remember_versions(connection, versions, full=full)
            for model, number in gone.versions:
                _set_stage(connection, model, number, DELETED_STAGE)
            events = record_in(connection, watched_tables(), in_order_of_time=known)
        self._newest_ms = max([self._newest_ms or 0, *(version.last_updated_timestamp or 0 for version in versions)])
        return Poll(events=tuple(events), full=full)

    def _models(self) -> Iterator[RegisteredModel]:
        token: str | None = None
        while True:
            with mlflow_errors("list the registered models"):
                page = self._registry.client.search_registered_models(max_results=_MODELS_A_PAGE, page_token=token)
            yield from (model for model in page if (model.tags or {}).get(_PROMPT_TAG) != "true")
            if not (token := page.token):
                return

    def _versions(self, since_ms: int | None) -> Iterator[ModelVersion]:
        """Every version, or those that changed since a time, the last changed first."""
        size = _VERSIONS_A_PAGE if since_ms is None else _CHANGED_A_PAGE
        token: str | None = None
        while True:
            with mlflow_errors("list the model versions"):
                page = self._registry.client.search_model_versions(
                    "", max_results=size, order_by=["last_updated_timestamp DESC"], page_token=token
                )
            for version in page:
                if since_ms is not None and (version.last_updated_timestamp or 0) < since_ms:
                    return
                yield version
            if not (token := page.token):
                return

    def _gone(self, models: dict[str, RegisteredModel], versions: list[ModelVersion], *, full: bool) -> _Gone:
        """What is remembered and was not found, and is not there when it is asked for by name.

        A list read page by page, while others write, may leave out what was there all the time.
        """
        with _database_errors("recall what it saw"), self._engine.connect() as connection:
            remembered = connection.execute(sa.select(WATCHED_MODELS.c.model)).scalars().all()
            alive = sa.select(WATCHED_VERSIONS.c.model, WATCHED_VERSIONS.c.version).where(
                WATCHED_VERSIONS.c.stage != DELETED_STAGE
            )
            known = [(str(row.model), int(row.version)) for row in connection.execute(alive)] if full else []
        gone_models = frozenset(name for name in remembered if name not in models and self._is_gone(name))
        found = {(version.name, int(version.version)) for version in versions}
        missing = [key for key in known if key not in found and key[0] not in gone_models]
        return _Gone(models=gone_models, versions=tuple(key for key in missing if self._is_gone(*key)))

    def _is_gone(self, model: str, version: int | None = None) -> bool:
        try:
            if version is None:
                self._registry.model_tags(model)
            else:
                self._registry.version(model, version)
        except (ModelNotFoundError, VersionNotFoundError):
            return True
        return False


@dataclass(frozen=True, kw_only=True)
class _Gone:
    models: frozenset[str]
    versions: tuple[tuple[str, int], ...]


@contextmanager
def _database_errors(operation: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise RegistryUnavailableError(operation, str(error).split("\n")[0][:300]) from error


def _remember_models(connection: Connection, models: dict[str, RegisteredModel], gone: frozenset[str]) -> None:
    """Make the remembered models and aliases those that were found."""
    for name in sorted(gone):
        for table in (WATCHED_TAGS, WATCHED_ALIASES, WATCHED_VERSIONS, WATCHED_MODELS):
            connection.execute(table.delete().where(table.c.model == name))
    kept = {str(row.model): row.model_key for row in connection.execute(WATCHED_MODELS.select())}
    aliases = {
        (str(row.model), str(row.alias)): int(row.version) for row in connection.execute(WATCHED_ALIASES.select())
    }
    for name, model in models.items():
        key = (model.tags or {}).get(MODEL_KEY_TAG)
        if name not in kept:
            connection.execute(WATCHED_MODELS.insert().values(model=name, model_key=key))
        elif kept[name] != key:
            connection.execute(WATCHED_MODELS.update().where(WATCHED_MODELS.c.model == name).values(model_key=key))
        now = {alias: int(version) for alias, version in (model.aliases or {}).items()}
        before = {alias: version for (owner, alias), version in aliases.items() if owner == name}
        for alias in before.keys() | now.keys():
            if before.get(alias) != now.get(alias):
                _set_alias(connection, name, alias, now.get(alias))


def _set_alias(connection: Connection, model: str, alias: str, version: int | None) -> None:
    of_alias = (WATCHED_ALIASES.c.model == model) & (WATCHED_ALIASES.c.alias == alias)
    connection.execute(WATCHED_ALIASES.delete().where(of_alias))
    if version is not None:
        connection.execute(WATCHED_ALIASES.insert().values(model=model, alias=alias, version=version))


def _remember_versions(connection: Connection, versions: Sequence[ModelVersion], *, full: bool) -> None:
    """Make the remembered versions those that were found; what has not changed is not written."""
    names = sorted({version.name for version in versions})

    def remembered(table: sa.Table) -> Iterator[Any]:
        """The rows of the models concerned; all of them where so many are named that the question gets long."""
        few = not full and len(names) <= _CHANGED_A_PAGE
        yield from connection.execute(table.select().where(table.c.model.in_(names) if few else sa.true()))

    stages = {(row.model, row.version): (row.stage, row.changed_ms) for row in remembered(WATCHED_VERSIONS)}
    tags: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for row in remembered(WATCHED_TAGS):
        tags[row.model, row.version][row.tag] = row.value
    for version in versions:
        key = (version.name, int(version.version))
        now = (version.current_stage or NO_STAGE, version.last_updated_timestamp)
        named = {"model": key[0], "version": key[1]}
        if key not in stages:
            connection.execute(WATCHED_VERSIONS.insert().values(**named, stage=now[0], changed_ms=now[1]))
        elif stages[key] != now:
            of_version = _of_version(WATCHED_VERSIONS, *key)
            connection.execute(WATCHED_VERSIONS.update().where(of_version).values(stage=now[0], changed_ms=now[1]))
        ours = {tag: value[:_TAG_LIMIT] for tag, value in (version.tags or {}).items() if _is_ours(tag)}
        if ours != tags[key]:
            connection.execute(WATCHED_TAGS.delete().where(_of_version(WATCHED_TAGS, *key)))
            for tag, value in ours.items():
                connection.execute(WATCHED_TAGS.insert().values(**named, tag=tag, value=value))


def _set_stage(connection: Connection, model: str, version: int, stage: str) -> None:
    of_version = _of_version(WATCHED_VERSIONS, model, version)
    connection.execute(WATCHED_VERSIONS.update().where(of_version).values(stage=stage))


def _of_version(table: sa.Table, model: str, version: int) -> sa.ColumnElement[bool]:
    return (table.c.model == model) & (table.c.version == version)


def _is_ours(tag: Any) -> bool:
    return tag in {RUN_ID_TAG, STATUS_TAG} or str(tag).startswith(CHANNEL_TAG)
