"""Facts for the promotion gate, read in the open transaction of the promotion."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
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

from supabase_bridge.core.criteria import VersionMetrics
from supabase_bridge.core.documents import EvaluationProtocol
from supabase_bridge.core.evaluation import PROTOCOL_PARAMS, protocol_of
from supabase_bridge.core.events import Event, EventKind, Triggers
from supabase_bridge.core.tags import rejection
from supabase_bridge.outbox import sql
from supabase_bridge.outbox.freezes import Freeze, covering, freezes_of
from supabase_bridge.registry.promotion_gate import current_version

_TAG_LIMIT = 5_000
_MODEL_ID = re.compile(r"models:/(m-[0-9a-f]+)(?:/.*)?")
_LARGEST = 1.7976931348623157e308
"""The number that MLflow stores for infinity, which some databases lack."""

_MODEL_TAGS = sa.inspect(SqlRegisteredModelTag).local_table
_VERSIONS = sa.inspect(SqlModelVersion).local_table
_VERSION_TAGS = sa.inspect(SqlModelVersionTag).local_table
_ALIASES = sa.inspect(SqlRegisteredModelAlias).local_table
_RUNS = sa.inspect(tracking.SqlRun).local_table
_METRICS = sa.inspect(tracking.SqlLatestMetric).local_table
_PARAMS = sa.inspect(tracking.SqlParam).local_table
# MLflow before 3 has no logged models.
_LOGGED_MODEL_METRIC = getattr(tracking, "SqlLoggedModelMetric", None)


def _mine(table: Any) -> tuple[sa.ColumnElement[bool], ...]:
    """Select the rows of a model in one of MLflow's tables; MLflow before 3 has no workspaces."""
    named: sa.ColumnElement[bool] = table.c.name == sa.bindparam("model")
    return (named, table.c.workspace == sa.bindparam("in_workspace")) if "workspace" in table.c else (named,)


def _of_version(table: Any) -> tuple[sa.ColumnElement[bool], ...]:
    return (*_mine(table), table.c.version == sa.bindparam("of_version"))


# Statements are built once: SQLAlchemy takes longer to build one than SQLite to execute it.
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
_READ_PROTOCOL = (
    sa.select(_PARAMS.c.key, _PARAMS.c.value)
    .join(_VERSIONS, _VERSIONS.c.run_id == _PARAMS.c.run_uuid)
    .where(*_of_version(_VERSIONS), _PARAMS.c.key.in_(PROTOCOL_PARAMS))
)
_READ_STAGE = sa.select(_VERSIONS.c.current_stage).where(*_of_version(_VERSIONS))
_READ_ALIAS = sa.select(_ALIASES.c.version).where(*_mine(_ALIASES), _ALIASES.c.alias == sa.bindparam("of_alias"))
_READ_VERSION_TAGS = sa.select(_VERSION_TAGS.c.key, _VERSION_TAGS.c.value).where(*_of_version(_VERSION_TAGS))
_CHANGE_TAG = (
    _VERSION_TAGS.update()
    .where(*_of_version(_VERSION_TAGS), _VERSION_TAGS.c.key == sa.bindparam("of_key"))
    .values(value=sa.bindparam("new_value"))
)


@dataclass(frozen=True, kw_only=True)
class Holding:
    """A stage or an alias that a version holds."""

    model: str
    version: int
    stage: str | None = None
    alias: str | None = None

    @classmethod
    def of(cls, assignment: Event) -> Holding:
        """Return the stage or alias that an assignment gave its version."""
        stage = assignment.stage if assignment.kind is EventKind.STAGE_CHANGED else None
        return cls(model=assignment.model, version=int(assignment.version or 0), stage=stage, alias=assignment.alias)


class TransactionFacts:
    """The facts about one registered model, read in the transaction that changes it; see `PromotionFacts`.

    Args:
        lost: Stages and aliases that versions lost in this transaction; the database no longer has them.
    """

    def __init__(self, connection: Connection, *, workspace: str, model: str, lost: Collection[Holding] = ()) -> None:
        self.model = model
        self._connection = connection
        self._workspace = workspace
        self._lost = lost

    @cached_property
    def tags(self) -> Mapping[str, str]:
        """The tags of the registered model."""
        return {row.key: row.value or "" for row in self._execute(_READ_MODEL_TAGS)}

    def metrics(self, version: int) -> VersionMetrics:
        """Return the metrics of a version: those of its logged model, then those of its run."""
        rows = self._execute(_READ_METRICS, of_version=version).all()
        run_id, source = (rows[0].run_id, rows[0].source) if rows else (None, None)
        of_run = {row.key: _number(None if row.is_nan else row.value) for row in rows if row.key is not None}
        own = self._model_metrics(source)
        if own or any(row.run_uuid for row in rows):
            # MLflow stores NaN of a logged model as 0; only the run distinguishes the two.
            lost = {name for name, number in own.items() if number == 0 and math.isnan(of_run.get(name, 0))}
            return VersionMetrics(values=of_run | {name: own[name] for name in own.keys() - lost})
        if not run_id:
            return VersionMetrics(values={}, problem="the version has no run, and so no metrics")
        problem = (
            f"its run {run_id} is not in the registry's database, so its metrics cannot be read "
            "(see docs/gate.md, Where the metrics come from)"
        )
        return VersionMetrics(values={}, problem=problem)

    def protocol(self, version: int) -> EvaluationProtocol | None:
        """Return the protocol of the evaluation that a version's run records."""
        return protocol_of({row.key: row.value for row in self._execute(_READ_PROTOCOL, of_version=version)})

    def rejection(self, version: int) -> str | None:
        """Return the reason why a worker found that a version's own files cannot become a release."""
        return rejection({row.key: row.value or "" for row in self._execute(_READ_VERSION_TAGS, of_version=version)})

    def was_current(self, version: int, triggers: Triggers) -> bool:
        """Return whether a worker has activated a version in a channel; no client can write that."""
        values = sql.of_channel(self._workspace, self.model, triggers, of_version=version)
        return self._connection.execute(sql.WAS_ACTIVATED, values).first() is not None

    def freeze(self, triggers: Triggers) -> Freeze | None:
        """Return a freeze of a channel that is in force; None if there is none."""
        return covering(freezes_of(self._connection, self._workspace, self.model), triggers.channel)

    def current(self, triggers: Triggers, *, other_than: int) -> int | None:
        """Return the version that a channel points to, or will point to when the worker has finished its events."""
        values = sql.of_channel(self._workspace, self.model, triggers)
        assignments = [sql.to_event(row) for row in self._connection.execute(sql.ASSIGNMENTS, values)]
        return current_version(
            [assignment for assignment in assignments if assignment.version != other_than],
            lambda assignment: self._holds(assignment) or Holding.of(assignment) in self._lost,
            lambda: self._last_activated(values | {"of_version": other_than}),
        )

    def _last_activated(self, values: dict[str, Any]) -> Event | None:
        row = self._connection.execute(sql.LAST_ACTIVATED, values).first()
        return None if row is None else sql.to_event(row)

    def _holds(self, assignment: Event) -> bool:
        if assignment.kind is EventKind.ALIAS_SET:
            version = self._execute(_READ_ALIAS, of_alias=assignment.alias).scalar()
            return version is not None and int(version) == assignment.version
        return bool(self._execute(_READ_STAGE, of_version=assignment.version).scalar() == assignment.stage)

    def tag_version(self, version: int, key: str, value: str) -> None:
        """Set a tag of a version; the caller's transaction has locked the version."""
        text = value[:_TAG_LIMIT]
        if self._execute(_CHANGE_TAG, of_version=version, of_key=key, new_value=text).rowcount == 0:
            row: dict[str, Any] = {"name": self.model, "version": version, "key": key, "value": text}
            if "workspace" in _VERSION_TAGS.c:
                row["workspace"] = self._workspace
            self._connection.execute(_VERSION_TAGS.insert(), row)

    def _execute(self, statement: Any, **values: Any) -> Any:
        return self._connection.execute(statement, {"model": self.model, "in_workspace": self._workspace, **values})

    def _model_metrics(self, source: str | None) -> dict[str, float]:
        """Return the newest value of each metric of a logged model, by the order that MLflow uses for runs."""
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
    """Convert a stored metric to the value that was logged."""
    if stored is None:
        return float("nan")
    return float("inf") * stored if abs(stored) >= _LARGEST else float(stored)
