"""Poll a remote registry over MLflow's REST API, compare it with the last poll, and record the changes as events.

`search_model_versions` can sort by the time of the last change, newest first, so a poll reads only changed versions.
Aliases, deletions and renames do not change that time. Therefore every poll reads all models with their aliases, and an
occasional full poll reads all versions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import sqlalchemy as sa
from mlflow.entities.model_registry import ModelVersion, RegisteredModel

from supabase_bridge.core.events import DEFAULT_WORKSPACE, NewEvent
from supabase_bridge.follower.snapshot import set_stage, store_models, store_versions, watched_tables
from supabase_bridge.outbox import periodic
from supabase_bridge.outbox.database import database_errors
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.tables import WATCHED_MODELS, WATCHED_VERSIONS
from supabase_bridge.registry.client import Registry, mlflow_errors
from supabase_bridge.registry.diff import record_in, record_replaced_models, record_replaced_versions
from supabase_bridge.registry.errors import ModelNotFoundError, VersionNotFoundError
from supabase_bridge.registry.promotion_gate import PromotionGate
from supabase_bridge.registry.tables import DELETED_STAGE, PROMPT_TAG
from supabase_bridge.settings.model import Settings

logger = logging.getLogger(__name__)

_MODELS_A_PAGE = 1_000
_VERSIONS_A_PAGE = 1_000
_CHANGED_A_PAGE = 50
_OVERLAP = timedelta(minutes=5)
"""The servers' clocks differ, and a version's time is taken before its transaction is committed."""
_NAME_LIMIT = 256
_TASK = "watch"


@dataclass(frozen=True, kw_only=True)
class Poll:
    """The result of a poll: the recorded events, and whether it read every version.

    Attributes:
        blocked: The number of assignments that are not recorded, because their versions fail the promotion gate.
    """

    events: tuple[NewEvent, ...]
    full: bool
    blocked: int = 0


class RegistryPoller:
    """Polls one remote registry. Its state is in the database, so the process may be killed at any time.

    Args:
        outbox: An outbox in the database that also stores the last poll; see `snapshot.open_snapshot`.
    """

    def __init__(self, registry: Registry, outbox: Outbox, settings: Settings) -> None:
        self._registry = registry
        self._outbox = outbox
        self._engine = outbox.engine
        self._settings = settings
        self._refused: Mapping[NewEvent, str] = {}
        self._newest_ms: int | None = None
        self._ignored: set[str] = set()

    def poll(self, *, full: bool = False) -> Poll:
        """Read the registry, and store the new snapshot and the events of its changes in one transaction.

        The first poll treats each stage and alias as assigned now; among several versions the highest counts as the
        last. An assignment that fails the promotion gate is not recorded; every full poll evaluates it again.

        Args:
            full: Read every version. The first poll of a process always does.

        Raises:
            RegistryUnavailableError, RegistryRefusedError: MLflow or the database failed; nothing was changed.
        """
        full = full or self._newest_ms is None
        with database_errors("read the last snapshot"):
            turn = periodic.cursor(self._engine, _TASK)
        models = {model.name: model for model in self._models()}
        since_ms = None if full else (self._newest_ms or 0) - round(_OVERLAP / timedelta(milliseconds=1))
        # A model that was created after the models were read is left to the next poll.
        versions = [version for version in self._versions(since_ms) if version.name in models]
        found = _Found(models=models, versions=versions, gone=self._gone(models, versions, full=full), full=full)
        refused = {} if full else self._refused
        gate = PromotionGate(settings=self._settings, registry=self._registry, outbox=self._outbox, refused=refused)
        attempt = self._record(turn, found, gate)
        if attempt.undecided:
            # The transaction is rolled back, so that none is open while MLflow answers the gate.
            gate.judge(attempt.undecided)
            attempt = self._record(turn, found, gate, conclude=True)
        if attempt.overtaken:
            logger.info("another process has polled meanwhile")
            return Poll(events=(), full=False)
        self._refused = {**gate.blocked, **{event: refused[event] for event in attempt.refused if event in refused}}
        self._newest_ms = max([self._newest_ms or 0, *(version.last_updated_timestamp or 0 for version in versions)])
        return Poll(events=tuple(attempt.events), full=full, blocked=len(self._refused))

    def _record(self, turn: str, found: _Found, gate: PromotionGate, *, conclude: bool = False) -> _Attempt:
        """Store snapshot and events, unless the gate has to evaluate an event first.

        Args:
            conclude: Commit in any case; events that were not evaluated are left to the next poll.
        """
        attempt = _Attempt()

        def admits(event: NewEvent) -> bool:
            if not gate.admits(event):
                (attempt.undecided if gate.undecided(event) else attempt.refused).append(event)
            return gate.admits(event)

        with database_errors("store the snapshot"), self._engine.connect() as connection:
            # The first statement is a write, so that later reads of the transaction are current.
            if not periodic.advance(connection, _TASK, turn):
                attempt.overtaken = True
                return attempt
            known = bool(connection.execute(sa.select(WATCHED_VERSIONS.c.model).limit(1)).first())
            new_models = store_models(connection, found.models, found.gone.models)
            new_versions = store_versions(connection, found.versions, full=found.full)
            for model, number in found.gone.versions:
                set_stage(connection, model, number, DELETED_STAGE)
            attempt.events = [
                *record_replaced_models(connection, DEFAULT_WORKSPACE, new_models),
                *record_replaced_versions(connection, DEFAULT_WORKSPACE, new_versions),
                *record_in(connection, watched_tables(), in_order_of_time=known, admits=admits),
            ]
            if conclude or not attempt.undecided:
                connection.commit()
        return attempt

    def _models(self) -> Iterator[RegisteredModel]:
        token: str | None = None
        while True:
            with mlflow_errors("list the registered models"):
                page = self._registry.client.search_registered_models(max_results=_MODELS_A_PAGE, page_token=token)
            yield from (model for model in page if self._is_followed(model))
            if not (token := page.token):
                return

    def _is_followed(self, model: RegisteredModel) -> bool:
        """Exclude prompts, and names that some databases refuse: MLflow on SQLite stores names of any length."""
        if (model.tags or {}).get(PROMPT_TAG) == "true":
            return False
        if len(model.name) <= _NAME_LIMIT and "\0" not in model.name:
            return True
        if model.name not in self._ignored:
            self._ignored.add(model.name)
            logger.warning("a model's name is too long to follow", extra={"model": model.name[:50]})
        return False

    def _versions(self, since_ms: int | None) -> Iterator[ModelVersion]:
        """Yield every version, or those changed since a time, the last changed first."""
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
        """Return stored models and versions that were not found, and that do not exist when requested by name.

        A list that is read page by page during writes can miss existing entries.
        """
        with database_errors("read the last snapshot"), self._engine.connect() as connection:
            stored = connection.execute(sa.select(WATCHED_MODELS.c.model)).scalars().all()
            alive = sa.select(WATCHED_VERSIONS.c.model, WATCHED_VERSIONS.c.version).where(
                WATCHED_VERSIONS.c.stage != DELETED_STAGE
            )
            known = [(str(row.model), int(row.version)) for row in connection.execute(alive)] if full else []
        gone_models = frozenset(name for name in stored if name not in models and self._is_gone(name))
        found = {(version.name, int(version.version)) for version in versions}
        missing = [key for key in known if key not in found and key[0] not in gone_models]
        return _Gone(models=gone_models, versions=tuple(key for key in missing if self._is_gone(*key)))

    def _is_gone(self, model: str, version: int | None = None) -> bool:
        try:
            if version is None:
                self._registry.model(model)
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
class _Found:
    """What a poll has read."""

    models: dict[str, RegisteredModel]
    versions: list[ModelVersion]
    gone: _Gone
    full: bool


@dataclass(kw_only=True)
class _Attempt:
    """The result of `_record`; if `undecided` is not empty, nothing was written."""

    events: list[NewEvent] = field(default_factory=list)
    undecided: list[NewEvent] = field(default_factory=list)
    refused: list[NewEvent] = field(default_factory=list)
    overtaken: bool = False
