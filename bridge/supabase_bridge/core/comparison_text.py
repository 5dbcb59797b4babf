"""Show a comparison of two releases: lines of text, Markdown for a pull request, a JSON object. Pure.

All that a trainer wrote is escaped: lines are for `for_terminal` or `for_markdown`, Markdown is complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from supabase_bridge.core.comparison import Change, ComparedRelease, Comparison, MetricChange
from supabase_bridge.core.text import code_for_markdown, for_markdown, for_terminal, format_time

_TEXT_LIMIT = 200
"""Characters of one value that are shown."""
_CHANGES_SHOWN = 100
"""Changes of one area that are shown; a JSON object has all."""
_NONE = "none"
_FACTS = (
    ("version", "model_version"),
    ("trained", "trained_at"),
    ("trained by", "trained_by"),
    ("evaluated", "evaluated_at"),
    ("channel", "channel"),
    ("current since", "current_since"),
    ("activated by", "activated_by"),
)


def metric_line(change: MetricChange, *, comparable: bool = True) -> str:
    """Return a metric as text: `auc 0.909 -> 0.913 (+0.004)`; without a direction if the values are not comparable."""
    if not comparable:
        return f"{change.name} before {_number(change.before)}, after {_number(change.after)}"
    difference = "" if change.difference is None else f" ({_signed(change.difference)})"
    return f"{metric_step(change)}{difference}"


def metric_step(change: MetricChange) -> str:
    """Return a metric without its difference, as release notes have it: `auc 0.909 -> 0.913`."""
    return f"{change.name} {_number(change.before)} -> {_number(change.after)}"


def change_line(change: Change) -> str:
    """Return a change as text: `hidden_dim: 256 -> 512`."""
    before, after = _texts(change)
    return f"{_cut(change.name)}: {before} -> {after}"


def as_text(comparison: Comparison) -> Iterator[str]:
    """Yield the lines of a comparison for a terminal."""
    old, new = comparison.before, comparison.after
    yield for_terminal(f"{comparison.model}: {old.run_id} -> {new.run_id}")
    for name, before, after in _heading(comparison):
        yield for_terminal(f"  {name}: {before} -> {after}")
    metrics = comparison.metrics
    if metrics.changes:
        yield "metrics" if metrics.problem is None else for_terminal(f"metrics, not comparable: {metrics.problem}")
    for change in metrics.changes[:_CHANGES_SHOWN]:
        yield for_terminal(f"  {metric_line(change, comparable=metrics.problem is None)}")
    yield from _more(len(metrics.changes), "  ")
    for area, changes in comparison.changes.items():
        yield area.value
        for found in changes[:_CHANGES_SHOWN]:
            yield for_terminal(f"  {change_line(found)}")
        yield from _more(len(changes), "  ")
    yield from (for_terminal(f"note: {note}") for note in comparison.notes)
    if not comparison.changes and all(change.difference == 0 for change in metrics.changes):
        yield "no other differences"


def as_markdown(comparison: Comparison) -> Iterator[str]:
    """Yield the lines of a comparison as GitHub Flavored Markdown.

    Values are code: GitHub makes no link, image or mention of them.
    """
    old, new = comparison.before, comparison.after
    yield f"## {for_markdown(comparison.model)}: {_code(old.run_id)} → {_code(new.run_id)}"
    rows = [(name, _code(before), _code(after)) for name, before, after in _heading(comparison)]
    yield from _table(("", "before", "after"), rows)
    metrics = comparison.metrics
    if metrics.changes:
        yield from ("", "### metrics")
        if metrics.problem is not None:
            yield from ("", f"**Not comparable:** {_code(metrics.problem)}")
        yield from _table(
            ("metric", "before", "after", *([] if metrics.problem else ["difference"])),
            [_metric_row(change, comparable=metrics.problem is None) for change in metrics.changes[:_CHANGES_SHOWN]],
        )
        yield from _more(len(metrics.changes), "\n")
    for area, changes in comparison.changes.items():
        yield from ("", f"### {area.value}")
        cells = [(change.name, *_texts(change)) for change in changes[:_CHANGES_SHOWN]]
        yield from _table(("", "before", "after"), [tuple(map(_code, row)) for row in cells])
        yield from _more(len(changes), "\n")
    for note in comparison.notes:
        yield from ("", f"Note: {_code(note)}")


def as_object(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as a JSON object with all changes and the values as the documents have them."""
    metrics = comparison.metrics
    return {
        "model": comparison.model,
        "before": _release_object(comparison.before),
        "after": _release_object(comparison.after),
        "metrics": [
            {
                "name": change.name,
                "before": change.before,
                "after": change.after,
                "difference": metrics.differences.get(change.name),
            }
            for change in metrics.changes
        ],
        "metrics_problem": metrics.problem,
        "changes": {
            area.value: [{"name": one.name, "before": one.before, "after": one.after} for one in changes]
            for area, changes in comparison.changes.items()
        },
        "notes": list(comparison.notes),
    }


def _release_object(release: ComparedRelease) -> dict[str, Any]:
    found = {attribute: getattr(release, attribute) for _, attribute in (("", "run_id"), *_FACTS)}
    return {name: format_time(value) if isinstance(value, datetime) else value for name, value in found.items()}


def _heading(comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    """Yield who and when, as far as one of the releases has it."""
    for name, attribute in _FACTS:
        values = [getattr(release, attribute) for release in (comparison.before, comparison.after)]
        if values != [None, None]:
            before, after = (format_time(value) if isinstance(value, datetime) else _text(value) for value in values)
            yield name, before, after


def _metric_row(change: MetricChange, *, comparable: bool) -> tuple[str, ...]:
    row = (_code(change.name), _number(change.before), _number(change.after))
    if not comparable:
        return row
    return (*row, "" if change.difference is None else _signed(change.difference))


def _table(heading: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    names = list(heading)
    yield ""
    for row in (names, ["---"] * len(names), *rows):
        yield f"| {' | '.join(row)} |"


def _more(count: int, prefix: str) -> Iterator[str]:
    if count > _CHANGES_SHOWN:
        yield f"{prefix}and {count - _CHANGES_SHOWN} more"


def _texts(change: Change) -> tuple[str, str]:
    """Return both values as text. Where the cut texts are equal, they say that the values differ."""
    before, after = _text(change.before), _text(change.after)
    return (before, after) if before != after else (before, f"{after} (differs)")


def _text(value: Any) -> str:
    """Return a value as text; of a file, its size and the begin of its digest."""
    if value is None:
        return _NONE
    if isinstance(value, dict) and value.keys() == {"size_bytes", "sha256"}:
        return f"{value['size_bytes']} bytes (sha256 {str(value['sha256'])[:12]})"
    return _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_LIMIT else f"{text[:_TEXT_LIMIT]}…"


def _code(text: str) -> str:
    return code_for_markdown(_cut(text))


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4g}"


def _signed(difference: float) -> str:
    return f"{difference:+.4g}"
