"""What training jobs write in practice: a release is made of it, and a note says what is left out or guessed."""

from __future__ import annotations

import json
import math
import struct
import sys
from datetime import datetime, timezone
from typing import Any

import pytest

from supabase_bridge.core.criteria import judge, parse_gate
from supabase_bridge.core.documents import Metrics
from supabase_bridge.core.json_objects import parse_training_object
from supabase_bridge.core.layout import RunId
from supabase_bridge.mirror.metadata import RunInfo, complete_metrics, notes, trained_at
from tests.support.scene import MLMODEL, MODEL, Scene, state_dict, tiny_onnx

RUN_ID = RunId.parse("20251031T093831Z")
ENDED_AT = datetime(2025, 10, 31, 9, 38, 31, tzinfo=timezone.utc)
FACTS = RunInfo(ended_at=ENDED_AT)
MAXIMUM = sys.float_info.max
"""As which MLflow stores infinity."""


def mirrored(scene: Scene, files: dict[str, bytes], **arguments: Any) -> tuple[str, dict[str, bytes]]:
    """Mirror a run that logs an ONNX model and these files; return the note and the release's files by name."""
    version = scene.train(files={"model/MLmodel": MLMODEL, "model/model.onnx": tiny_onnx(), **files}, **arguments)
    scene.work()
    tags = scene.tags(version)
    assert tags["status"] == "mirrored", tags
    prefix = f"{MODEL}/{tags['run_id']}/"
    return tags.get("note", ""), {key.removeprefix(prefix): data for key, data in scene.objects(prefix).items()}


def test_everything_odd_that_a_training_writes_is_noted_and_makes_no_dead_letter(directory_scene: Scene) -> None:
    files = {
        "weights/best.pt": state_dict(1),
        "weights/last.pt": state_dict(2),
        "train/metrics.json": b'{"metrics": {"auc": 0.1}}',
        "eval/metrics.json": b'\xef\xbb\xbf{"metrics": {"auc": 0.9, "loss": NaN, "curve": [1, 2]}}',
        "summary.md": "# 学習の結果、よい".encode("cp932"),
    }
    params = {"hidden_dim": "[512, 256]", "embedding_dim": "2", "use_price_feature": "None", "optimizer": "adam"}
    note, released = mirrored(directory_scene, files, params=params, metrics={"perplexity": math.inf})
    metrics, meta = json.loads(released["metrics.json"]), json.loads(released["model_meta.json"])
    assert metrics["metrics"] == {"auc": 0.9}
    assert "hidden_dim" not in meta
    assert "use_price_feature" not in meta
    assert meta["embedding_dim"] == 2
    assert released["summary.md"].decode() == "# 学習の結果、よい"
    assert not [name for name in released if name.endswith(".pt")]
    for said in (
        "Keep one of them, or name it <model>_latest",
        "weights/best.pt, weights/last.pt",
        "metrics.json: metrics.loss is not finite and is left out",
        "metrics.json: metric 'curve' is no number (list) and is left out",
        "param hidden_dim = '[512, 256]' is not a whole number and is left out",
        "param use_price_feature = 'None' is not true or false and is left out",
        "the run's metric 'perplexity' is inf and is left out",
        "summary.md is not UTF-8: it was read as cp932",
    ):
        assert said in note
    assert "optimizer" not in note
    assert meta["mirror_notes"] == note.split("; ")


@pytest.mark.parametrize(
    "data",
    [b"\x80\x02}q\x00.", b"\x89HDF\r\n\x1a\n", struct.pack("<Q", 2) + b"{}"],
    ids=["bare pickle", "hdf5", "safetensors"],
)
def test_an_optional_pytorch_file_in_another_form_is_left_out_with_a_note(directory_scene: Scene, data: bytes) -> None:
    note, released = mirrored(directory_scene, {"model.pt": data})
    assert note.startswith("the PyTorch file is left out: model.pt is not a state_dict as torch.save writes it: ")
    assert not [name for name in released if name.endswith(".pt")]


def test_an_onnx_file_is_found_by_its_suffix_in_any_case(directory_scene: Scene) -> None:
    version = directory_scene.train(files={"model/MODEL.ONNX": tiny_onnx(), "WEIGHTS.PT": state_dict()})
    directory_scene.work()
    run_id = directory_scene.tags(version)["run_id"]
    assert {f"{MODEL}_{run_id}.onnx", f"{MODEL}_{run_id}.pt"} <= {
        key.rpartition("/")[2] for key in directory_scene.objects()
    }


@pytest.mark.parametrize("text", ["None", "auto", "", "1e3", "[512, 256]", "0x10", "1_000"])
def test_a_param_that_is_no_whole_number_is_named_in_a_note(text: str) -> None:
    (note,) = notes({}, {}, RunInfo(ended_at=ENDED_AT, params={"hidden_dim": text, "other": text}))
    assert "param hidden_dim = " in note
    assert notes({"hidden_dim": 4}, {}, RunInfo(ended_at=ENDED_AT, params={"hidden_dim": text})) == []


@pytest.mark.parametrize(
    ("given", "time", "said"),
    [
        ("2025-10-30T01:02:03Z", "2025-10-30T01:02:03", None),
        ("2025-10-30T01:02:03", "2025-10-30T01:02:03", "it is read as 2025-10-30T01:02:03Z"),
        ("2025-10-30 01:02:03", "2025-10-30T01:02:03", "it is read as"),
        (1761786123, "2025-10-30T01:02:03", "it is read as"),
        (1761786123.0, "2025-10-30T01:02:03", "it is read as"),
        ("1761786123", "2025-10-30T01:02:03", "it is read as"),
        (1761786123000, "2025-10-30T01:02:03", "it is read as"),
        ("last night", "2025-10-31T09:38:31", "it is no time and is not used"),
        (20251030, "2025-10-31T09:38:31", "it is no time and is not used"),
        ("", "2025-10-31T09:38:31", "it is no time and is not used"),
    ],
)
def test_a_time_of_training_is_read_as_utc_with_a_note_or_not_used_with_a_note(
    given: object, time: str, said: str | None
) -> None:
    assert trained_at({"trained_at": given}, FACTS).isoformat() == f"{time}+00:00"
    found = notes({"trained_at": given}, {}, FACTS)
    assert found == [] if said is None else said in found[0]


def test_the_numbers_of_a_flat_document_are_the_metrics() -> None:
    flat = {"auc": 0.9, "recall@20": 0.7, "notes": "night run", "final": True, "by_tag": {"a": 1}}
    made = complete_metrics(flat, FACTS, run_id=RUN_ID, baseline=None)
    assert made.metrics == {"auc": 0.9, "recall@20": 0.7}
    assert made.notes == "night run"
    assert made.model_extra == {"final": True, "by_tag": {"a": 1}}


def test_an_infinite_metric_is_shown_as_infinite_and_left_out_of_documents_and_differences() -> None:
    facts = RunInfo(ended_at=ENDED_AT, metrics={"loss": MAXIMUM, "auc": 0.9, "low": -MAXIMUM})
    baseline = Metrics(run_id="20251015T112233Z", metrics={"loss": 1.0, "auc": 0.8})
    made = complete_metrics({}, facts, run_id=RUN_ID, baseline=baseline)
    assert made.metrics == {"auc": 0.9}
    assert made.baseline_diff == {"auc": 0.1}
    verdict = judge(parse_gate({"criteria": ["loss >= 0.5"]}), {"loss": MAXIMUM}, None)
    assert str(verdict) == "failed: loss is infinite"
    assert "the run's metric 'low' is -inf" in notes({}, {}, facts)[1]


def test_a_training_document_loses_its_numbers_that_are_not_finite_and_nothing_else() -> None:
    data = b'\xef\xbb\xbf{"a": NaN, "b": [1, Infinity, null], "c": {"d": -Infinity, "e": null}, "f": 1e999}'
    value, left_out = parse_training_object(data, "metrics.json")
    assert value == {"b": [1, None, None], "c": {"e": None}}
    assert left_out == ["a", "b[1]", "c.d", "f"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Über café", "cp1252"),
        ("結果はよい", "cp932"),
        ("結果はよい", "euc_jp"),
        ("結果はよい", "utf-16"),
        ("é", "utf-8-sig"),
    ],
)
def test_a_summary_of_another_encoding_is_shown_as_well_as_it_can_be(
    directory_scene: Scene, text: str, encoding: str
) -> None:
    note, released = mirrored(directory_scene, {"summary.md": text.encode(encoding)})
    assert released["summary.md"].decode() == text
    assert ("not UTF-8" in note) is (encoding != "utf-8-sig")
