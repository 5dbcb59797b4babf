"""What a gate must know of a registry, read in the transaction that it judges."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from mlflow.store.model_registry.dbmodels.models import (
    SqlModelVersion,
    SqlModelVersionTag,
    SqlRegisteredModelAlias,
    SqlRegisteredModelTag,
)
from mlflow.store.tracking.dbmodels import models as tracking
from sqlalchemy.engine import Connection

from supabase_bridge.channels import Triggers
from supabase_bridge.gates import VersionMetrics
from supabase_bridge.outbox.events import Event, EventKind, EventState
from supabase_bridge.outbox.rows import to_event
from supabase_bridge.outbox.schema import OUTBOX

_TAG_LIMIT = 5_000
_MODEL_ID = re.compile(r"models:/(m-[0-9a-f]+)(?:/.*)?")
_LARGEST = 1.7976931348623157e308
"""What MLflow keeps in place of infinity, which not every database has."""

_MODEL_TAGS = sa.inspect(SqlRegisteredModelTag).local_table
_VERSIONS = sa.inspect(SqlModelVersion).local_table
_VERSION_TAGS = sa.inspect(SqlModelVersionTag).local_table
_ALIASES = sa.inspect(SqlRegisteredModelAlias).local_table
_RUNS = sa.inspect(tracking.SqlRun).local_table
_METRICS = sa.inspect(tracking.SqlLatestMetric).local_table
# MLflow before 3 has no logged models.
_LOGGED_MODEL_METRIC = getattr(tracking, "SqlLoggedModelMetric", None)


def _mine(table: Any) -> tuple[sa.ColumnElement[bool], ...]:
    """A model's rows of a table of MLflow's, which has workspaces or, before 3, has none."""
    named: sa.ColumnElement[bool] = table.c.name == sa.bindparam("model")
    return (named, table.c.workspace == sa.bindparam("in_workspace")) if "workspace" in table.c else (named,)


def _of_version(table: Any) -> tuple[sa.ColumnElement[bool], ...]:
    return (*_mine(table), table.c.version == sa.bindparam("of_version"))


# Statements are made once: SQLAlchemy takes longer to put one together than SQLite to answer it.
_STAGED = (OUTBOX.c.kind == EventKind.STAGE_CHANGED.value) & OUTBOX.c.stage.in_(sa.bindparam("stages", expanding=True))
_ALIASED = (OUTBOX.c.kind == EventKind.ALIAS_SET.value) & OUTBOX.c.alias.in_(sa.bindparam("aliases", expanding=True))
_ARRIVED = (
    OUTBOX.c.workspace == sa.bindparam("in_workspace"),
    OUTBOX.c.model == sa.bindparam("model"),
    _STAGED | _ALIASED,
    OUTBOX.c.state != EventState.DISCARDED.value,
    ~OUTBOX.c.model_deleted,
)
_DONE = OUTBOX.c.state == EventState.DONE.value
_OTHERS = OUTBOX.c.version != sa.bindparam("of_version")

_READ_MODEL_TAGS = sa.select(_MODEL_TAGS.c.key, _MODEL_TAGS.c.value).where(*_mine(_MODEL_TAGS))
_READ_METRICS = (
    sa.select(
        _VERSIONS.c.run_id,
        _VERSIONS.c.source,
        _RUNS.c.run_uuid,
        _METRICS.c.key,
        _METRICS.c.value,
        _METRICS.c.is_nan,
    )
    .select_from(
        _VERSIONS.outerjoin(_RUNS, _RUNS.c.run_uuid == _VERSIONS.c.run_id).outerjoin(
            _METRICS, _METRICS.c.run_uuid == _RUNS.c.run_uuid
        )
    )
    .where(*_of_version(_VERSIONS))
)
_READ_STAGE = sa.select(_VERSIONS.c.current_stage).where(*_of_version(_VERSIONS))
_READ_ALIAS = sa.select(_ALIASES.c.version).where(*_mine(_ALIASES), _ALIASES.c.alias == sa.bindparam("of_alias"))
_WAS_CURRENT = sa.select(OUTBOX.c.id).where(*_ARRIVED, _DONE, OUTBOX.c.version == sa.bindparam("of_version")).limit(1)
_ARRIVALS = (
    OUTBOX.select()
    .where(
        OUTBOX.c.id.in_(
            sa.select(sa.func.max(OUTBOX.c.id))
            .where(*_ARRIVED, _OTHERS)
            .group_by(OUTBOX.c.version, OUTBOX.c.stage, OUTBOX.c.alias)
        )
    )
    .order_by(OUTBOX.c.id.desc())
)
_LAST_SWITCH = OUTBOX.select().where(*_ARRIVED, _DONE, _OTHERS).order_by(OUTBOX.c.id.desc()).limit(1)
_CHANGE_TAG = (
    _VERSION_TAGS.update()
    .where(*_of_version(_VERSION_TAGS), _VERSION_TAGS.c.key == sa.bindparam("of_key"))
    .values(value=sa.bindparam("new_value"))
)


@dataclass(frozen=True, kw_only=True)
class Holding:
    """That a version is in a stage, or has an alias."""

    model: str
    version: int
    stage: str | None = None
    alias: str | None = None

    @classmethod
    def of(cls, arrival: Event) -> Holding:
        """What an arrival gave its version."""
        stage = arrival.stage if arrival.kind is EventKind.STAGE_CHANGED else None
        return cls(model=arrival.model, version=int(arrival.version or 0), stage=stage, alias=arrival.alias)


class RegistryFacts:
    """One registered model, in one transaction."""

    def __init__(self, connection: Connection, *, workspace: str, model: str) -> None:
        self.model = model
        self._connection = connection
        self._workspace = workspace

    @cached_property
    def tags(self) -> Mapping[str, str]:
        """The registered model's tags."""
        return {row.key: row.value or "" for row in self._execute(_READ_MODEL_TAGS)}

    def metrics(self, version: int) -> VersionMetrics:
        """A version's metrics: its run's, and over them those of its own logged model, which are of these weights."""
        rows = self._execute(_READ_METRICS, of_version=version).all()
        run_id, source = (rows[0].run_id, rows[0].source) if rows else (None, None)
        of_run = {row.key: _number(None if row.is_nan else row.value) for row in rows if row.key is not None}
        own = self._model_metrics(source)
        if own or any(row.run_uuid for row in rows):
            # MLflow keeps a logged model's NaN as 0; only the run tells the two apart.
            lost = {name for name, number in own.items() if number == 0 and math.isnan(of_run.get(name, 0))}
            return VersionMetrics(values=of_run | {name: own[name] for name in own.keys() - lost})
        if not run_id:
            return VersionMetrics(values={}, problem="the version has no run, and so no metrics")
        problem = (
            f"its run {run_id} is not in the registry's database, so its metrics cannot be read "
            "(see docs/gate.md, Where the metrics come from)"
        )
        return VersionMetrics(values={}, problem=problem)

    def was_current(self, version: int, triggers: Triggers) -> bool:
        """Whether a worker has finished making a version current in a channel: no client can write that."""
        return self._execute(_WAS_CURRENT, triggers, of_version=version).first() is not None

    def arrivals(self, triggers: Triggers, *, other_than: int) -> Sequence[Event]:
        """Each other version's newest arrival in a channel, the newest first; see `Outbox.arrivals`."""
        return [to_event(row) for row in self._execute(_ARRIVALS, triggers, of_version=other_than)]

    def last_switch(self, triggers: Triggers, *, other_than: int) -> Event | None:
        """The newest arrival of another version that a worker has carried out."""
        row = self._execute(_LAST_SWITCH, triggers, of_version=other_than).first()
        return None if row is None else to_event(row)

    def holds(self, arrival: Event) -> bool:
        """Whether a version still has what an arrival gave it."""
        if arrival.kind is EventKind.ALIAS_SET:
            version = self._execute(_READ_ALIAS, of_alias=arrival.alias).scalar()
            return version is not None and int(version) == arrival.version
        return bool(self._execute(_READ_STAGE, of_version=arrival.version).scalar() == arrival.stage)

    def tag_version(self, version: int, key: str, value: str) -> None:
        """Set a version's tag; the caller's transaction has the version, so nobody else sets it meanwhile."""
        text = value[:_TAG_LIMIT]
        if self._execute(_CHANGE_TAG, of_version=version, of_key=key, new_value=text).rowcount == 0:
            row: dict[str, Any] = {"name": self.model, "version": version, "key": key, "value": text}
            if "workspace" in _VERSION_TAGS.c:
                row["workspace"] = self._workspace
            self._connection.execute(_VERSION_TAGS.insert(), row)

    def _execute(self, statement: Any, triggers: Triggers | None = None, **values: Any) -> Any:
        values |= {"model": self.model, "in_workspace": self._workspace}
        if triggers is not None:
            values |= {"stages": triggers.stages, "aliases": triggers.aliases}
        return self._connection.execute(statement, values)

    def _model_metrics(self, source: str | None) -> dict[str, float]:
        """The newest of each metric that was logged for the version's logged model, as MLflow finds a run's newest."""
        named = _MODEL_ID.fullmatch(source or "")
        if named is None or _LOGGED_MODEL_METRIC is None:
            return {}
        table = sa.inspect(_LOGGED_MODEL_METRIC).local_table
        query = (
            sa.select(table.c.metric_name, table.c.metric_value)
            .where(table.c.model_id == named[1])
            .order_by(table.c.metric_step, table.c.metric_timestamp_ms, table.c.metric_value)
        )
        return {row.metric_name: _number(row.metric_value) for row in self._connection.execute(query)}


def _number(stored: float | None) -> float:
    """A metric as it was logged."""
    if stored is None:
        return float("nan")
    return float("inf") * stored if abs(stored) >= _LARGEST else float(stored)
