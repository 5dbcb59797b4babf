"""Criteria: how they are written, what meets them, and what is said of a version that does not."""

from __future__ import annotations

import math
import sys
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from supabase_bridge.core.criteria import (
    Baseline,
    Gate,
    GateMode,
    judge,
    metric_name,
    parse_criterion,
    parse_gate,
    with_tags,
)
from supabase_bridge.core.errors import InvalidGateError

V3 = Baseline(name="v3", metrics={"recall_at_20": 0.70, "loss": 0.2})


def gate(*criteria: str) -> Gate:
    return parse_gate({"criteria": list(criteria)})


def reason(criterion: str, value: float | None, current: Baseline | None = None) -> str:
    """Why a value fails a criterion on recall@20; empty where it meets it."""
    return judge(gate(criterion), {} if value is None else {"recall_at_20": value}, current).reason


# --- what meets a criterion -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "met", "failed"),
    [
        ("recall@20 >= 0.65", [0.65, 1], [0.64999, -1]),
        ("recall@20>=.65", [0.65], [0.6]),
        ("recall_at_20 >= 6.5e-1", [0.65], [0.6]),
        ("recall@20 > 0.65", [0.66], [0.65]),
        ("recall@20 <= 0.65", [0.65, -1], [0.66]),
        ("recall@20 < 0.65", [0.64], [0.65]),
        ("0.2 <= recall@20 <= 0.4", [0.2, 0.3, 0.4], [0.19, 0.41]),
        ("0.2 < recall@20 < 0.4", [0.3], [0.2, 0.4]),
        ("-1 <= recall@20 <= -0.5", [-0.7], [0]),
    ],
)
def test_a_value_is_held_against_a_bound(criterion: str, met: list[float], failed: list[float]) -> None:
    assert [reason(criterion, value) for value in met] == [""] * len(met)
    assert all(reason(criterion, value) for value in failed)


@pytest.mark.parametrize(
    ("criterion", "met", "failed"),
    [
        ("recall@20 not worse than current by more than 0.01", [0.69, 0.7, 0.9], [0.689]),
        ("recall@20 >= current - 0.01", [0.69], [0.689]),
        ("recall@20 >= current", [0.7], [0.699]),
        ("recall@20 > current", [0.701], [0.7]),
        ("recall@20 <= current + 0.02", [0.72], [0.721]),
    ],
)
def test_a_value_is_held_against_the_current_versions(criterion: str, met: list[float], failed: list[float]) -> None:
    assert [reason(criterion, value, V3) for value in met] == [""] * len(met)
    assert all(reason(criterion, value, V3) for value in failed)


@pytest.mark.parametrize("before", [2 / 3, 1 / 3, 0.1 + 0.2, 4e-13, 1e-300, 123_456.789, -2 / 3, 0.0])
@pytest.mark.parametrize(
    "criterion",
    [
        "recall@20 >= current",
        "recall@20 <= current",
        "recall@20 not worse than current by more than 0",
        "recall@20 not worse than current by more than 0.01",
    ],
)
def test_a_value_that_is_exactly_the_current_versions_is_no_worse(criterion: str, before: float) -> None:
    assert reason(criterion, before, Baseline(name="v3", metrics={"recall@20": before})) == ""


@pytest.mark.parametrize(("before", "value"), [(4e-13, 1e-13), (2 / 3, 0.6666666666), (1.0, 0.99999999)])
def test_a_small_difference_from_the_current_version_is_one(before: float, value: float) -> None:
    current = Baseline(name="v3", metrics={"recall@20": before})
    assert reason("recall@20 >= current", value, current)
    assert reason("recall@20 > current", value, current)
    assert reason("recall@20 <= current", value, current) == ""


@pytest.mark.parametrize("before", [0.7, 0.3, 1.0, 0.57, 8.1])
@pytest.mark.parametrize("margin", ["0.01", "0.1", "0.02", "1e-6"])
def test_the_margin_itself_is_within_the_margin_as_people_reckon(before: float, margin: str) -> None:
    value = float(Decimal(str(before)) - Decimal(margin))
    current = Baseline(name="v3", metrics={"recall@20": before})
    assert reason(f"recall@20 >= current - {margin}", value, current) == ""
    assert reason(f"recall@20 > current - {margin}", value, current)


def test_not_worse_says_which_direction_is_better() -> None:
    margin = "loss not worse than current by more than 0.01"
    metrics = [{"loss": 0.4}, {"loss": 0.21}, {"loss": 0.05}]
    found = [judge(gate(f"{margin} (lower is better)"), item, V3) for item in metrics]
    assert [verdict.passed for verdict in found] == [False, True, True]
    assert found[0].reason == "loss 0.400 > 0.21 (v3 has 0.200, + 0.01)"
    # Without it, more is better, and the verdict says that it was judged so.
    for written in (margin, f"{margin} (higher is better)"):
        doubled, halved = (judge(gate(written), {"loss": value}, V3) for value in (0.4, 0.1))
        assert str(doubled) == f"passed: loss 0.400 meets {margin} (higher is better)"
        assert halved.reason == "loss 0.100 < 0.19 (v3 has 0.200, - 0.01)"


def test_a_tag_can_say_the_direction_too() -> None:
    found = with_tags(None, {"supabase.gate.loss": "not worse than current by more than 0.01 (lower is better), <= 1"})
    assert [judge(found, {"loss": value}, V3).passed for value in (0.4, 0.2)] == [False, True]


@pytest.mark.parametrize("direction", ["(less is better)", "lower is better", "(lower)"])
def test_a_direction_in_other_words_is_refused(direction: str) -> None:
    with pytest.raises(InvalidGateError):
        parse_criterion(f"loss not worse than current by more than 0.01 {direction}")


def test_the_first_version_is_worse_than_none() -> None:
    assert reason("recall@20 >= current - 0.01", 0.1, None) == ""


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "criterion", ["recall@20 >= 0", "recall@20 <= 1", "-9 <= recall@20 <= 9", "recall@20 <= current"]
)
def test_a_metric_that_is_missing_or_no_number_fails(criterion: str, value: float | None) -> None:
    found = judge(gate(criterion), {} if value is None else {"recall_at_20": value}, None)
    assert not found.passed
    assert found.findings[0].value is None


@pytest.mark.parametrize("before", [{}, {"recall_at_20": math.nan}])
def test_a_current_version_without_the_metric_lets_nobody_through(before: dict[str, float]) -> None:
    current = Baseline(name="v3", metrics=before)
    assert reason("recall@20 >= current", 0.9, current) == (
        "recall@20 cannot be compared: v3, which is current, has none"
    )


@given(st.floats(), st.floats(-1e6, 1e6))
@example(sys.float_info.max, 0.0)
def test_a_number_meets_exactly_one_of_a_bound_and_its_opposite(value: float, limit: float) -> None:
    above, below = reason(f"recall@20 >= {limit!r}", value), reason(f"recall@20 < {limit!r}", value)
    # MLflow's databases keep the largest number in place of infinity.
    finite = math.isfinite(value) and abs(value) != sys.float_info.max
    assert (above == "") != (below == "") if finite else above and below


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "value", "said"),
    [
        ("recall@20 >= 0.65", 0.61, "recall@20 0.610 < 0.65"),
        ("recall@20 > 0.65", 0.65, "recall@20 0.650 <= 0.65"),
        ("recall@20 <= 0.4", 0.5, "recall@20 0.500 > 0.4"),
        ("0.2 <= recall@20 <= 0.4", 0.5, "recall@20 0.500 > 0.4"),
        ("recall@20 >= 0.65", 0.6499, "recall@20 0.6499 < 0.65"),
        ("recall@20 >= 0.65", 0.65 - 1e-12, "recall@20 0.649999999999 < 0.65"),
        ("recall@20 >= 0.65", 1e-9, "recall@20 1e-09 < 0.65"),
        ("recall@20 >= 0.65", None, "recall@20 is missing"),
        ("recall@20 >= 0.65", math.nan, "recall@20 is NaN"),
        ("recall@20 <= 0.65", math.inf, "recall@20 is infinite"),
        ("recall@20 >= current - 0.01", 0.6, "recall@20 0.600 < 0.69 (v3 has 0.700, - 0.01)"),
        ("recall@20 >= current", 0.6, "recall@20 0.600 < 0.7 (v3 has 0.700)"),
    ],
)
def test_a_failure_says_the_value_and_the_limit(criterion: str, value: float | None, said: str) -> None:
    assert reason(criterion, value, V3) == said


def test_a_verdict_says_every_failure_or_everything_that_was_met() -> None:
    both = gate("recall@20 >= 0.65", "auc >= 0.88")
    assert str(judge(both, {"recall_at_20": 0.61}, None)) == "failed: recall@20 0.610 < 0.65; auc is missing"
    assert str(judge(both, {"recall_at_20": 0.7, "auc": 0.9}, None)) == (
        "passed: recall@20 0.700 meets recall@20 >= 0.65; auc 0.900 meets auc >= 0.88"
    )


@pytest.mark.parametrize(("stored", "meant"), [("recall_at_20", "recall@20"), ("auc", "auc"), ("x_at_y", "x_at_y")])
def test_a_metric_goes_by_the_documents_name(stored: str, meant: str) -> None:
    assert metric_name(stored) == meant
    assert judge(gate(f"{meant} >= 1"), {stored: 1}, None).passed


# --- what is malformed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "recall@20",
        ">= 0.65",
        "recall@20 >=",
        "recall@20 >> 0.65",
        "recall@20 => 0.65",
        "recall@20 == 0.65",
        "recall@20 >= 0,65",
        "recall@20 >= high",
        "recall@20 >= nan",
        "recall@20 >= 1e999",
        "recall@20 >= 0.65 or auc >= 0.8",
        "0.4 <= recall@20 <= 0.2",
        "0.2 <= recall@20",
        "recall@20 not worse than current by more than -1",
        "recall@20 not worse than v3 by more than 1",
        "recall@20 >= current * 2",
        "recall@20 >= 0.65" + " " * 9 + "x" * 400,
    ],
)
def test_what_is_no_criterion_is_refused(text: str) -> None:
    with pytest.raises(InvalidGateError) as refused:
        parse_criterion(text)
    assert refused.value.text == text


@given(st.text(max_size=60) | st.text(alphabet="<>= .0123456789currentab@-+\n", max_size=200))
def test_any_text_is_a_criterion_or_refused(text: str) -> None:
    try:
        criterion = parse_criterion(text)
    except InvalidGateError:
        return
    assert criterion.bounds


@pytest.mark.parametrize(
    "table",
    [{"criterion": ["auc >= 1"]}, {"criteria": "auc >= 1"}, {"criteria": [1]}, {"mode": "on"}, {"channels": "latest"}],
)
def test_a_malformed_gate_is_refused(table: dict[str, object]) -> None:
    with pytest.raises(InvalidGateError):
        parse_gate(table)


# --- tags -------------------------------------------------------------------------------------------------------------


def criteria(found: Gate) -> list[str]:
    return [item.text for item in found.criteria]


def test_a_tag_replaces_every_criterion_on_its_metric_and_no_other() -> None:
    file = gate("recall@20 >= 0.65", "recall@20 >= current", "auc >= 0.88")
    changed = with_tags(file, {"supabase.gate.recall_at_20": ">= 0.7, >= current - 0.05", "supabase.key": "two_tower"})
    assert criteria(changed) == ["auc >= 0.88", "recall@20 >= 0.7", "recall@20 >= current - 0.05"]


@pytest.mark.parametrize("value", ["0.2 <= ctr <= 0.4", ">= 0.2, <= 0.4", "ctr >= 0.2"])
def test_a_tag_may_have_a_whole_criterion(value: str) -> None:
    assert with_tags(None, {"supabase.gate.ctr": value}).judges


def test_a_tag_takes_a_criterion_away() -> None:
    assert not with_tags(gate("auc >= 0.88"), {"supabase.gate.auc": "off"}).judges


@pytest.mark.parametrize("mode", list(GateMode))
def test_a_tag_sets_the_mode(mode: GateMode) -> None:
    changed = with_tags(gate("auc >= 0.88"), {"supabase.gate": mode.value})
    assert changed.mode is mode
    assert changed.judges is (mode is not GateMode.OFF)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"supabase.gate.auc": ">> 0.8"}, "tag supabase.gate.auc is malformed: 'auc >> 0.8'"),
        ({"supabase.gate.auc": "ctr >= 0.8"}, "it is about ctr, the tag about auc"),
        ({"supabase.gate.auc": ""}, "tag supabase.gate.auc is malformed: ''"),
        ({"supabase.gate.auc": ">= 0,8"}, "tag supabase.gate.auc is malformed: '8'"),
        ({"supabase.gate.": ">= 0.8"}, "the tag's name ends where the metric's should stand"),
        ({"supabase.gate": "on"}, "tag supabase.gate is malformed: 'on': a mode is enforce, warn or off"),
    ],
)
def test_a_malformed_tag_lets_nobody_through_and_says_where(tags: dict[str, str], said: str) -> None:
    verdict = judge(with_tags(gate("auc >= 0.1"), tags), {"auc": 1, "ctr": 1}, None)
    assert not verdict.passed
    assert said in verdict.reason


def test_a_malformed_mode_does_not_switch_a_gate_off() -> None:
    file = parse_gate({"criteria": ["auc >= 0.88"], "mode": "off"})
    assert with_tags(file, {"supabase.gate": "of"}).mode is GateMode.ENFORCE
