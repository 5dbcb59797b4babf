"""Release criteria of a gate: parse them, and evaluate the metrics of a version.

Source: the release specification, section 3, step 2; docs/gate.md has all forms of a criterion.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from supabase_bridge.core.errors import InvalidGateError
from supabase_bridge.core.tags import CRITERION_TAG, MODE_TAG
from supabase_bridge.core.verdict import Finding, Verdict

_TEXT_LIMIT = 300
_FORMS = (
    "a criterion is 'METRIC >= NUMBER' (or <=, >, <), 'NUMBER <= METRIC <= NUMBER', 'METRIC >= current - NUMBER' or "
    "'METRIC not worse than current by more than NUMBER', with '(lower is better)' behind it where less is better"
)
_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_METRIC = r"[^<>=,]*[^<>=,\s]"
_RANGE = re.compile(
    rf"(?P<low>{_NUMBER})\s*(?P<above><=?)\s*(?P<metric>{_METRIC})\s*(?P<below><=?)\s*(?P<high>{_NUMBER})"
)
_BOUND = re.compile(
    rf"(?P<metric>{_METRIC})\s*(?P<sign>[<>]=?)\s*"
    rf"(?:(?P<limit>{_NUMBER})|(?P<current>current)(?:\s*(?P<side>[+-])\s*(?P<margin>{_NUMBER}))?)"
)
_NOT_WORSE = re.compile(
    rf"(?P<metric>{_METRIC})\s+not worse than current by more than\s+(?P<margin>{_NUMBER})"
    r"(?:\s*(?P<better>\((?:higher|lower) is better\)))?"
)
_ADDING_IS_OFF_BY = 4 * sys.float_info.epsilon
"""The largest rounding error of a sum, relative to the larger of the two numbers."""
_OPPOSITE = {">=": "<", "<=": ">", ">": "<=", "<": ">="}


class GateMode(str, Enum):
    """The consequence for a version that fails."""

    ENFORCE = "enforce"
    WARN = "warn"
    OFF = "off"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A lower or upper bound of a metric.

    Attributes:
        sign: `>=`, `<=`, `>` or `<`.
        limit: The bound; with `relative`, the difference from the current version's value.
    """

    sign: str
    limit: float
    relative: bool = False


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """The bounds of one metric; `text` is the criterion as it was written, with its direction."""

    metric: str
    bounds: tuple[Bound, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The criteria of one model.

    Attributes:
        channels: The gated channels. None: those of stage Production and alias `champion`.
        problems: Malformed tags of the model; every version fails by them.
    """

    criteria: tuple[Criterion, ...] = ()
    mode: GateMode = GateMode.ENFORCE
    channels: tuple[str, ...] | None = None
    problems: tuple[str, ...] = ()

    @property
    def judges(self) -> bool:
        """Return whether a version can fail."""
        return self.mode is not GateMode.OFF and bool(self.criteria or self.problems)

    @property
    def asks_current(self) -> bool:
        """Return whether a criterion compares with the current version."""
        return any(bound.relative for criterion in self.criteria for bound in criterion.bounds)

    def missing(self, metrics: Mapping[str, float]) -> tuple[str, ...]:
        """Return the metrics that the criteria name and a version lacks, in the order of the criteria."""
        present = {metric_name(name) for name in metrics}
        named = dict.fromkeys(criterion.metric for criterion in self.criteria) if self.judges else {}
        return tuple(name for name in named if name not in present)


NO_GATE = Gate()
"""The gate that every version passes."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The metrics of the current version; `name` identifies it in messages.

    Attributes:
        problem: Why they cannot be compared with those of the version that is judged.
    """

    name: str
    metrics: Mapping[str, float]
    problem: str | None = None


def metric_value(stored: float) -> float:
    """Return a metric as it was logged: MLflow stores infinity as the largest finite number."""
    return math.copysign(math.inf, stored) if abs(stored) == sys.float_info.max else stored


def metric_name(name: str) -> str:
    """Return a metric's name in documents and criteria: `recall@20` for MLflow's `recall_at_20`."""
    return re.sub(r"_at_([0-9]+)$", r"@\1", name)


def parse_criterion(text: str) -> Criterion:
    """Parse a criterion, such as `recall@20 >= 0.65` or `recall@20 not worse than current by more than 0.01`.

    Raises:
        InvalidGateError: the text has no form of a criterion.
    """
    line = " ".join(text.split())
    if len(line) > _TEXT_LIMIT:
        raise InvalidGateError(text, f"longer than {_TEXT_LIMIT} characters")
    bounds: tuple[Bound, ...]
    if found := _RANGE.fullmatch(line):
        low, high = _number(text, found["low"]), _number(text, found["high"])
        if low > high:
            raise InvalidGateError(text, f"no number lies between {found['low']} and {found['high']}")
        above = ">=" if found["above"] == "<=" else ">"
        bounds = (Bound(sign=above, limit=low), Bound(sign=found["below"], limit=high))
    elif found := _NOT_WORSE.fullmatch(line):
        margin = _number(text, found["margin"])
        if margin < 0:
            raise InvalidGateError(text, "the margin is negative")
        lower = found["better"] == "(lower is better)"
        bounds = (Bound(sign="<=" if lower else ">=", limit=margin if lower else -margin, relative=True),)
        line += "" if found["better"] else " (higher is better)"
    elif found := _BOUND.fullmatch(line):
        margin = _number(text, found["margin"] or "0") * (-1 if found["side"] == "-" else 1)
        relative = found["current"] is not None
        limit = margin if relative else _number(text, found["limit"])
        bounds = (Bound(sign=found["sign"], limit=limit, relative=relative),)
    else:
        raise InvalidGateError(text, _FORMS)
    return Criterion(metric=metric_name(found["metric"]), bounds=bounds, text=line)


def parse_gate(table: Mapping[str, object]) -> Gate:
    """Parse a model's table of the settings.

    Raises:
        InvalidGateError: the table or a criterion is malformed.
    """
    if unknown := sorted(table.keys() - {"criteria", "mode", "channels"}):
        raise InvalidGateError(unknown[0], "no such setting of a gate; there are criteria, mode and channels")
    channels = None if "channels" not in table else _texts("channels", table["channels"])
    criteria = [parse_criterion(text) for text in _texts("criteria", table.get("criteria", []))]
    return Gate(criteria=tuple(criteria), mode=_mode(table.get("mode", GateMode.ENFORCE.value)), channels=channels)


def with_tags(gate: Gate | None, tags: Mapping[str, str]) -> Gate:
    """Return a model's gate with the changes that its tags in MLflow make.

    `supabase.gate` is the mode. `supabase.gate.<metric>` replaces the criteria of a metric: `>= 0.65`, several with
    commas between them, or `off`. A malformed tag becomes a problem, which no version passes.
    """
    gate = gate or Gate()
    mode, problems, criteria = gate.mode, [], list(gate.criteria)
    for key in sorted(tags):
        try:
            if key == MODE_TAG:
                mode = _mode(tags[key].strip())
            elif key.startswith(CRITERION_TAG):
                metric = metric_name(key[len(CRITERION_TAG) :])
                replaced = _of_tag(metric, tags[key])
                criteria = [item for item in criteria if item.metric != metric] + replaced
        except InvalidGateError as error:
            problems.append(f"the registered model's tag {key} is malformed: {error}")
            mode = GateMode.ENFORCE if key == MODE_TAG else mode
    return Gate(criteria=tuple(criteria), mode=mode, channels=gate.channels, problems=tuple(problems))


@dataclass(frozen=True, kw_only=True)
class VersionMetrics:
    """A version's metrics; `problem` is the reason if they cannot be read."""

    values: Mapping[str, float]
    problem: str | None = None


def judge_version(gate: Gate, metrics: VersionMetrics, current: Baseline | None) -> Verdict:
    """Evaluate a version; if its metrics cannot be read, the verdict has that reason alone."""
    verdict = judge(gate, metrics.values, current)
    if verdict.passed or metrics.problem is None:
        return verdict
    return judge(Gate(problems=(*gate.problems, metrics.problem)), {}, None)


def judge(gate: Gate, metrics: Mapping[str, float], current: Baseline | None) -> Verdict:
    """Evaluate a version's metrics against a gate. A metric that is missing, NaN or infinite fails.

    Args:
        metrics: The values by name, `recall_at_20` or `recall@20`.
        current: The current version. None: there is none, and relative criteria pass.
    """
    named = _by_document_name(metrics)
    known = None if current is None else replace(current, metrics=_by_document_name(current.metrics))
    found = [_judge(criterion, named, known) for criterion in gate.criteria]
    broken = [Finding(criterion=text, value=None, passed=False, text=text) for text in gate.problems]
    return Verdict(findings=(*found, *broken))


def _judge(criterion: Criterion, metrics: Mapping[str, float], current: Baseline | None) -> Finding:
    value = metrics.get(criterion.metric)
    value = None if value is None else metric_value(value)
    if value is None or not math.isfinite(value):
        text = f"{criterion.metric} is {'missing' if value is None else 'NaN' if math.isnan(value) else 'infinite'}"
        return Finding(criterion=criterion.text, value=None, passed=False, text=text)
    texts = [_failure(criterion.metric, value, bound, current) for bound in criterion.bounds]
    failures = [text for text in texts if text is not None]
    passed = f"{criterion.metric} {_shown(value)} meets {criterion.text}"
    return Finding(
        criterion=criterion.text,
        value=value,
        passed=not failures,
        text=", ".join(failures) or passed,
    )


def _failure(metric: str, value: float, bound: Bound, current: Baseline | None) -> str | None:
    """Return how a value violates a bound; None if it does not."""
    limit, shown = bound.limit, f"{bound.limit:.12g}"
    if bound.relative:
        if current is None:
            return None
        if current.problem is not None:
            return f"{metric} cannot be compared with {current.name}, which is current: {current.problem}"
        before = current.metrics.get(metric)
        if before is None or not math.isfinite(before):
            return f"{metric} cannot be compared: {current.name}, which is current, has none"
        limit = before + bound.limit
        # In decimal numbers 0.70 - 0.01 is not more than 0.69. Without a margin there is no sum to round.
        if bound.limit and abs(value - limit) <= _ADDING_IS_OFF_BY * max(abs(before), abs(bound.limit)):
            limit = value
        sign = "-" if bound.limit < 0 else "+"
        shown = f"{limit:.12g} ({current.name} has {_shown(before)}"
        shown += f", {sign} {abs(bound.limit):.12g})" if bound.limit else ")"
    if _holds(value, bound.sign, limit):
        return None
    return f"{metric} {_shown(value, away_from=limit)} {_OPPOSITE[bound.sign]} {shown}"


def _holds(value: float, sign: str, limit: float) -> bool:
    if sign.startswith(">"):
        return value > limit or (sign == ">=" and value == limit)
    return value < limit or (sign == "<=" and value == limit)


def _shown(value: float, *, away_from: float | None = None) -> str:
    """Return a number with three decimals, or with as many as separate it from the limit that it violates."""
    if not math.isfinite(value) or not 1e-3 <= abs(value) < 1e9:
        return f"{value:g}" if away_from is None else f"{value!r}"
    for digits in range(3, 16):
        text = f"{value:.{digits}f}"
        if (
            away_from is None
            or value == away_from
            or (float(text) != away_from and (float(text) < away_from) == (value < away_from))
        ):
            return text
    return repr(value)


def _of_tag(metric: str, value: str) -> list[Criterion]:
    if not metric:
        raise InvalidGateError(value, "the tag's name ends where the metric's should stand")
    if value.strip().lower() == "off":
        return []
    parts = [part.strip() for part in value.split(",")]
    criteria = [parse_criterion(f"{metric} {part}" if part.startswith(("<", ">", "not ")) else part) for part in parts]
    for criterion in criteria:
        if criterion.metric != metric:
            raise InvalidGateError(value, f"it is about {criterion.metric}, the tag about {metric}")
    return criteria


def _by_document_name(metrics: Mapping[str, float]) -> Mapping[str, float]:
    """Return the metrics by their names in documents; of two spellings the exact one counts."""
    return {metric_name(name): number for name, number in metrics.items()} | {
        name: number for name, number in metrics.items() if metric_name(name) == name
    }


def _number(text: str, digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise InvalidGateError(text, f"{digits} is too large for a number")
    return number


def _mode(value: object) -> GateMode:
    try:
        return GateMode(value)
    except ValueError:
        raise InvalidGateError(str(value), "a mode is enforce, warn or off") from None


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise InvalidGateError(name, "expected a list of texts")
    return tuple(str(item) for item in value)
