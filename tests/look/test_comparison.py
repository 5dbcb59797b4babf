"""The comparison of two releases' metrics and lists."""

from __future__ import annotations

from typing import Any

from supabase_bridge.core.documents import Metrics
from supabase_bridge.look.charts import overlap_chart, score_chart
from supabase_bridge.look.comparison import Place, Scored, compare_lists, judge_metrics, places
from tests.look.releases import CRITERIA, PROTOCOL


def metrics(values: dict[str, float], **more: Any) -> Metrics:
    return Metrics.from_object({"run_id": "x", "metrics": values, **more})


def ranked(*ids: str, first: float = 0.9) -> list[Scored]:
    return [Scored(id=name, score=first - place / 10) for place, name in enumerate(ids)]


def test_a_criterion_tells_which_direction_of_a_metric_is_better() -> None:
    now = metrics({"auc": 0.8, "loss": 3.0, "recall@20": 0.6})
    candidate = metrics({"auc": 0.7, "loss": 2.9, "recall@20": 0.5}, threshold_criteria=CRITERIA)
    judged = judge_metrics(now, candidate)
    assert [(line.name, line.better) for line in judged.lines] == [("loss", True), ("recall@20", False), ("auc", None)]
    assert (judged.count(better=True), judged.count(better=False)) == (1, 1)
    between = [{"criterion": "0.1 <= auc <= 0.9", "passed": True, "finding": ""}]
    judged = judge_metrics(now, metrics({"auc": 0.7}, threshold_criteria=between))
    assert [line.better for line in judged.lines if line.name == "auc"] == [None]


def test_a_missing_metric_has_no_difference_and_equal_ones_are_neither_better_nor_worse() -> None:
    judged = judge_metrics(
        metrics({"loss": 3.0, "auc": 0.8}), metrics({"loss": 3.0, "map@20": 0.1}, threshold_criteria=CRITERIA)
    )
    found = {line.name: (line.now, line.candidate, line.difference, line.better) for line in judged.lines}
    assert found == {
        "loss": (3.0, 3.0, 0.0, None),
        "auc": (0.8, None, None, None),
        "map@20": (None, 0.1, None, None),
    }


def test_metrics_of_different_protocols_have_no_differences() -> None:
    judged = judge_metrics(
        metrics({"auc": 0.8}, evaluation_protocol=PROTOCOL),
        metrics({"auc": 0.9}, evaluation_protocol={**PROTOCOL, "candidates": "100 sampled"}),
    )
    assert judged.problem == "its protocol has candidates '100 sampled', the other has 'all'"
    assert [line.difference for line in judged.lines] == [None]


def test_other_methods_stand_beside_the_metrics_that_they_have() -> None:
    references = {"popularity": {"auc": 0.7}}
    judged = judge_metrics(metrics({}), metrics({"auc": 0.9, "loss": 1}, reference_metrics=references))
    assert {line.name: line.references for line in judged.lines} == {"auc": {"popularity": 0.7}, "loss": {}}


def test_an_item_has_its_former_rank_or_none() -> None:
    found = places(ranked("a", "b", "c"), ranked("c", "a", "d"))
    assert [(place.rank, place.id, place.other_rank) for place in found] == [(1, "a", 2), (2, "b", None), (3, "c", 1)]
    assert isinstance(found[0], Place)


def test_users_whose_lists_changed_most_come_first() -> None:
    now = {"same": ranked("a", "b", "c"), "moved": ranked("a", "b", "c"), "other": ranked("a", "b", "c")}
    now["only now"] = ranked("a")
    candidate = {
        "same": ranked("a", "b", "c", first=1.0),
        "moved": ranked("c", "b", "a", first=1.0),
        "other": ranked("x", "y", "a", first=1.0),
    }
    compared = compare_lists(now, candidate, length=3)
    assert compared is not None
    assert [change.user for change in compared.changes] == ["other", "moved", "same"]
    assert [(change.same, change.length) for change in compared.changes] == [(1, 3), (3, 3), (3, 3)]
    assert compared.users_by_overlap() == [0, 1, 0, 2]
    assert round(compared.mean_same, 3) == 2.333
    assert round(compared.score_change, 6) == 0.1
    assert compare_lists(now, {}, length=3) is None


def test_the_same_release_twice_changes_nothing() -> None:
    lists = {user: ranked(*"abcdefgh") for user in ("one", "two")}
    compared = compare_lists(lists, lists, length=5)
    assert compared is not None
    assert {(change.same, change.length, change.moved, change.score_change) for change in compared.changes} == {
        (5, 5, 0.0, 0.0)
    }
    assert (compared.mean_same, compared.score_change) == (5.0, 0.0)
    assert all(found.now == found.candidate for found in compared.bins)


def test_the_shares_of_all_scores_are_one_and_equal_scores_are_one_range() -> None:
    lists = {"one": [Scored(id="a", score=0.5)]}
    for other in (lists, {"one": ranked(*"abc")}):
        compared = compare_lists(lists, other, length=3)
        assert compared is not None
        sums = [sum(shares) for shares in zip(*((found.now, found.candidate) for found in compared.bins), strict=True)]
        assert [round(total, 9) for total in sums] == [1, 1]
    empty = compare_lists({"one": []}, {"one": []}, length=3)
    assert empty is not None
    assert (empty.bins, empty.users_by_overlap()) == ([], [1])


def test_the_charts_hold_what_was_counted() -> None:
    lists = {"one": ranked(*"abc"), "two": ranked(*"abd")}
    compared = compare_lists(lists, {"one": ranked(*"abc"), "two": ranked(*"xyz")}, length=3)
    assert compared is not None
    rows, _ = overlap_chart(compared)
    assert [row["users"] for row in rows] == [1, 0, 0, 1]
    rows, specification = score_chart(compared)
    assert {row["release"] for row in rows} == set(specification["encoding"]["color"]["scale"]["domain"])
