"""The documents of a release, completed from what its training run says. Pure: what a job wrote is kept.

Source: the release specification, section 2; metric names `recall_at_20` become `recall@20`, which MLflow cannot store.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from supabase_bridge.documents import (
    RELEASE_NOTES_LIMIT,
    CriterionRecord,
    FileRecord,
    Metrics,
    ModelMeta,
    Origin,
    format_time,
)
from supabase_bridge.errors import InvalidDocumentError, InvalidRunIdError
from supabase_bridge.gates import NO_GATE, Baseline, Finding, Gate, Verdict, judge, metric_name
from supabase_bridge.layout import ReleaseKeys, RunId
from supabase_bridge.markdown import listed, literal, plain_markdown

RUN_ID_TAG = "supabase.run_id"
_DIMENSIONS = (
    "input_schema_version",
    "embedding_dim",
    "hidden_dim",
    "user_feature_dim",
    "item_feature_dim",
    "tag_vocab_size",
    "performer_vocab_size",
    "preferred_tag_vocab_size",
)
_TRUTH = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset that a run names as its input; `context` says what for ("training", "validation")."""

    name: str
    digest: str
    source: str
    context: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What MLflow knows of the training of a model version.

    Attributes:
        ended_at: When the run ended, or, where there is no run, when the version was registered.
        description: The version's description, for people.
    """

    ended_at: datetime
    mlflow_run_id: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    datasets: tuple[Dataset, ...] = ()
    description: str = ""


def trained_at(given_meta: Mapping[str, Any], facts: TrainingFacts) -> datetime:
    """When the model was trained, by the job's model_meta.json, else its param `trained_at`, else the run's end."""
    for text in (given_meta.get("trained_at"), facts.params.get("trained_at")):
        if isinstance(text, str) and (time := _time(text)) is not None:
            return time
    return facts.ended_at


def wanted_run_id(given_meta: Mapping[str, Any], facts: TrainingFacts) -> RunId:
    """The run_id that the training asks for.

    In this order: the run's tag `supabase.run_id`, its param `run_id`, the job's own document, the time of training.

    Raises:
        InvalidRunIdError: the tag has another form; the other places are used only where they have the right one.
    """
    if tag := facts.tags.get(RUN_ID_TAG):
        return RunId.parse(tag)
    for text in (facts.params.get("run_id"), given_meta.get("run_id")):
        try:
            return RunId.parse(str(text))
        except InvalidRunIdError:
            continue
    return RunId.at(trained_at(given_meta, facts))


def complete_metrics(
    given: Mapping[str, Any], facts: TrainingFacts, *, run_id: RunId, baseline: Metrics | None, gate: Gate = NO_GATE
) -> Metrics:
    """metrics.json: the job's own, with the run's metrics, its time, data and notes where it says nothing, the
    differences to the release that is current now (`baseline`), and what the gate says now.

    `threshold_passed` stays the job's own where no criterion holds; `threshold_criteria` never is the job's.

    Raises:
        InvalidDocumentError: the job's own document breaks the schema.
    """
    value = dict(given)
    finite = {metric_name(name): number for name, number in facts.metrics.items() if math.isfinite(number)}
    value.setdefault("metrics", finite)
    value.setdefault("evaluated_at", format_time(facts.ended_at))
    _set_missing(value, "validation_set", facts.params.get("validation_set") or _dataset(facts, "validation", "eval"))
    _set_missing(value, "notes", facts.tags.get("mlflow.note.content"))
    value.pop("threshold_criteria", None)
    metrics = _judged(Metrics.from_object({**value, "run_id": str(run_id)}), facts, baseline, gate)
    if baseline is None or metrics.baseline_diff is not None or baseline.run_id == metrics.run_id:
        return metrics
    shared = sorted(metrics.metrics.keys() & baseline.metrics.keys())
    exact = {name: round(metrics.metrics[name] - baseline.metrics[name], 12) for name in shared}
    difference = {name: number for name, number in exact.items() if math.isfinite(number)}
    return metrics.model_copy(update={"baseline_run_id": baseline.run_id, "baseline_diff": difference})


def _judged(metrics: Metrics, facts: TrainingFacts, baseline: Metrics | None, gate: Gate) -> Metrics:
    """With the gate's verdict, if it has one: on the document's metrics, and on the run's where that has none."""
    if not gate.judges:
        return metrics
    # A release that is being mirrored again is not its own baseline.
    before = None if baseline is None or baseline.run_id == metrics.run_id else baseline
    current = None if before is None else Baseline(name=before.run_id, metrics=before.metrics)
    stored = {metric_name(name): number for name, number in facts.metrics.items()}
    verdict = judge(gate, {**stored, **metrics.metrics}, current)
    records = [
        CriterionRecord(criterion=found.criterion, value=found.value, passed=found.passed, finding=found.text)
        for found in verdict.findings
    ]
    return metrics.model_copy(update={"threshold_passed": verdict.passed, "threshold_criteria": records})


def verdict_of(metrics: Metrics) -> Verdict | None:
    """What the gate said when a metrics.json was made; None where no criterion held."""
    if metrics.threshold_criteria is None:
        return None
    return Verdict(
        findings=tuple(
            Finding(criterion=item.criterion, value=item.value, passed=item.passed, text=item.finding)
            for item in metrics.threshold_criteria
        )
    )


def complete_meta(
    given: Mapping[str, Any],
    facts: TrainingFacts,
    *,
    keys: ReleaseKeys,
    origin: Origin,
    files: Mapping[str, FileRecord],
    release_notes: str | None,
) -> ModelMeta:
    """model_meta.json: the job's own, with what the run's params, tags and datasets add, and the record of the files.

    Raises:
        InvalidDocumentError: the job's own document, or a param that belongs in it, breaks the schema.
    """
    value = dict(given)
    for name in (*_DIMENSIONS, "format"):
        _set_missing(value, name, facts.params.get(name))
    _set_missing(value, "use_price_feature", _truth(facts.params.get("use_price_feature")))
    _set_missing(value, "git_commit", facts.tags.get("mlflow.source.git.commit"))
    _set_missing(value, "release_notes", release_notes)
    value["data_snapshot"] = _snapshot(value.get("data_snapshot"), facts)
    value["trained_at"] = format_time(trained_at(given, facts))
    value.update(model_name=keys.model_key, run_id=str(keys.run_id), files={}, mlflow=None)
    meta = ModelMeta.from_object(value)
    return meta.model_copy(update={"files": dict(files), "mlflow": origin})


def release_notes(metrics: Metrics, facts: TrainingFacts) -> str | None:
    """A manifest's release notes: the version's description, or what changed against the release before."""
    if facts.description.strip():
        return facts.description.strip()[:RELEASE_NOTES_LIMIT]
    changes = [_change(name, metrics, arrow="->") for name in metrics.baseline_diff or {}]
    return "; ".join(changes)[:RELEASE_NOTES_LIMIT] or None


def draft_summary(model_key: str, metrics: Metrics, facts: TrainingFacts) -> str:
    """summary.md for a release whose training wrote none: conditions, findings, what it is compared with."""
    lines = [f"# {literal(model_key)} {literal(metrics.run_id)}", ""]
    if facts.description.strip():
        lines += [plain_markdown(facts.description.strip()), ""]
    conditions = [f"{name}: {facts.params[name]}" for name in sorted(facts.params)] or ["none recorded"]
    conditions += [f"dataset {item.name}: {item.source} (digest {item.digest})" for item in facts.datasets]
    findings = [_change(name, metrics, arrow="from") for name in sorted(metrics.metrics)] or ["none recorded"]
    findings += [metrics.notes] if metrics.notes else []
    lines += ["## Training conditions", "", *listed(conditions), "", "## Findings", "", *listed(findings)]
    if metrics.baseline_run_id:
        lines += ["", f"Compared with release {literal(metrics.baseline_run_id)}."]
    return "\n".join(lines) + "\n"


def _change(name: str, metrics: Metrics, *, arrow: str) -> str:
    after = metrics.metrics[name]
    difference = (metrics.baseline_diff or {}).get(name)
    if difference is None:
        return f"{name}: {after:.4g}"
    before = after - difference
    return f"{name} {before:.4g} -> {after:.4g}" if arrow == "->" else f"{name}: {after:.4g} (was {before:.4g})"


def _snapshot(given: object, facts: TrainingFacts) -> dict[str, Any] | None:
    if given is not None and not isinstance(given, dict):
        raise InvalidDocumentError(ModelMeta.document_name, "data_snapshot: expected an object")
    value: dict[str, Any] = dict(given or {})
    _set_missing(value, "prep_run_id", facts.params.get("prep_run_id"))
    _set_missing(value, "source_csv", facts.params.get("source_csv") or _dataset(facts, "training", None))
    if facts.datasets:
        named = [{"name": item.name, "digest": item.digest, "source": item.source} for item in facts.datasets]
        value.setdefault("datasets", named)
    return value or None


def _dataset(facts: TrainingFacts, *contexts: str | None) -> str | None:
    return next((item.source for item in facts.datasets if item.context in contexts), None)


def _set_missing(value: dict[str, Any], name: str, found: object) -> None:
    if value.get(name) is None and found is not None:
        value[name] = found


def _truth(text: str | None) -> bool | None:
    return None if text is None else _TRUTH.get(text.lower())


def _time(text: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
        return time.astimezone(timezone.utc) if time.tzinfo else None
    except (ValueError, OverflowError):
        return None
