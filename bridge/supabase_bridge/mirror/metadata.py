"""Complete the documents of a release from its training run. Pure; the documents of the training are kept.

Source: the release specification, section 2; metric names `recall_at_20` become `recall@20`, which MLflow cannot store.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from supabase_bridge.core.comparison import DIMENSIONS, ReleaseDocuments, compare, compare_metrics, recorded_changes
from supabase_bridge.core.comparison_text import change_line, metric_line, metric_step
from supabase_bridge.core.criteria import NO_GATE, Baseline, Gate, judge, metric_name, metric_value, parse_criterion
from supabase_bridge.core.documents import (
    RELEASE_NOTES_LIMIT,
    CriterionRecord,
    Document,
    Metrics,
    ModelMeta,
    OnnxGraph,
    Origin,
    Sha256,
    Time,
)
from supabase_bridge.core.errors import InvalidDocumentError, InvalidNameError
from supabase_bridge.core.evaluation import incomparable, protocol_of, read_protocol, without_references
from supabase_bridge.core.layout import ReleasePaths, RunId
from supabase_bridge.core.tags import RUN_ID_TAG
from supabase_bridge.core.text import for_database, for_markdown, format_time, markdown_list, plain_markdown

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[0-9]{9,}(\.[0-9]*)?")
_LEAST_SECONDS = 100_000_000
"""A smaller number is no time of a training since 1973, but for example a date without separators."""
_LEAST_MILLISECONDS = 100_000_000_000
_PARAMS_RECORDED = 100
_PARAM_LIMIT = 500
_TRUTH = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset that is an input of a run; `context` is its use ("training", "validation")."""

    name: str
    digest: str
    source: str
    context: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The facts of a model version's training in MLflow.

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


class ComputedFrom(Document):
    """What the mirror computed a release's documents from, so that a repair makes the same bytes.

    Attributes:
        baseline_run_id: The release with which the metrics were compared; None: there was none.
        gate: The criteria of the gate; None: it judged nothing.
        gate_problems: The gate's malformed tags, by which every version fails.
        metrics_sha256: The digest of the run's metrics, as MLflow had them then.
        run_ended_at: When the training run had ended, as MLflow said then.
    """

    document_name = "computed_from"

    baseline_run_id: str | None = None
    gate: list[str] | None = None
    gate_problems: list[str] | None = None
    metrics_sha256: Sha256
    run_ended_at: Time


def trained_at(given_meta: Mapping[str, Any], facts: RunInfo) -> datetime:
    """Return the time of training: from the training's model_meta.json, its param `trained_at`, or the run's end."""
    for given in (given_meta.get("trained_at"), facts.params.get("trained_at")):
        if (time := _time(given)) is not None:
            return time
    return facts.ended_at


def notes(given_meta: Mapping[str, Any], given_metrics: Mapping[str, Any], facts: RunInfo) -> list[str]:
    """Return what the documents leave out of what the training wrote, or read with a guess, for people."""
    found = []
    for place, given in (("model_meta.json", given_meta), ("a param", facts.params)):
        text = given.get("trained_at")
        if text is None or (isinstance(text, str) and _has_offset(text)):
            continue
        said = (
            "is no time and is not used"
            if _time(text) is None
            else f"is read as {format_time(_time(text) or facts.ended_at)}"
        )
        found.append(f"trained_at in {place} is {text!r:.80} without an offset from UTC: it {said}")
    for name, text in facts.params.items():
        if given_meta.get(name) is None and not _is_usable(name, text):
            kind = "true or false" if name == "use_price_feature" else "a whole number"
            found.append(f"param {name} = {text!r:.80} is not {kind} and is left out of model_meta.json")
    if len(facts.params) > _PARAMS_RECORDED:
        found.append(f"mlflow.params has the first {_PARAMS_RECORDED} of {len(facts.params)} params")
    _, refused = _own_metrics(given_metrics)
    found += [f"metrics.json: metric {name[:80]!r} is no number ({kind}) and is left out" for name, kind in refused]
    infinite = [name for name, number in facts.metrics.items() if not math.isfinite(metric_value(number))]
    found += [
        f"the run's metric {name[:80]!r} is {metric_value(facts.metrics[name])} and is left out" for name in infinite
    ]
    return found


def _own_metrics(given: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[tuple[str, str]]]:
    """Return the metrics of the training's own document, and the names and types of those that are no numbers.

    Without a field `metrics`, the numbers at the top are the metrics.
    """
    own = given.get("metrics")
    if own is not None and not isinstance(own, Mapping):
        return None, []
    if own is None:
        flat = {name: value for name, value in given.items() if name not in Metrics.model_fields and _is_number(value)}
        return flat or None, []
    refused = [(name, type(value).__name__) for name, value in own.items() if not _is_number(value)]
    return {name: value for name, value in own.items() if _is_number(value)}, refused


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_usable(name: str, text: str) -> bool:
    """Return whether a param can be a field of model_meta.json; other params are."""
    if name == "use_price_feature":
        return _truth(text) is not None
    return name not in DIMENSIONS or _WHOLE.fullmatch(text.strip()) is not None


def wanted_run_id(given_meta: Mapping[str, Any], facts: RunInfo) -> RunId:
    """Return the run_id that the training asks for.

    The sources in this order: the run's tag `supabase.run_id`, its param `run_id`, the training's own document, the
    time of training.

    Raises:
        InvalidNameError: the tag has another form; the other places are used only where they have the right one.
    """
    if tag := facts.tags.get(RUN_ID_TAG):
        return RunId.parse(tag)
    for text in (facts.params.get("run_id"), given_meta.get("run_id")):
        try:
            return RunId.parse(str(text))
        except InvalidNameError:
            continue
    return RunId.at(trained_at(given_meta, facts))


def complete_metrics(
    given: Mapping[str, Any], facts: RunInfo, *, run_id: RunId, baseline: Metrics | None, gate: Gate = NO_GATE
) -> Metrics:
    """Complete metrics.json: the training's own document, and the run's metrics, time, data and notes for the rest.

    The differences to the current release (`baseline`) and the gate's verdict are added. `threshold_passed` stays the
    training's own where there is no criterion; `threshold_criteria` never is the training's.

    Raises:
        InvalidDocumentError: the training's own document breaks the schema.
    """
    value = dict(given)
    of_run, references = without_references(facts.metrics)
    own, _ = _own_metrics(given)
    if own is not None:
        value = {name: item for name, item in value.items() if name in Metrics.model_fields or name not in own}
        value["metrics"] = own
    value.setdefault("metrics", _finite(of_run))
    value["evaluation_protocol"] = read_protocol(given.get("evaluation_protocol")) or protocol_of(facts.params)
    if "reference_metrics" not in given and references:
        value["reference_metrics"] = {method: _finite(named) for method, named in references.items()}
    value.setdefault("evaluated_at", format_time(facts.ended_at))
    _set_missing(value, "validation_set", facts.params.get("validation_set") or _dataset(facts, "validation", "eval"))
    _set_missing(value, "notes", facts.tags.get("mlflow.note.content"))
    value.pop("threshold_criteria", None)
    value.pop("baseline_note", None)
    metrics = _judged(Metrics.from_object({**value, "run_id": str(run_id)}), facts, baseline, gate)
    if baseline is None or metrics.baseline_diff is not None or baseline.run_id == metrics.run_id:
        return metrics
    compared = compare_metrics(baseline, metrics)
    found = {"baseline_diff": compared.differences} if compared.problem is None else {"baseline_note": compared.problem}
    return metrics.model_copy(update={"baseline_run_id": baseline.run_id, **found})


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics by their names in documents, without those that are not finite."""
    values = {metric_name(name): metric_value(number) for name, number in metrics.items()}
    return {name: number for name, number in values.items() if math.isfinite(number)}


def _judged(metrics: Metrics, facts: RunInfo, baseline: Metrics | None, gate: Gate) -> Metrics:
    """Add the gate's verdict on the document's metrics, and on the run's metrics that the document lacks."""
    if not gate.judges:
        return metrics
    # A release that is being mirrored again is not its own baseline.
    before = None if baseline is None or baseline.run_id == metrics.run_id else baseline
    current: Baseline | None = None
    if before is not None:
        problem = incomparable(metrics.evaluation_protocol, before.evaluation_protocol)
        current = Baseline(name=before.run_id, metrics=before.metrics, problem=problem)
    stored = {metric_name(name): metric_value(number) for name, number in facts.metrics.items()}
    verdict = judge(gate, {**stored, **metrics.metrics}, current)
    records = [
        CriterionRecord(criterion=found.criterion, value=found.value, passed=found.passed, finding=found.text)
        for found in verdict.findings
    ]
    return metrics.model_copy(update={"threshold_passed": verdict.passed, "threshold_criteria": records})


def complete_meta(
    given: Mapping[str, Any],
    facts: RunInfo,
    *,
    paths: ReleasePaths,
    origin: Origin,
    release_notes: str,
    computed_from: ComputedFrom | None = None,
    graph: OnnxGraph | None = None,
) -> ModelMeta:
    """Complete model_meta.json from the training's own document, the run's params, tags and datasets.

    It has no records of files yet. The run's user and params become part of its origin.

    Raises:
        InvalidDocumentError: the training's own document, or a param that belongs in it, breaks the schema.
    """
    value = dict(given)
    for name in (*DIMENSIONS, "format"):
        text = facts.params.get(name)
        _set_missing(value, name, text if text is not None and _is_usable(name, text) else None)
    _set_missing(value, "use_price_feature", _truth(facts.params.get("use_price_feature")))
    _set_missing(value, "git_commit", facts.tags.get("mlflow.source.git.commit"))
    _set_missing(value, "release_notes", release_notes)
    value["data_snapshot"] = _snapshot(value.get("data_snapshot"), facts)
    value["trained_at"] = format_time(trained_at(given, facts))
    value.update(model_name=paths.model_key, run_id=str(paths.run_id), files={}, mlflow=None)
    value.update(mirror_notes=None, computed_from=None, onnx_graph=None)
    made = {"mlflow": _with_run(origin, facts), "computed_from": computed_from, "onnx_graph": graph}
    return ModelMeta.from_object(value).model_copy(update=made)


def _with_run(origin: Origin, facts: RunInfo) -> Origin:
    """Return the origin with the user and the params of the run, cut to their limits."""
    user = for_database(facts.tags.get("mlflow.user", ""), limit=_PARAM_LIMIT) or None
    named = sorted(facts.params.items())[:_PARAMS_RECORDED]
    params = {name: for_database(text, limit=_PARAM_LIMIT) for name, text in named}
    return origin.model_copy(update={"user": user, "params": params or None})


def computed_from(facts: RunInfo, baseline: Metrics | None, gate: Gate) -> ComputedFrom:
    """Return the record of what the documents of a release are computed from; see `gate_of` for the way back."""
    return ComputedFrom(
        baseline_run_id=None if baseline is None else baseline.run_id,
        run_ended_at=facts.ended_at,
        metrics_sha256=metrics_digest(facts.metrics),
        gate=[criterion.text for criterion in gate.criteria] if gate.judges else None,
        gate_problems=list(gate.problems) if gate.judges and gate.problems else None,
    )


def gate_of(record: ComputedFrom) -> Gate:
    """Return the gate whose verdict a release has.

    Raises:
        InvalidGateError: the record is damaged.
    """
    return Gate(
        criteria=tuple(parse_criterion(text) for text in record.gate or ()), problems=tuple(record.gate_problems or ())
    )


def recorded_basis(meta: ModelMeta) -> ComputedFrom | None:
    """Return what a release's documents were computed from; None: an earlier bridge made it.

    Raises:
        InvalidDocumentError: the record is damaged.
    """
    return None if meta.computed_from is None else ComputedFrom.from_object(meta.computed_from.to_object())


def metrics_digest(metrics: Mapping[str, float]) -> str:
    """Return a digest of a run's metrics, equal for equal names and values in any order."""
    named = sorted((name, repr(float(value))) for name, value in metrics.items())
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def release_notes(metrics: Metrics, facts: RunInfo) -> str:
    """Return a manifest's release notes: the version's description, the changes since the release before, or the
    metrics. They are never empty."""
    if facts.description.strip():
        return facts.description.strip()[:RELEASE_NOTES_LIMIT]
    if changes := [metric_step(change) for change in recorded_changes(metrics) if change.before is not None]:
        return "; ".join(changes)[:RELEASE_NOTES_LIMIT]
    found = "; ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.metrics.items()))
    return f"Metrics: {found}."[:RELEASE_NOTES_LIMIT] if found else "No metrics were recorded."


def draft_summary(
    model_key: str,
    metrics: Metrics,
    facts: RunInfo,
    *,
    meta: ModelMeta | None = None,
    baseline: ModelMeta | None = None,
) -> str:
    """Draft summary.md for a release whose training wrote none: conditions, findings, changes to the baseline.

    Args:
        meta: The release's model_meta.json.
        baseline: That of the baseline. The changes are left out if one of the two is None.
    """
    lines = [f"# {for_markdown(model_key)} {for_markdown(metrics.run_id)}", ""]
    if facts.description.strip():
        lines += [plain_markdown(facts.description.strip()), ""]
    conditions = [f"{name}: {facts.params[name]}" for name in sorted(facts.params)] or ["none recorded"]
    conditions += [f"dataset {item.name}: {item.source} (digest {item.digest})" for item in facts.datasets]
    findings = [
        f"{change.name}: {change.after:.4g}" if change.before is None else metric_line(change)
        for change in recorded_changes(metrics)
    ] or ["none recorded"]
    if metrics.evaluation_protocol is not None:
        protocol = metrics.evaluation_protocol.to_object()
        findings += ["evaluated with " + ", ".join(f"{name} {value}" for name, value in protocol.items())]
    findings += [
        f"{method}: {', '.join(f'{name} {value:.4g}' for name, value in sorted(named.items()))}"
        for method, named in sorted((metrics.reference_metrics or {}).items())
    ]
    findings += [metrics.notes] if metrics.notes else []
    lines += ["## Training conditions", "", *markdown_list(conditions), "", "## Findings", "", *markdown_list(findings)]
    if metrics.baseline_run_id and metrics.baseline_note:
        note = for_markdown(metrics.baseline_note)
        lines += ["", f"Not compared with release {for_markdown(metrics.baseline_run_id)}: {note}."]
    elif metrics.baseline_run_id:
        lines += ["", f"Compared with release {for_markdown(metrics.baseline_run_id)}."]
    if meta is not None and baseline is not None:
        compared = compare(ReleaseDocuments(meta=baseline), ReleaseDocuments(meta=meta))
        changes = [change_line(change) for changes in compared.changes.values() for change in changes]
        since = f"## Changes since {for_markdown(baseline.run_id)}"
        lines += ["", since, "", *markdown_list([*(changes or ["none recorded"]), *compared.notes])]
    return "\n".join(lines) + "\n"


def _snapshot(given: object, facts: RunInfo) -> dict[str, Any] | None:
    if given is not None and not isinstance(given, dict):
        raise InvalidDocumentError(ModelMeta.document_name, "data_snapshot: expected an object")
    value: dict[str, Any] = dict(given or {})
    _set_missing(value, "prep_run_id", facts.params.get("prep_run_id"))
    _set_missing(value, "source_csv", facts.params.get("source_csv") or _dataset(facts, "training", None))
    if facts.datasets:
        named = [{"name": item.name, "digest": item.digest, "source": item.source} for item in facts.datasets]
        value.setdefault("datasets", named)
    return value or None


def _dataset(facts: RunInfo, *contexts: str | None) -> str | None:
    return next((item.source for item in facts.datasets if item.context in contexts), None)


def _set_missing(value: dict[str, Any], name: str, found: object) -> None:
    if value.get(name) is None and found is not None:
        value[name] = found


def _truth(text: str | None) -> bool | None:
    return None if text is None else _TRUTH.get(text.lower())


def _time(given: object) -> datetime | None:
    """Read an ISO 8601 time, in UTC unless it has an offset, or seconds or milliseconds since 1970."""
    try:
        if _is_number(given) or (isinstance(given, str) and _NUMBER.fullmatch(given.strip())):
            seconds = float(str(given))
            seconds = seconds / 1_000 if seconds >= _LEAST_MILLISECONDS else seconds
            return datetime.fromtimestamp(seconds, tz=timezone.utc) if seconds >= _LEAST_SECONDS else None
        if not isinstance(given, str):
            return None
        time = datetime.fromisoformat(given.strip().replace("Z", "+00:00"))
        return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None


def _has_offset(text: str) -> bool:
    try:
        return (
            datetime.fromisoformat(text.strip().replace("Z", "+00:00")).tzinfo is not None and _time(text) is not None
        )
    except ValueError:
        return False
