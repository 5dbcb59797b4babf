"""The protocol of an evaluation: how a run holds it, and which evaluations can be compared."""

from __future__ import annotations

from typing import Any

import pytest

from supabase_bridge.core.criteria import Baseline, judge, parse_gate
from supabase_bridge.core.documents import EvaluationProtocol
from supabase_bridge.core.evaluation import (
    incomparable,
    protocol_of,
    protocol_params,
    read_protocol,
    without_references,
)

FULL = EvaluationProtocol(split="the last 10 % of time", candidates="all", seen_items="masked", k=20)


@pytest.mark.parametrize("k", [20, [10, 20], "10 %"])
def test_a_protocol_is_read_from_the_params_as_it_was_written(k: Any) -> None:
    protocol = FULL.model_copy(update={"k": k})
    assert protocol_of({"lr": "0.1", **protocol_params(protocol)}) == protocol


def test_params_without_any_part_of_a_protocol_give_none() -> None:
    assert protocol_of({"lr": "0.1", "protocol": "grpc", "protocol.k": " "}) is None


@pytest.mark.parametrize("value", [None, "all", [FULL], {"k": {"a": 1}}, {"split": 5}])
def test_what_a_training_wrote_in_another_form_is_no_protocol(value: object) -> None:
    assert read_protocol(value) is None


def test_equal_protocols_and_two_that_are_not_recorded_can_be_compared() -> None:
    assert incomparable(FULL, FULL) is None
    assert incomparable(None, None) is None
    assert incomparable(EvaluationProtocol(candidates=100), EvaluationProtocol(candidates="100")) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"candidates": "100 sampled"}, "its protocol has candidates '100 sampled', the other has 'all'"),
        ({"seen_items": "kept"}, "its protocol has seen_items 'kept', the other has 'masked'"),
        ({"k": None}, "its protocol has k 'not recorded', the other has '20'"),
    ],
)
def test_protocols_that_differ_in_one_condition_cannot_be_compared(changed: dict[str, Any], said: str) -> None:
    assert incomparable(FULL.model_copy(update=changed), FULL) == said


def test_a_condition_of_the_projects_own_counts_too() -> None:
    own = EvaluationProtocol.from_object({**FULL.to_object(), "users": "with five ratings"})
    assert incomparable(own, FULL) == "its protocol has users 'with five ratings', the other has 'not recorded'"


def test_a_protocol_on_one_side_alone_cannot_be_compared() -> None:
    assert incomparable(FULL, None) == "the other has no evaluation protocol"
    assert incomparable(None, FULL) == "it has no evaluation protocol"


def test_metrics_of_other_methods_are_apart_from_the_models_own() -> None:
    named = {"recall_at_20": 0.27, "reference/popularity/recall_at_20": 0.22, "reference/x": 1.0, "val/auc": 0.8}
    assert without_references(named) == (
        {"recall_at_20": 0.27, "reference/x": 1.0, "val/auc": 0.8},
        {"popularity": {"recall_at_20": 0.22}},
    )


@pytest.mark.parametrize("criterion", ["recall@20 >= current - 0.5", "recall@20 not worse than current by more than 1"])
def test_a_criterion_that_compares_fails_where_the_protocols_differ(criterion: str) -> None:
    current = Baseline(name="v3", metrics={"recall@20": 0.1}, problem=incomparable(FULL, None))
    verdict = judge(parse_gate({"criteria": [criterion, "recall@20 >= 0.2"]}), {"recall@20": 0.7}, current)
    assert [finding.passed for finding in verdict.findings] == [False, True]
    assert verdict.reason == (
        "recall@20 cannot be compared with v3, which is current: the other has no evaluation protocol"
    )
