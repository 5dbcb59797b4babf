"""Report the current releases, the waiting events and the failed events of registered models.

It reads MLflow's tables and the outbox by SQL: MLflow takes seconds to import, and to answer about 20,000 versions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from supabase_bridge.announce.deliveries import Deliveries, DeliveryState
from supabase_bridge.app.server import check_plugin
from supabase_bridge.app.usage import usage_lines
from supabase_bridge.core.errors import InvalidDocumentError, InvalidNameError
from supabase_bridge.core.events import DEFAULT_WORKSPACE, Event, EventState
from supabase_bridge.core.layout import ChannelPaths, check_model_key
from supabase_bridge.core.release_log import activated_manually
from supabase_bridge.core.tags import Status
from supabase_bridge.outbox.database import database_errors
from supabase_bridge.outbox.freezes import Freeze, load_all_freezes, load_freezes
from supabase_bridge.outbox.queue import Outbox, open_outbox
from supabase_bridge.outbox.tables import OUTBOX
from supabase_bridge.registry.errors import ModelNotFoundError
from supabase_bridge.registry.tables import mlflow_tables
from supabase_bridge.releases.channel import Channel
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.storage.factory import open_store

FAILED = (Status.FAILED.value, Status.REJECTED.value)
"""The states of versions that need a person."""

LISTED = 8
"""Failed events, and failed versions, that an overview lists."""


@dataclass(frozen=True, kw_only=True)
class ChannelReport:
    """A channel as consumers see it; `in_step` is False if manifest.json differs from the log's newest entry."""

    channel: str
    run_id: str
    model_version: int | None
    sequence: int
    published_at: datetime
    activated_manually: bool
    in_step: bool


@dataclass(frozen=True, kw_only=True)
class VersionReport:
    """A version, from its tags; an overview has no aliases."""

    version: int
    stage: str
    run_id: str | None
    status: str | None
    error: str | None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """A registered model; `key` is None if no version was mirrored yet, `problem` the reason why facts are missing.

    `consumers` is how each consumer stands, if the settings switch reports of use on.
    """

    model: str
    key: str | None
    channels: tuple[ChannelReport, ...]
    versions: tuple[VersionReport, ...]
    waiting: int
    dead: int
    problem: str | None = None
    frozen: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Overview:
    """All models of a registry in numbers, and the first problems that need a person.

    Attributes:
        statuses: The number of versions in each state of `supabase.status`; None: not mirrored yet.
        failed_events: The newest failed events.
        failed_versions: Failed versions, each with its model.
        announcements: A line for each destination whose messages wait or have failed, or that has ended.
        freezes: All freezes that are in force.
    """

    models: int
    statuses: Mapping[str | None, int]
    waiting: int
    dead: int
    failed_events: tuple[Event, ...]
    failed_versions: tuple[tuple[str, VersionReport], ...]
    freezes: tuple[Freeze, ...]
    announcements: tuple[str, ...] = ()

    @property
    def versions(self) -> int:
        """The number of versions."""
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        """The number of versions that need a person."""
        return sum(self.statuses.get(status, 0) for status in FAILED)


@contextmanager
def open_view(settings: Settings) -> Iterator[RegistryView]:
    """Open a view of the registry for the length of a block.

    Raises:
        CommandError: MLflow lacks the plugin; see `check_plugin`.
        SettingsError, DatabaseError, RegistryUnavailableError: see `open_outbox`.
    """
    check_plugin(settings)
    with open_outbox(settings) as outbox, closing(open_store(settings, settings.bucket)) as store:
        yield RegistryView(settings, outbox, store)


class RegistryView:
    """The default workspace's models as MLflow's tables, the outbox and the bucket have them.

    Raises (every method):
        RegistryUnavailableError, ObjectStoreError: the database or the store did not answer, or refused the key.
    """

    def __init__(self, settings: Settings, outbox: Outbox, store: ObjectStore) -> None:
        self._settings = settings
        self._outbox = outbox
        self._store = store
        with database_errors("read its tables"):
            tables = mlflow_tables(outbox.engine)
        assert tables.states is not None  # noqa: S101 - MLflow's own tables have it
        self._models, self._states, self._aliases = tables.models, tables.states, tables.aliases

    def overview(self) -> Overview:
        """Report all models in numbers; the bucket is not read."""
        states = self._states
        by_status = _select(states, states.c.status).add_columns(sa.func.count().label("found"))
        by_status = by_status.group_by(states.c.status)
        failed = _select(states, states).where(states.c.status.in_(FAILED)).order_by(states.c.model, states.c.version)
        models = self._rows(_select(self._models, sa.func.count()))
        by_state = sa.select(OUTBOX.c.state, sa.func.count().label("found")).group_by(OUTBOX.c.state)
        unfinished = OUTBOX.c.state.in_([EventState.PENDING.value, EventState.DEAD.value])
        events = {row.state: row.found for row in self._rows(by_state.where(unfinished))}
        newest = self._outbox.events(states=(EventState.DEAD,), newest_first=True)
        return Overview(
            models=models[0][0],
            statuses={row.status: row.found for row in self._rows(by_status)},
            waiting=events.get(EventState.PENDING.value, 0),
            dead=events.get(EventState.DEAD.value, 0),
            failed_events=tuple(islice(newest, LISTED)),
            failed_versions=tuple((row.model, _version(row)) for row in self._rows(failed.limit(LISTED))),
            announcements=self.announcements(),
            freezes=tuple(load_all_freezes(self._outbox.engine, DEFAULT_WORKSPACE)),
        )

    def announcements(self) -> tuple[str, ...]:
        """Return a line for each destination of announcements whose messages wait or failed, or that has ended."""
        deliveries = Deliveries(self._outbox.engine)
        known, counts = deliveries.destinations(), deliveries.counts()
        lines: list[str] = []
        for name in sorted({*known, *(name for name, _ in counts)}):
            waiting, dead = counts[name, DeliveryState.PENDING], counts[name, DeliveryState.DEAD]
            ended = "" if name not in known or known[name].ended is None else f"; it has ended: {known[name].ended}"
            if waiting or dead or ended:
                lines.append(f"announcements to {name}: {waiting} waiting, {dead} failed{ended}")
        return tuple(lines)

    def reports(self, model: str | None) -> list[ModelReport]:
        """Report one registered model, or all models, completely.

        Raises:
            ModelNotFoundError: there is no such model.
        """
        keys = self._keys(model)
        versions = self._versions(model)
        frozen: dict[str, list[str]] = defaultdict(list)
        engine = self._outbox.engine
        in_force = (
            load_all_freezes(engine, DEFAULT_WORKSPACE)
            if model is None
            else load_freezes(engine, DEFAULT_WORKSPACE, model)
        )
        for freeze in in_force:
            frozen[freeze.model].append(str(freeze))
        if any(keys.values()):
            self._store.ensure_bucket()  # A wrong key is an error here; a listing would only be empty.
        unfinished = self._outbox.events(states=(EventState.PENDING, EventState.DEAD), model=model)
        counts = Counter((event.model, event.state) for event in unfinished)
        return [self._report(name, key, versions[name], counts, frozen[name]) for name, key in sorted(keys.items())]

    def _versions(self, model: str | None) -> dict[str, list[VersionReport]]:
        """The versions of each model, or of one, with their aliases; two queries."""
        states, aliases = self._states, self._aliases
        of_version: dict[tuple[str, int], list[str]] = defaultdict(list)
        for row in self._rows(_select(aliases, aliases, model).order_by(aliases.c.alias)):
            of_version[row.model, row.version].append(row.alias)
        versions: dict[str, list[VersionReport]] = defaultdict(list)
        for row in self._rows(_select(states, states, model).order_by(states.c.model, states.c.version)):
            versions[row.model].append(_version(row, of_version.get((row.model, row.version), ())))
        return versions

    def _keys(self, model: str | None) -> dict[str, str | None]:
        """The folder of each model, by the model's name."""
        keys = {row.model: row.key for row in self._rows(_select(self._models, self._models, model))}
        if model is not None and not keys:
            raise ModelNotFoundError(model)
        return keys

    def _report(
        self,
        name: str,
        key: str | None,
        versions: Sequence[VersionReport],
        counts: Counter[tuple[str, EventState]],
        frozen: Sequence[str],
    ) -> ModelReport:
        """Report one model. A model that cannot be read has the reason, so that it hides no other model."""
        channels: tuple[ChannelReport, ...] = ()
        problem = None
        consumers: tuple[str, ...] = ()
        try:
            channels = () if key is None else self._channels(key)
            if key is not None and self._settings.usage_reports:
                now = datetime.now(timezone.utc)
                consumers = usage_lines(self._settings, self._store, key, now=now)
        except (InvalidNameError, InvalidDocumentError) as error:
            problem = str(error)
        return ModelReport(
            model=name,
            key=key,
            channels=channels,
            versions=tuple(versions),
            waiting=counts[name, EventState.PENDING],
            dead=counts[name, EventState.DEAD],
            problem=problem,
            frozen=tuple(frozen),
            consumers=consumers,
        )

    def _channels(self, key: str) -> tuple[ChannelReport, ...]:
        found: list[ChannelReport] = []
        for triggers in self._settings.triggers:
            paths = ChannelPaths(model_key=check_model_key(key), channel=triggers.channel)
            state = Channel(self._store, paths).read_head()
            if state.head is None:
                continue
            current = state.head.current
            found.append(
                ChannelReport(
                    channel=triggers.channel,
                    run_id=current.run_id,
                    model_version=current.model_version,
                    sequence=state.head.sequence,
                    published_at=current.published_at,
                    activated_manually=activated_manually(state.head),
                    in_step=state.manifest_is_current,
                )
            )
        return tuple(found)

    def _rows(self, query: sa.Select[Any]) -> Sequence[Row[Any]]:
        with database_errors("read its tables"), self._outbox.engine.connect() as connection:
            return connection.execute(query).all()


def _select(table: sa.Subquery, columns: Any, model: str | None = None) -> sa.Select[Any]:
    """Select from a subquery of the registry: the default workspace's rows, or one model's."""
    query = sa.select(columns).select_from(table).where(table.c.workspace == DEFAULT_WORKSPACE)
    return query if model is None else query.where(table.c.model == model)


def _version(row: Row[Any], aliases: Sequence[str] = ()) -> VersionReport:
    return VersionReport(
        version=row.version,
        stage=row.stage,
        run_id=row.run_id,
        status=row.status,
        error=row.error,
        aliases=tuple(aliases),
    )
