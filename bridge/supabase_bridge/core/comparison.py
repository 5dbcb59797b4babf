"""Compare two releases by their documents: metrics, parameters, data, code, ONNX graph, files. Pure.

`comparison_text` shows the result. The command `diff`, the drafted summary.md and announcements use both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from types import MappingProxyType
from typing import Any

from supabase_bridge.core.documents import DataSnapshot, FileRecord, Manifest, Metrics, ModelMeta, OnnxGraph
from supabase_bridge.core.evaluation import PROTOCOL_PARAMS, incomparable
from supabase_bridge.core.layout import META_NAME, METRICS_NAME, MLMODEL_NAME, SIGNATURE_NAME, SUMMARY_NAME

DIMENSIONS = (
    "input_schema_version",
    "embedding_dim",
    "hidden_dim",
    "user_feature_dim",
    "item_feature_dim",
    "tag_vocab_size",
    "performer_vocab_size",
    "preferred_tag_vocab_size",
)
"""The fields of model_meta.json that are whole numbers of the model."""
_ELSEWHERE = {*DIMENSIONS, *PROTOCOL_PARAMS, "prep_run_id", "source_csv", "validation_set", "run_id", "trained_at"}
"""Params of a run that fields of the documents hold too."""
_DATASETS_COMPARED = 100
_DOCUMENTS = {META_NAME, METRICS_NAME, SUMMARY_NAME, MLMODEL_NAME, SIGNATURE_NAME}
"""Files that differ in every two releases; the comparison reads the first two."""


class Area(str, Enum):
    """What a change is about."""

    PARAMETERS = "parameters"
    DIMENSIONS = "dimensions"
    DATA = "data"
    CODE = "code"
    EVALUATION = "evaluation"
    INPUTS = "inputs"
    OUTPUTS = "outputs"
    OPERATORS = "operators"
    FILES = "files"


@dataclass(frozen=True, kw_only=True)
class ReleaseDocuments:
    """The documents of one release.

    Attributes:
        metrics: None: the release has none, or they cannot be read.
        entry: The log entry by which the release became current; None: it never did, or that is not asked.
    """

    meta: ModelMeta
    metrics: Metrics | None = None
    entry: Manifest | None = None


@dataclass(frozen=True, kw_only=True)
class ComparedRelease:
    """Which release is compared, who made it and when; texts are the trainer's, and None where nothing is recorded."""

    run_id: str
    model_version: int | None = None
    trained_at: datetime | None = None
    trained_by: str | None = None
    evaluated_at: datetime | None = None
    channel: str | None = None
    current_since: datetime | None = None
    activated_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class MetricChange:
    """One metric of two releases; None where a release lacks it."""

    name: str
    before: float | None
    after: float | None

    @property
    def difference(self) -> float | None:
        """The difference without the rounding error of a subtraction; None unless both releases have the metric."""
        if self.before is None or self.after is None:
            return None
        exact = round(self.after - self.before, 12)
        return exact if math.isfinite(exact) else None


@dataclass(frozen=True, kw_only=True)
class MetricComparison:
    """The metrics of two releases, by name.

    Attributes:
        problem: Why their values cannot be compared, for example because the protocols of the evaluations differ.
    """

    changes: tuple[MetricChange, ...]
    problem: str | None = None

    @property
    def differences(self) -> dict[str, float]:
        """The difference of each metric that both releases have; empty if they cannot be compared."""
        found = {} if self.problem else {change.name: change.difference for change in self.changes}
        return {name: difference for name, difference in found.items() if difference is not None}


@dataclass(frozen=True, kw_only=True)
class Change:
    """One fact that differs: JSON values, None where a release lacks the fact."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The differences of two releases of one model.

    Attributes:
        changes: By area, in the order of `Area`; an area without a change is absent.
        notes: What could not be compared, and why.
    """

    model: str
    before: ComparedRelease
    after: ComparedRelease
    metrics: MetricComparison
    changes: Mapping[Area, tuple[Change, ...]]
    notes: tuple[str, ...] = ()


def compare_metrics(before: Metrics | None, after: Metrics | None) -> MetricComparison:
    """Compare the metrics of two releases. Values of different evaluation protocols get the reason as `problem`."""
    old, new = ({} if one is None else one.metrics for one in (before, after))
    changes = tuple(
        MetricChange(name=name, before=old.get(name), after=new.get(name)) for name in sorted(old.keys() | new.keys())
    )
    if before is None or after is None:
        return MetricComparison(changes=changes)
    return MetricComparison(
        changes=changes, problem=incomparable(after.evaluation_protocol, before.evaluation_protocol)
    )


def recorded_changes(metrics: Metrics) -> tuple[MetricChange, ...]:
    """Return each metric with the value of the baseline, as far as metrics.json itself records the difference."""
    differences = metrics.baseline_diff or {}
    return tuple(
        MetricChange(name=name, before=value - differences[name] if name in differences else None, after=value)
        for name, value in sorted(metrics.metrics.items())
    )


def compare(before: ReleaseDocuments, after: ReleaseDocuments) -> Comparison:
    """Compare two releases of one model."""
    old, new = _facts(before), _facts(after)
    changes = {area: _changes(old.get(area, {}), new.get(area, {})) for area in Area}
    notes = []
    for one, other in ((before, after), (after, before)):
        if one.meta.onnx_graph is None and other.meta.onnx_graph is not None:
            notes.append(f"the ONNX graph is not compared: {one.meta.run_id} has no record of it")
    if notes:
        changes.update(dict.fromkeys((Area.INPUTS, Area.OUTPUTS, Area.OPERATORS), ()))
    if not (before.meta.files and after.meta.files):
        changes[Area.FILES] = ()
    return Comparison(
        model=after.meta.model_name,
        before=_compared(before),
        after=_compared(after),
        metrics=compare_metrics(before.metrics, after.metrics),
        changes=MappingProxyType({area: found for area, found in changes.items() if found}),
        notes=tuple(notes),
    )


def _compared(one: ReleaseDocuments) -> ComparedRelease:
    meta, entry, origin = one.meta, one.entry, one.meta.mlflow
    return ComparedRelease(
        run_id=meta.run_id,
        model_version=None if origin is None else origin.version,
        trained_at=meta.trained_at,
        trained_by=None if origin is None else origin.user,
        evaluated_at=None if one.metrics is None else one.metrics.evaluated_at,
        channel=None if entry is None else entry.channel,
        current_since=None if entry is None else entry.current.published_at,
        activated_by=None if entry is None or entry.cause is None else entry.cause.by,
    )


def _facts(one: ReleaseDocuments) -> dict[Area, dict[str, Any]]:
    """Return the facts of a release by area and name."""
    meta, graph = one.meta, one.meta.onnx_graph or OnnxGraph()
    return {
        Area.PARAMETERS: _parameters(meta),
        Area.DIMENSIONS: {name: getattr(meta, name) for name in DIMENSIONS},
        Area.DATA: _data(meta.data_snapshot),
        Area.CODE: {"git_commit": meta.git_commit},
        Area.EVALUATION: _evaluation(one.metrics),
        Area.INPUTS: {item.name: f"{item.type or '?'}{_shape(item.shape)}" for item in graph.inputs},
        Area.OUTPUTS: {item.name: f"{item.type or '?'}{_shape(item.shape)}" for item in graph.outputs},
        Area.OPERATORS: {**{f"opset {name}": version for name, version in graph.opsets.items()}, **graph.operators},
        Area.FILES: _files(meta),
    }


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    names = sorted(before.keys() | after.keys())
    found = (Change(name=name, before=before.get(name), after=after.get(name)) for name in names)
    return tuple(change for change in found if _canonical(change.before) != _canonical(change.after))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _parameters(meta: ModelMeta) -> dict[str, Any]:
    """Return the run's params, and the fields of model_meta.json that the training wrote beside the specified ones."""
    params = {} if meta.mlflow is None else meta.mlflow.params or {}
    own = {name: value for name, value in (meta.model_extra or {}).items() if name != "release_notes"}
    fields = {"format": meta.format, "use_price_feature": meta.use_price_feature}
    found = {name: value for name, value in params.items() if name not in _ELSEWHERE}
    return {**found, **own, **{name: value for name, value in fields.items() if value is not None}}


def _data(snapshot: DataSnapshot | None) -> dict[str, Any]:
    if snapshot is None:
        return {}
    found: dict[str, Any] = {"prep_run_id": snapshot.prep_run_id, "source_csv": snapshot.source_csv}
    extra = dict(snapshot.model_extra or {})
    datasets = extra.pop("datasets", None)
    # The training may have written the field in a form of its own.
    for item in datasets[:_DATASETS_COMPARED] if isinstance(datasets, list) else ():
        name = item.get("name") if isinstance(item, Mapping) else None
        if isinstance(name, str):
            found[_free(f"dataset {name}", found)] = f"{item.get('source')} (digest {item.get('digest')})"
    return {**found, **extra}


def _evaluation(metrics: Metrics | None) -> dict[str, Any]:
    if metrics is None:
        return {}
    protocol = {} if metrics.evaluation_protocol is None else metrics.evaluation_protocol.to_object()
    return {"validation_set": metrics.validation_set, **{f"protocol.{name}": value for name, value in protocol.items()}}


def _files(meta: ModelMeta) -> dict[str, Any]:
    """Return the record of each model file; names are equal in all releases: RUN_ID stands for the run_id."""
    found: dict[str, FileRecord] = {
        name.replace(meta.run_id, "RUN_ID"): record for name, record in meta.files.items() if name not in _DOCUMENTS
    }
    return {name: {"size_bytes": record.size_bytes, "sha256": record.sha256} for name, record in found.items()}


def _shape(shape: Iterable[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """Return a name that is not taken: the name itself, or with a number behind it."""
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free
