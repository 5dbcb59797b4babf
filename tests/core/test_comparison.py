"""The comparison of two releases: what differs, what is not compared, and how it is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from supabase_bridge.core.comparison import Area, Comparison, ReleaseDocuments, compare, compare_metrics
from supabase_bridge.core.comparison_text import as_markdown, as_object, as_text, change_line, metric_line
from supabase_bridge.core.documents import Manifest, Metrics, ModelMeta
from supabase_bridge.core.text import code_for_markdown

GOLDEN = Path(__file__).parents[1] / "golden"
META = json.loads((GOLDEN / "model_meta.json").read_text())
METRICS = json.loads((GOLDEN / "metrics.json").read_text())
BEFORE_ID = "20251015T112233Z"
GRAPH: dict[str, Any] = {
    "inputs": [{"name": "user_features", "type": "float32", "shape": ["user_batch", 4099]}],
    "outputs": [{"name": "user_embedding", "type": "float32", "shape": ["user_batch", 256]}],
    "operators": {"Gemm": 4, "Relu": 2},
    "opsets": {"ai.onnx": 17},
}


def release(
    run_id: str, metrics: dict[str, Any] | None = None, *, entry: Manifest | None = None, **fields: Any
) -> ReleaseDocuments:
    """The documents of the golden release with another run_id and further fields."""
    files = {name.replace(META["run_id"], run_id): record for name, record in META["files"].items()}
    meta = ModelMeta.from_object({**META, "files": files, "run_id": run_id, **fields})
    return ReleaseDocuments(meta=meta, metrics=evaluated(run_id, **(metrics or {})), entry=entry)


def evaluated(run_id: str, **fields: Any) -> Metrics:
    return Metrics.from_object({**METRICS, "run_id": run_id, **fields})


BEFORE = release(BEFORE_ID, {"metrics": {"auc": 0.909, "map@20": 0.421}}, onnx_graph=GRAPH)
AFTER = release(META["run_id"], onnx_graph=GRAPH)


def changed(comparison: Comparison, area: Area) -> list[tuple[str, Any, Any]]:
    return [(change.name, change.before, change.after) for change in comparison.changes.get(area, ())]


def test_two_releases_with_equal_documents_differ_in_nothing() -> None:
    found = compare(release(BEFORE_ID, onnx_graph=GRAPH), AFTER)
    assert (dict(found.changes), set(found.metrics.differences.values()), found.notes) == ({}, {0.0}, ())
    assert list(as_text(found))[-1] == "no other differences"


def test_metrics_have_both_values_and_the_difference_without_rounding_errors() -> None:
    found = compare(BEFORE, AFTER).metrics
    assert [(one.name, one.before, one.after) for one in found.changes] == [
        ("auc", 0.909, 0.913),
        ("map@20", 0.421, 0.421),
        ("recall@20", None, 0.695),
    ]
    assert found.differences == {"auc": 0.004, "map@20": 0.0}
    assert metric_line(found.changes[0]) == "auc 0.909 -> 0.913 (+0.004)"
    assert metric_line(found.changes[2]) == "recall@20 none -> 0.695"


def test_metrics_of_different_protocols_are_not_compared_and_every_form_says_so() -> None:
    before = evaluated(BEFORE_ID, evaluation_protocol={"candidates": "all"})
    after = evaluated(META["run_id"], evaluation_protocol={"candidates": "100 sampled"})
    documents = [ReleaseDocuments(meta=one.meta, metrics=two) for one, two in ((BEFORE, before), (AFTER, after))]
    found = compare(*documents)
    problem = "its protocol has candidates '100 sampled', the other has 'all'"
    assert (found.metrics.problem, found.metrics.differences) == (problem, {})
    assert changed(found, Area.EVALUATION) == [("protocol.candidates", "all", "100 sampled")]
    text, page, value = "\n".join(as_text(found)), "\n".join(as_markdown(found)), as_object(found)
    assert f"metrics, not comparable: {problem}\n  auc before 0.913, after 0.913" in text
    assert f"**Not comparable:** `{problem}`" in page
    assert "difference" not in page
    assert value["metrics_problem"] == problem
    assert {metric["difference"] for metric in value["metrics"]} == {None}


def test_a_release_without_metrics_is_compared_in_everything_else() -> None:
    found = compare(ReleaseDocuments(meta=BEFORE.meta), AFTER)
    assert found.metrics.changes[0].before is None
    assert compare_metrics(None, None).changes == ()


@pytest.mark.parametrize(
    ("area", "fields", "said"),
    [
        (Area.DIMENSIONS, {"hidden_dim": 1024}, "hidden_dim: 512 -> 1024"),
        (Area.PARAMETERS, {"use_price_feature": True}, "use_price_feature: false -> true"),
        (Area.PARAMETERS, {"optimizer": {"lr": 0.1}}, 'optimizer: none -> {"lr": 0.1}'),
        (Area.CODE, {"git_commit": None}, "git_commit: 9fceb02d0ae598e95dc970b74767f19372d61af8 -> none"),
        (
            Area.DATA,
            {"data_snapshot": {**META["data_snapshot"], "prep_run_id": "20251101T000000Z"}},
            "prep_run_id: 20251030T100538Z -> 20251101T000000Z",
        ),
        (
            Area.INPUTS,
            {"onnx_graph": {**GRAPH, "inputs": [{"name": "user_features", "type": "float16", "shape": ["n", 4100]}]}},
            "user_features: float32[user_batch, 4099] -> float16[n, 4100]",
        ),
        (
            Area.OUTPUTS,
            {"onnx_graph": {**GRAPH, "outputs": []}},
            "user_embedding: float32[user_batch, 256] -> none",
        ),
        (Area.OPERATORS, {"onnx_graph": {**GRAPH, "operators": {"Gemm": 4}}}, "Relu: 2 -> none"),
        (Area.OPERATORS, {"onnx_graph": {**GRAPH, "opsets": {"ai.onnx": 18}}}, "opset ai.onnx: 17 -> 18"),
    ],
)
def test_one_fact_that_differs_is_one_change_in_its_area(area: Area, fields: dict[str, Any], said: str) -> None:
    found = compare(release(BEFORE_ID, onnx_graph=GRAPH), release(META["run_id"], **{"onnx_graph": GRAPH, **fields}))
    assert {one: [change_line(change) for change in changes] for one, changes in found.changes.items()} == {
        area: [said]
    }


def test_the_params_of_the_run_are_compared_and_those_that_are_fields_are_not_repeated() -> None:
    origin = {"registered_model": "two_tower", "version": 7, "params": {"lr": "0.1", "hidden_dim": "512"}}
    found = compare(release(BEFORE_ID), release(META["run_id"], mlflow=origin))
    assert changed(found, Area.PARAMETERS) == [("lr", None, "0.1")]


def test_datasets_are_compared_by_their_names_and_any_other_form_is_no_error() -> None:
    def with_datasets(run_id: str, datasets: Any) -> ReleaseDocuments:
        return release(run_id, data_snapshot={"datasets": datasets})

    named = [{"name": "reviews", "source": "a.csv", "digest": digest} for digest in ("1", "2")]
    found = compare(with_datasets(BEFORE_ID, named[:1]), with_datasets(META["run_id"], named))
    assert changed(found, Area.DATA) == [("dataset reviews (2)", None, "a.csv (digest 2)")]
    assert (
        changed(compare(with_datasets(BEFORE_ID, [1, {}, {"name": 2}]), with_datasets(META["run_id"], "x")), Area.DATA)
        == []
    )


def test_model_files_are_compared_by_size_and_content_whatever_run_id_their_names_have() -> None:
    name = f"two_tower_{META['run_id']}.pt"
    files = {**META["files"], name: {"size_bytes": 54530048, "sha256": "0" * 64}}
    files["metrics.json"] = {"size_bytes": 1, "sha256": "0" * 64}
    (change,) = compare(release(BEFORE_ID), release(META["run_id"], files=files)).changes[Area.FILES]
    assert change_line(change) == (
        "two_tower_RUN_ID.pt: 54530048 bytes (sha256 2e7d2c03a950) -> 54530048 bytes (sha256 000000000000)"
    )


def test_a_release_without_a_record_of_its_graph_gets_a_note_instead_of_changes() -> None:
    found = compare(release(BEFORE_ID), AFTER)
    assert found.notes == (f"the ONNX graph is not compared: {BEFORE_ID} has no record of it",)
    assert dict(found.changes) == {}


def test_who_and_when_are_shown_of_both_releases() -> None:
    origin = {"registered_model": "two_tower", "version": 6, "user": "ann"}
    entry = Manifest.from_object(json.loads((GOLDEN / "manifest.json").read_text()))
    found = compare(release(BEFORE_ID, mlflow=origin), release(META["run_id"], entry=entry))
    lines = list(as_text(found))
    assert lines[:1] == [f"two_tower: {BEFORE_ID} -> {META['run_id']}"]
    assert "  version: 6 -> 7" in lines
    assert "  trained by: ann -> none" in lines
    assert "  current since: none -> 2025-11-01T02:40:10Z" in lines
    assert as_object(found)["before"]["trained_by"] == "ann"


def test_a_comparison_as_markdown_is_a_page_of_tables() -> None:
    found = compare(BEFORE, release(META["run_id"], onnx_graph=GRAPH, hidden_dim=1024))
    assert "\n".join(as_markdown(found)) == (
        "## two_tower: `20251015T112233Z` → `20251031T093831Z`\n"
        "\n"
        "|  | before | after |\n"
        "| --- | --- | --- |\n"
        "| version | `7` | `7` |\n"
        "| trained | `2025-10-31T09:38:31Z` | `2025-10-31T09:38:31Z` |\n"
        "| evaluated | `2025-10-31T10:02:15Z` | `2025-10-31T10:02:15Z` |\n"
        "\n"
        "### metrics\n"
        "\n"
        "| metric | before | after | difference |\n"
        "| --- | --- | --- | --- |\n"
        "| `auc` | 0.909 | 0.913 | +0.004 |\n"
        "| `map@20` | 0.421 | 0.421 | +0 |\n"
        "| `recall@20` | none | 0.695 |  |\n"
        "\n"
        "### dimensions\n"
        "\n"
        "|  | before | after |\n"
        "| --- | --- | --- |\n"
        "| `hidden_dim` | `512` | `1024` |"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("@team see #1 http://x.example ![i](http://x.example)", None),
        ("a\nb\x1b[31m\u202ec", "`a b [31m c`"),
        ("`", "<code>&#96;</code>"),
        ("a|b", "<code>a&#124;b</code>"),
        ("\\|<img src=x>_a_", "<code>&#92;&#124;&#60;img src&#61;x&#62;&#95;a&#95;</code>"),
        ("  ", ""),
    ],
)
def test_a_foreign_text_in_a_table_of_markdown_is_code_that_it_cannot_end(text: str, shown: str | None) -> None:
    assert code_for_markdown(text) == (f"`{text}`" if shown is None else shown)


def test_foreign_texts_reach_neither_terminal_nor_markdown_unescaped() -> None:
    evil = "\x1b[31m@all | `x` <img src=x>\n# h"
    origin = {"registered_model": "two_tower", "version": 7, "user": evil, "params": {evil: evil}}
    metrics = {"metrics": {evil: 1}, "validation_set": evil, "evaluation_protocol": {"k": evil}}
    found = compare(BEFORE, release(META["run_id"], metrics, mlflow=origin))
    assert all(line.isprintable() for line in as_text(found))
    page = "\n".join(as_markdown(found))
    assert "\x1b" not in page
    assert "<img" not in page
    assert "\n# h" not in page
    assert all(line.count("|") in {0, 4, 5} for line in page.splitlines())


def test_a_comparison_of_thousands_of_changes_shows_a_hundred_and_counts_the_others() -> None:
    params = {f"p{number}": "x" * 5_000 for number in range(150)}
    origin = {"registered_model": "two_tower", "version": 7, "params": params}
    found = compare(BEFORE, release(META["run_id"], mlflow=origin, onnx_graph=GRAPH))
    assert list(as_text(found))[-1] == "  and 50 more"
    assert max(map(len, as_text(found))) < 500
    assert len(as_object(found)["changes"]["parameters"]) == 150
