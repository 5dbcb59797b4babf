"""A remote registry, polled: what MLflow's REST API shows, compared with what it showed before, becomes events.

Source: MLflow's REST API. `search_model_versions` can be sorted by the time of the last change, newest first, so that a
poll reads only what changed; aliases, deletions and renames do not change that time. So every poll reads all models
with their aliases, and a full one, now and then, all versions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import sqlalchemy as sa
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from sqlalchemy.exc import SQLAlchemyError

from supabase_bridge.arrival_gate import ArrivalGate
from supabase_bridge.config import Settings
from supabase_bridge.errors import ModelNotFoundError, RegistryUnavailableError, VersionNotFoundError
from supabase_bridge.outbox import duties
from supabase_bridge.outbox.events import DEFAULT_WORKSPACE, NewEvent
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.watched import WATCHED_MODELS, WATCHED_VERSIONS
from supabase_bridge.reconcile_registry import record_in, record_replaced_models, record_replaced_versions
from supabase_bridge.registry import Registry, mlflow_errors
from supabase_bridge.registry_tables import DELETED_STAGE, PROMPT_TAG
from supabase_bridge.watched_memory import remember_models, remember_versions, set_stage
from supabase_bridge.watched_tables import watched_tables

logger = logging.getLogger(__name__)

_MODELS_A_PAGE = 1_000
_VERSIONS_A_PAGE = 1_000
_CHANGED_A_PAGE = 50
_OVERLAP = timedelta(minutes=5)
"""A version's time is taken before its transaction ends, by the clock of one of several servers."""
_NAME_LIMIT = 256
_DUTY = "watch"


@dataclass(frozen=True, kw_only=True)
class Poll:
    """What a poll came to: the events that it recorded, and whether it read every version.

    Attributes:
        withheld: How many arrivals are not recorded, because their versions fail their gate.
    """

    events: tuple[NewEvent, ...]
    full: bool
    withheld: int = 0


class RegistryWatch:
    """Follows one remote registry. What it has seen is in the database, so that it may be killed at any time.

    Args:
        outbox: Its database has the registry as it was last seen, too; the tables exist.
    """

    def __init__(self, registry: Registry, outbox: Outbox, settings: Settings) -> None:
        self._registry = registry
        self._outbox = outbox
        self._engine = outbox.engine
        self._settings = settings
        self._refused: Mapping[NewEvent, str] = {}
        self._newest_ms: int | None = None
        self._left_out: set[str] = set()

    def poll(self, *, full: bool = False) -> Poll:
        """Look at the registry, and record what changed: what is remembered and the events, in one transaction.

        A version that is in a stage, or has an alias, at the first look has just come there. Of several, the highest
        came last. An arrival that fails its gate is not recorded; every full poll judges it again.

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
        seen = _Seen(models=models, versions=versions, gone=self._gone(models, versions, full=full), full=full)
        refused = {} if full else self._refused
        gate = ArrivalGate(settings=self._settings, registry=self._registry, outbox=self._outbox, refused=refused)
        tried = self._record(turn, seen, gate)
        if tried.undecided:
            # What was written is taken back: no transaction waits for MLflow's answers.
            gate.judge(tried.undecided)
            tried = self._record(turn, seen, gate, conclude=True)
        if tried.overtaken:
            logger.info("another watcher has looked meanwhile")
            return Poll(events=(), full=False)
        self._refused = {**gate.withheld, **{event: refused[event] for event in tried.refused if event in refused}}
        self._newest_ms = max([self._newest_ms or 0, *(version.last_updated_timestamp or 0 for version in versions)])
        return Poll(events=tuple(tried.events), full=full, withheld=len(self._refused))

    def _record(self, turn: str, seen: _Seen, gate: ArrivalGate, *, conclude: bool = False) -> _Tried:
        """Remember and record, unless the gate has yet to judge something.

        Args:
            conclude: Commit all the same; what was not judged is left to the next poll.
        """
        tried = _Tried()

        def admits(event: NewEvent) -> bool:
            if not gate.admits(event):
                (tried.undecided if gate.undecided(event) else tried.refused).append(event)
            return gate.admits(event)

        with _database_errors("remember what it saw"), self._engine.connect() as connection:
            # First a write, so that nothing read afterwards can be out of date.
            if not duties.move_on(connection, _DUTY, turn):
                tried.overtaken = True
                return tried
            known = bool(connection.execute(sa.select(WATCHED_VERSIONS.c.model).limit(1)).first())
            new_models = remember_models(connection, seen.models, seen.gone.models)
            new_versions = remember_versions(connection, seen.versions, full=seen.full)
            for model, number in seen.gone.versions:
                set_stage(connection, model, number, DELETED_STAGE)
            tried.events = [
                *record_replaced_models(connection, DEFAULT_WORKSPACE, new_models),
                *record_replaced_versions(connection, DEFAULT_WORKSPACE, new_versions),
                *record_in(connection, watched_tables(), in_order_of_time=known, admits=admits),
            ]
            if conclude or not tried.undecided:
                connection.commit()
        return tried

    def _models(self) -> Iterator[RegisteredModel]:
        token: str | None = None
        while True:
            with mlflow_errors("list the registered models"):
                page = self._registry.client.search_registered_models(max_results=_MODELS_A_PAGE, page_token=token)
            yield from (model for model in page if self._is_followed(model))
            if not (token := page.token):
                return

    def _is_followed(self, model: RegisteredModel) -> bool:
        """Prompts are not, nor names that not every database takes: MLflow on SQLite keeps names of any length."""
        if (model.tags or {}).get(PROMPT_TAG) == "true":
            return False
        if len(model.name) <= _NAME_LIMIT and "\0" not in model.name:
            return True
        if model.name not in self._left_out:
            self._left_out.add(model.name)
            logger.warning("a model's name is too long to follow", extra={"model": model.name[:50]})
        return False

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


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What a poll has read."""

    models: dict[str, RegisteredModel]
    versions: list[ModelVersion]
    gone: _Gone
    full: bool


@dataclass(kw_only=True)
class _Tried:
    """What came of recording; with `undecided` nothing was written."""

    events: list[NewEvent] = field(default_factory=list)
    undecided: list[NewEvent] = field(default_factory=list)
    refused: list[NewEvent] = field(default_factory=list)
    overtaken: bool = False


@contextmanager
def _database_errors(operation: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise RegistryUnavailableError(operation, str(error).split("\n")[0][:300]) from error
