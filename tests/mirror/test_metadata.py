"""Complete the documents of a release from the facts of its training run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from supabase_bridge.core.criteria import metric_name, parse_gate
from supabase_bridge.core.documents import RELEASE_NOTES_LIMIT, FileRecord, Metrics, ModelMeta, Origin
from supabase_bridge.core.errors import InvalidDocumentError, InvalidNameError
from supabase_bridge.core.layout import ReleasePaths, RunId
from supabase_bridge.core.tags import RUN_ID_TAG
from supabase_bridge.mirror.metadata import (
    Dataset,
    RunInfo,
    complete_meta,
    complete_metrics,
    draft_summary,
    notes,
    release_notes,
    trained_at,
    wanted_run_id,
)

ENDED_AT = datetime(2025, 10, 31, 9, 38, 31, tzinfo=timezone.utc)
RUN_ID = RunId(time=ENDED_AT)
FACTS = RunInfo(ended_at=ENDED_AT)
ORIGIN = Origin(registered_model="two_tower", version=7)
RECORD = FileRecord(size_bytes=1, sha256="ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb")
BASELINE = Metrics(run_id="20251015T112233Z", metrics={"recall@20": 0.68, "auc": 0.913, "old": 1})


def meta(given: Mapping[str, Any], facts: RunInfo = FACTS, notes: str = "better") -> dict[str, Any]:
    paths = ReleasePaths(model_key="two_tower", run_id=RUN_ID)
    completed = complete_meta(given, facts, paths=paths, origin=ORIGIN, release_notes=notes)
    completed = completed.model_copy(update={"files": {"a.onnx": RECORD}})
    assert ModelMeta.parse(completed.to_bytes()) == completed
    return dict(json.loads(completed.to_bytes()))


def metrics(given: Mapping[str, Any], facts: RunInfo = FACTS, baseline: Metrics | None = None) -> Metrics:
    completed = complete_metrics(given, facts, run_id=RUN_ID, baseline=baseline)
    assert Metrics.parse(completed.to_bytes()) == completed
    return completed


@pytest.mark.parametrize(
    ("stored", "meant"),
    [
        ("recall_at_20", "recall@20"),
        ("map_at_100", "map@100"),
        ("val/recall_at_5", "val/recall@5"),
        ("auc", "auc"),
        ("looked_at_once", "looked_at_once"),
        ("recall_at_20_mean", "recall_at_20_mean"),
        ("recall@20", "recall@20"),
    ],
)
def test_a_metric_gets_the_name_that_mlflow_cannot_store(stored: str, meant: str) -> None:
    assert metric_name(stored) == meant


@pytest.mark.parametrize("text", ["2025-10-30T01:02:03Z", "2025-10-30T10:02:03+09:00", " 2025-10-30T01:02:03+00:00 "])
def test_the_jobs_own_document_says_when_the_model_was_trained(text: str) -> None:
    facts = replace(FACTS, params={"trained_at": "2025-01-01T00:00:00Z"})
    assert trained_at({"trained_at": text}, facts) == datetime(2025, 10, 30, 1, 2, 3, tzinfo=timezone.utc)


@pytest.mark.parametrize("useless", ["last night", "", 20251030, None, "0001-01-01T00:00:00+14:00"])
def test_a_time_that_says_nothing_certain_is_passed_over(useless: object) -> None:
    facts = replace(FACTS, params={"trained_at": "2025-10-30T01:02:03Z"})
    assert trained_at({"trained_at": useless}, facts) == datetime(2025, 10, 30, 1, 2, 3, tzinfo=timezone.utc)
    assert trained_at({"trained_at": useless}, FACTS) == ENDED_AT


@pytest.mark.parametrize(
    ("tag", "param", "document", "chosen"),
    [
        ("20250101T000000Z-ci42", "20250202T000000Z", "20250303T000000Z", "20250101T000000Z-ci42"),
        (None, "20250202T000000Z", "20250303T000000Z", "20250202T000000Z"),
        (None, "of the job's own kind", "20250303T000000Z", "20250303T000000Z"),
        (None, None, "latest", "20251031T093831Z"),
        (None, None, None, "20251031T093831Z"),
    ],
)
def test_a_run_id_comes_from_tag_then_param_then_document_then_time(
    tag: str | None, param: str | None, document: str | None, chosen: str
) -> None:
    facts = replace(
        FACTS, tags={} if tag is None else {RUN_ID_TAG: tag}, params={} if param is None else {"run_id": param}
    )
    assert str(wanted_run_id({} if document is None else {"run_id": document}, facts)) == chosen


def test_a_run_id_asked_for_in_another_form_by_the_tag_is_refused() -> None:
    with pytest.raises(InvalidNameError):
        wanted_run_id({}, replace(FACTS, tags={RUN_ID_TAG: "build-42"}))


def test_metrics_that_the_job_wrote_are_kept() -> None:
    own = {
        "evaluated_at": "2025-10-31T10:02:15Z",
        "metrics": {"auc": 0.9},
        "notes": "price feature off",
        "validation_set": "val.parquet",
        "threshold_passed": True,
        "histogram": [1, None, 2],
    }
    facts = replace(
        FACTS,
        metrics={"auc": 0.1, "loss": 2.0},
        params={"validation_set": "other.parquet"},
        tags={"mlflow.note.content": "other"},
    )
    assert json.loads(metrics(own, facts).to_bytes()) == {**own, "run_id": "20251031T093831Z"}


def test_metrics_that_the_job_did_not_write_come_from_its_run() -> None:
    facts = replace(
        FACTS,
        metrics={"recall_at_20": 0.695, "auc": 0.913},
        tags={"mlflow.note.content": "price feature off"},
        datasets=(
            Dataset(name="train", digest="1", source="train.csv", context="training"),
            Dataset(name="val", digest="2", source="val.parquet", context="validation"),
        ),
    )
    assert json.loads(metrics({}, facts).to_bytes()) == {
        "run_id": "20251031T093831Z",
        "evaluated_at": "2025-10-31T09:38:31Z",
        "metrics": {"auc": 0.913, "recall@20": 0.695},
        "validation_set": "val.parquet",
        "notes": "price feature off",
    }


def test_a_metric_that_json_cannot_hold_is_left_out() -> None:
    facts = replace(FACTS, metrics={"auc": 0.9, "loss": float("nan"), "perplexity": float("inf")})
    assert metrics({}, facts).metrics == {"auc": 0.9}


def test_the_release_gets_its_own_run_id_whatever_the_job_called_it() -> None:
    assert metrics({"run_id": "latest"}).run_id == "20251031T093831Z"
    assert meta({"run_id": "latest", "model_name": "tower"})["run_id"] == "20251031T093831Z"
    assert meta({"run_id": "latest", "model_name": "tower"})["model_name"] == "two_tower"


def test_metrics_are_compared_with_the_release_before_where_both_have_them() -> None:
    completed = metrics({"metrics": {"recall@20": 0.695, "auc": 0.913, "new": 2}}, baseline=BASELINE)
    assert completed.baseline_run_id == "20251015T112233Z"
    assert completed.baseline_diff == {"auc": 0.0, "recall@20": 0.015}


PROTOCOL = {"protocol.split": "the last 10 % of time", "protocol.candidates": "all", "protocol.k": "20"}


def test_the_protocol_and_the_metrics_of_other_methods_are_recorded_beside_the_models_own() -> None:
    logged = {"recall_at_20": 0.27, "reference/popularity/recall_at_20": 0.22, "reference/popularity/auc": float("nan")}
    made = metrics({}, replace(FACTS, metrics=logged, params=PROTOCOL))
    assert made.metrics == {"recall@20": 0.27}
    assert made.reference_metrics == {"popularity": {"recall@20": 0.22}}
    wanted = {"split": "the last 10 % of time", "candidates": "all", "k": 20}
    assert made.to_object()["evaluation_protocol"] == wanted
    summary = draft_summary("two_tower", made, FACTS)
    assert "evaluated with split the last 10 % of time, candidates all, k 20" in summary
    assert "popularity: recall@20 0.22" in summary


def test_the_trainings_own_protocol_comes_before_the_params_and_another_form_is_left_out() -> None:
    facts = replace(FACTS, params=PROTOCOL)
    own = metrics({"evaluation_protocol": {"candidates": 100, "users": "all"}}, facts).evaluation_protocol
    assert own is not None
    assert own.to_object() == {"candidates": 100, "users": "all"}
    assert metrics({"evaluation_protocol": "full"}).evaluation_protocol is None


def test_metrics_of_another_protocol_are_not_compared_and_the_reason_is_recorded() -> None:
    facts = replace(FACTS, metrics={"recall_at_20": 0.27}, params=PROTOCOL)
    alike = metrics({}, facts)
    before = alike.model_copy(update={"run_id": "20251015T112233Z"})
    assert metrics({}, facts, before).baseline_diff == {"recall@20": 0.0}
    sampled = replace(facts, params={**PROTOCOL, "protocol.candidates": "100 sampled"})
    made = metrics({}, sampled, before)
    said = "its protocol has candidates '100 sampled', the other has 'all'"
    assert (made.baseline_diff, made.baseline_run_id, made.baseline_note) == (None, "20251015T112233Z", said)
    assert "Not compared with release 20251015T112233Z: its protocol" in draft_summary("two_tower", made, FACTS)
    assert release_notes(made, FACTS) == "Metrics: recall@20 0.27."
    assert metrics({}, facts, BASELINE).baseline_note == "the other has no evaluation protocol"


def test_the_releases_verdict_compares_no_metrics_of_another_protocol() -> None:
    facts = replace(FACTS, metrics={"recall_at_20": 0.9}, params=PROTOCOL)
    gate = parse_gate({"criteria": ["recall@20 not worse than current by more than 0.01"]})
    made = complete_metrics({}, facts, run_id=RUN_ID, baseline=BASELINE, gate=gate)
    assert (made.threshold_passed, made.verdict() and "cannot be compared" in str(made.verdict())) == (False, True)


def test_a_comparison_that_the_job_made_is_kept() -> None:
    completed = metrics({"metrics": {"auc": 0.9}, "baseline_diff": {"auc": 0.5}}, baseline=BASELINE)
    assert completed.baseline_diff == {"auc": 0.5}
    assert completed.baseline_run_id is None


def test_a_release_is_not_compared_with_itself() -> None:
    itself = BASELINE.model_copy(update={"run_id": "20251031T093831Z"})
    assert metrics({"metrics": {"auc": 0.9}}, baseline=itself).baseline_diff is None


def test_a_difference_too_large_to_be_written_is_left_out() -> None:
    baseline = Metrics(run_id="20251015T112233Z", metrics={"loss": -1.5e308, "auc": 0.9})
    assert metrics({"metrics": {"loss": 1.5e308, "auc": 0.9}}, baseline=baseline).baseline_diff == {"auc": 0.0}


@pytest.mark.parametrize("broken", [{"metrics": None}, {"metrics": {"auc": "0.9"}, "notes": 1}, {"evaluated_at": "x"}])
def test_metrics_of_the_job_that_break_the_schema_are_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(InvalidDocumentError, match=r"metrics\.json"):
        metrics(broken)


def test_a_model_meta_that_the_job_wrote_is_kept() -> None:
    own = {
        "format": "two_tower.feature_mlp",
        "trained_at": "2025-10-30T01:02:03Z",
        "git_commit": "abc",
        "embedding_dim": 256,
        "use_price_feature": False,
        "data_snapshot": {"prep_run_id": "p", "source_csv": "own.csv", "rows": 9},
        "release_notes": "own",
        "optimizer": {"name": "adam", "schedule": None},
    }
    facts = replace(
        FACTS,
        params={"embedding_dim": "1", "use_price_feature": "true", "prep_run_id": "q", "source_csv": "other.csv"},
        tags={"mlflow.source.git.commit": "def"},
    )
    kept = meta(own, facts, notes="other")
    assert {name: kept[name] for name in own} == own


def test_a_model_meta_that_the_job_did_not_write_comes_from_its_run() -> None:
    facts = replace(
        FACTS,
        params={"format": "two_tower.feature_mlp", "embedding_dim": "256", "use_price_feature": "False", "lr": "0.1"},
        tags={"mlflow.source.git.commit": "abc"},
        datasets=(Dataset(name="reviews", digest="1", source="reviews.csv", context="training"),),
    )
    assert meta({}, facts, notes="better") == {
        "model_name": "two_tower",
        "format": "two_tower.feature_mlp",
        "run_id": "20251031T093831Z",
        "trained_at": "2025-10-31T09:38:31Z",
        "git_commit": "abc",
        "embedding_dim": 256,
        "use_price_feature": False,
        "data_snapshot": {
            "source_csv": "reviews.csv",
            "datasets": [{"name": "reviews", "digest": "1", "source": "reviews.csv"}],
        },
        "files": {"a.onnx": json.loads(RECORD.to_bytes())},
        "mlflow": {"registered_model": "two_tower", "version": 7, "params": dict(facts.params)},
        "release_notes": "better",
    }


def test_a_git_commit_that_is_not_known_is_null() -> None:
    known = meta({}, replace(FACTS, tags={"mlflow.source.git.commit": "abc"}))
    assert (meta({})["git_commit"], known["git_commit"]) == (None, "abc")
    assert list(meta({})) == list(known)


def test_what_the_job_wrote_of_files_and_origin_is_not_believed() -> None:
    lied = meta({"files": {"b.onnx": {"size_bytes": 1, "sha256": "0" * 64}}, "mlflow": {"version": 1}})
    assert list(lied["files"]) == ["a.onnx"]
    assert lied["mlflow"] == {"registered_model": "two_tower", "version": 7}


@pytest.mark.parametrize(("text", "value"), [("True", True), ("0", False), ("FALSE", False), ("perhaps", None)])
def test_a_truth_value_is_read_as_mlflow_writes_it(text: str, value: bool | None) -> None:
    assert meta({}, replace(FACTS, params={"use_price_feature": text})).get("use_price_feature") is value


@pytest.mark.parametrize(
    ("given", "params"),
    [({"data_snapshot": "reviews.csv"}, {}), ({"embedding_dim": "wide"}, {})],
)
def test_a_model_meta_that_breaks_the_schema_is_refused(given: dict[str, Any], params: dict[str, str]) -> None:
    with pytest.raises(InvalidDocumentError, match=r"model_meta\.json"):
        meta(given, replace(FACTS, params=params))


def test_the_origin_has_the_user_and_the_params_of_the_run_cut_to_their_limits() -> None:
    params = {f"p{number:03}": "x" * 600 for number in range(101)}
    facts = replace(FACTS, params=params, tags={"mlflow.user": "ann\x00"})
    origin = meta({"mlflow": {"user": "mallory"}, "onnx_graph": "none"}, facts)["mlflow"]
    assert origin["user"] == "ann\\x00"
    assert (len(origin["params"]), max(map(len, origin["params"].values()))) == (100, 500)
    assert notes({}, {}, facts) == ["mlflow.params has the first 100 of 101 params"]


def test_no_given_document_is_changed() -> None:
    given: dict[str, Any] = {"data_snapshot": {"rows": 9}, "metrics": {"auc": 0.9}}
    before = json.dumps(given)
    facts = replace(FACTS, params={"source_csv": "a.csv", "embedding_dim": "1"})
    meta(given, facts)
    metrics(given, facts, BASELINE)
    assert json.dumps(given) == before


def test_release_notes_are_the_versions_description() -> None:
    assert release_notes(BASELINE, replace(FACTS, description=" Price feature off. \n")) == "Price feature off."


def test_release_notes_without_a_description_say_what_changed() -> None:
    completed = metrics({"metrics": {"recall@20": 0.695, "auc": 0.913}}, baseline=BASELINE)
    assert release_notes(completed, FACTS) == "auc 0.913 -> 0.913; recall@20 0.68 -> 0.695"


def test_the_release_notes_of_a_first_release_are_its_metrics() -> None:
    completed = metrics({"metrics": {"recall@20": 0.695, "auc": 0.913}})
    assert release_notes(completed, FACTS) == "Metrics: auc 0.913; recall@20 0.695."


def test_the_release_notes_name_the_metrics_where_the_release_before_has_none_of_them() -> None:
    assert release_notes(metrics({"metrics": {"ctr": 0.25}}, baseline=BASELINE), FACTS) == "Metrics: ctr 0.25."


def test_the_release_notes_say_that_there_are_no_metrics() -> None:
    assert release_notes(metrics({}), FACTS) == "No metrics were recorded."


def test_release_notes_keep_to_their_limit() -> None:
    assert len(release_notes(BASELINE, replace(FACTS, description="x" * 5_000))) == RELEASE_NOTES_LIMIT


def test_a_summary_lists_conditions_findings_and_what_they_are_compared_with() -> None:
    facts = RunInfo(
        ended_at=ENDED_AT + timedelta(hours=1),
        params={"lr": "0.1", "epochs": "3"},
        datasets=(Dataset(name="reviews", digest="1", source="reviews.csv"),),
        description="Price feature off.",
    )
    completed = metrics({"metrics": {"recall@20": 0.695, "new": 2}, "notes": "stable"}, baseline=BASELINE)
    assert draft_summary("two_tower", completed, facts) == (
        "# two_tower 20251031T093831Z\n"
        "\n"
        "Price feature off.\n"
        "\n"
        "## Training conditions\n"
        "\n"
        "- epochs: 3\n"
        "- lr: 0.1\n"
        "- dataset reviews: reviews.csv (digest 1)\n"
        "\n"
        "## Findings\n"
        "\n"
        "- new: 2\n"
        "- recall@20 0.68 -\\> 0.695 (+0.015)\n"
        "- stable\n"
        "\n"
        "Compared with release 20251015T112233Z.\n"
    )


def test_a_summary_has_the_changes_of_the_model_since_the_baseline() -> None:
    completed = metrics({"metrics": {"recall@20": 0.695}}, baseline=BASELINE)
    before, after = (
        ModelMeta.from_object({"model_name": "two_tower", "run_id": run_id, "hidden_dim": dim, "optimizer": "*sgd*"})
        for run_id, dim in (("20251015T112233Z", 256), ("20251031T093831Z", 512))
    )
    summary = draft_summary("two_tower", completed, FACTS, meta=after, baseline=before)
    assert summary.endswith("\n\n## Changes since 20251015T112233Z\n\n- hidden_dim: 256 -\\> 512\n")
    unchanged = draft_summary("two_tower", completed, FACTS, meta=before, baseline=before)
    assert unchanged.endswith("\n\n- none recorded\n")


def test_a_summary_of_a_training_that_recorded_nothing_says_so() -> None:
    assert draft_summary("two_tower", metrics({}), FACTS).count("- none recorded\n") == 2


# --- the gate's verdict -----------------------------------------------------------------------------------------------


def test_a_gate_judges_the_documents_metrics_and_the_runs_where_it_has_none() -> None:
    gate = parse_gate({"criteria": ["recall@20 >= 0.65", "auc >= 0.88", "ctr >= 0"]})
    facts = replace(FACTS, metrics={"recall_at_20": 0.9, "auc": 0.913, "ctr": float("nan")})
    found = complete_metrics({"metrics": {"recall@20": 0.61}}, facts, run_id=RUN_ID, baseline=None, gate=gate)
    assert found.threshold_passed is False
    assert [(item.value, item.passed, item.finding) for item in found.threshold_criteria or []] == [
        (0.61, False, "recall@20 0.610 < 0.65"),
        (0.913, True, "auc 0.913 meets auc >= 0.88"),
        (None, False, "ctr is NaN"),
    ]
    assert Metrics.parse(found.to_bytes()) == found
    assert str(found.verdict()) == "failed: recall@20 0.610 < 0.65; ctr is NaN"


@pytest.mark.parametrize("mode", ["enforce", "warn", "off"])
def test_a_training_decides_for_itself_only_where_no_gate_does(mode: str) -> None:
    gate = parse_gate({"criteria": ["auc >= 0.88"], "mode": mode})
    own = {"metrics": {"auc": 0.1}, "threshold_passed": True, "threshold_criteria": [{"criterion": "auc >= 0"}]}
    found = complete_metrics(own, FACTS, run_id=RUN_ID, baseline=None, gate=gate)
    assert found.threshold_passed is (mode == "off")
    assert (found.threshold_criteria is None) is (mode == "off")


def test_a_release_that_is_made_again_is_not_its_own_baseline() -> None:
    gate = parse_gate({"criteria": ["auc > current"]})
    own = {"metrics": {"auc": 0.9}}
    first = complete_metrics(own, FACTS, run_id=RUN_ID, baseline=None, gate=gate)
    assert complete_metrics(own, FACTS, run_id=RUN_ID, baseline=first, gate=gate).threshold_passed
