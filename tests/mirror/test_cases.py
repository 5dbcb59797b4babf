"""ONNX models from practice: each is right on real input, and each passes, some with a note."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from supabase_bridge.core.documents import ModelMeta
from supabase_bridge.mirror.checks.sandbox import Checks
from supabase_bridge.mirror.errors import ModelRejectedError
from supabase_bridge.mirror.onnx_file import NO_GIVEN_INPUT, GivenInput
from supabase_bridge.mirror.source_files import ModelFile
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.hashing import hash_file
from tests.support.scene import MLMODEL, MODEL, MakeScene

CASES = Path(__file__).with_name("cases")
CHECKS = Checks(timeout=timedelta(seconds=60), memory_bytes=2_000_000_000)
WRONG_SHAPE = "the graph declares"
NOT_RUN = "opened and not run"


def notes(path: Path, *, given: GivenInput = NO_GIVEN_INPUT, trial_warns: bool = False, **meta: int) -> str:
    file = ModelFile(record=hash_file(path), path=path)
    checks = dataclasses.replace(CHECKS, trial_warns=trial_warns)
    described = ModelMeta.from_object({"model_name": "m", "run_id": "r", **meta})
    return "; ".join(checks.onnx(file, described, given))


def joined(directory: Path, name: str) -> Path:
    """A model of the cases as one file, with the weights that lie beside it."""
    structure = CHECKS.structure(CASES / name)
    if not structure.external_files:
        return CASES / name
    target = directory / name
    CHECKS.join(CASES / name, target, size_bytes=10_000)
    return target


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("o1_history_length", None),
        ("o2_int_mask_softmax", None),
        ("o4_topk_k", None),
        ("o5_log_of_count", None),
        ("o6_minus_inf_for_seen", "minus infinity beside numbers"),
        ("o14_rank_declared_wrong", WRONG_SHAPE),
        ("o15_output_batch_fixed_1", WRONG_SHAPE),
        ("o16_symbol_reused", WRONG_SHAPE),
        ("o20b_string_default_nan", None),
        ("o21_dot_slash_location", None),
        ("o22_subgraph_external", None),
        ("o24_offsets", None),
        ("o25_ids_from_1", None),
    ],
)
def test_a_model_from_practice_passes_with_a_note_where_it_needs_one(
    tmp_path: Path, name: str, said: str | None
) -> None:
    found = notes(joined(tmp_path, f"{name}.onnx"))
    assert (found == "") is (said is None)
    assert (said or "") in found


# --- the order of the attempts ----------------------------------------------------------------------------------------


def saved(directory: Path, node: onnx.NodeProto, kind: int, shape: list[str | int], **more: Any) -> Path:
    """A model of one node from `x` to `y`."""
    made = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", more.get("gives", kind), more.get("returns", shape))],
        [numpy_helper.from_array(value, name) for name, value in more.get("weights", {}).items()],
    )
    path = directory / "m.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


def above(directory: Path, least: float) -> Path:
    """A model whose output is finite for numbers above `least` only."""
    path = saved(directory, helper.make_node("Sub", ["x", "least"], ["z"]), TensorProto.FLOAT, ["N", 2])
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Log", ["z"], ["y"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(least, np.float32), "least"))
    onnx.save(model, path)
    return path


def test_a_model_that_is_finite_on_no_made_input_is_refused_with_each_input(tmp_path: Path) -> None:
    with pytest.raises(ModelRejectedError) as refused:
        notes(above(tmp_path, 5))
    assert refused.value.problem == (
        "output 'y' has NaN or infinity in it, on every input that was tried "
        "(numbers between 0 and 1; numbers 1; numbers between -1 and 1)"
    )


EXAMPLES = {
    "ndarray": {"inputs": [[6.0, 7.0]]},
    "tensors by name": {"inputs": {"x": [[6.0, 7.0]]}},
    "table": {"columns": ["a", "b"], "data": [[6.0, 7.0], [8.0, 9.0]]},
    "list": [[6.0, 7.0]],
}


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_the_versions_own_input_example_is_tried_alone(tmp_path: Path, example: Any) -> None:
    assert notes(above(tmp_path, 5), given=GivenInput(example=json.dumps(example).encode())) == ""
    with pytest.raises(ModelRejectedError, match="the version's own input example"):
        notes(above(tmp_path, 20), given=GivenInput(example=json.dumps(example).encode()))


@pytest.mark.parametrize("example", [b"", b"{}", b"null", b'{"inputs": "a"}', b"[[1, 2, 3], [4]]", b"[" * 5_000])
def test_an_input_example_that_does_not_fit_is_passed_over(tmp_path: Path, example: bytes) -> None:
    assert notes(above(tmp_path, -2), given=GivenInput(example=example)) == ""


def test_a_signature_says_the_size_of_an_open_dimension(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weights = {"w": np.ones((7, 3), np.float32)}
    path = saved(tmp_path, node, TensorProto.FLOAT, ["N", "size"], returns=["N", 3], weights=weights)
    signature = [{"name": "x", "type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 7]}}]
    assert notes(path, given=GivenInput(signature=json.dumps(signature))) == ""
    with pytest.raises(ModelRejectedError, match="a trial inference on made input failed: "):
        notes(path)
    assert "only a warning" in notes(path, trial_warns=True)


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN])
def test_an_output_of_a_type_that_numpy_lacks_is_opened_and_not_run(tmp_path: Path, kind: int) -> None:
    node = helper.make_node("Cast", ["x"], ["y"], to=kind)
    assert NOT_RUN in notes(saved(tmp_path, node, TensorProto.FLOAT, ["N"], gives=kind))


def test_an_embedding_of_another_size_is_refused_although_the_trial_only_warns(tmp_path: Path) -> None:
    path = saved(tmp_path, helper.make_node("Relu", ["x"], ["y"]), TensorProto.FLOAT, ["N", 3])
    model = onnx.load(path)
    model.graph.node[0].output[0] = model.graph.output[0].name = "user_embedding"
    onnx.save(model, path)
    with pytest.raises(ModelRejectedError, match="embedding_dim 4"):
        notes(path, trial_warns=True, embedding_dim=4)


@pytest.mark.exhaustive
def test_few_of_onnxs_own_node_tests_are_refused_and_none_by_an_error_of_the_checks() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.node_tests"]
    done = subprocess.run(command, cwd=CASES.parents[2], capture_output=True, text=True, check=True)
    counted = {
        kind: int(number) for number, _, kind in (part.partition(" ") for part in done.stdout.strip().split(", "))
    }
    assert counted.keys() <= {"accepted", "not opened", "refused"}, done.stdout
    assert counted["refused"] < 20


# --- the way out ------------------------------------------------------------------------------------------------------


def test_a_failed_trial_is_a_note_where_the_setting_or_the_models_tag_says_so(
    make_scene: MakeScene, directory_settings: Settings, tmp_path: Path
) -> None:
    scene = make_scene(directory_settings)
    files = {"model/MLmodel": MLMODEL, "model/model.onnx": above(tmp_path, 5).read_bytes()}
    refused = scene.train(files=files)
    scene.work()
    assert scene.tags(refused)["status"] == "rejected"
    scene.client.set_registered_model_tag(MODEL, "supabase.trial", "warn")
    version = scene.train(files=files)
    scene.promote(version)
    scene.work()
    tags = scene.tags(version)
    assert tags["status"] == "active"
    assert "the trial failed, and is only a warning for this model: output 'y' has NaN" in tags["note"]
    meta = json.loads(scene.objects()[f"{MODEL}/{tags['run_id']}/model_meta.json"])
    assert meta["mirror_notes"] == [tags["note"]]


@pytest.mark.parametrize(("tag", "warns"), [(None, True), ("warn", True), ("enforce", False), ("of", False)])
def test_the_models_tag_comes_before_the_setting(directory_settings: Settings, tag: str | None, warns: bool) -> None:
    settings = directory_settings.with_changes(trial_warnings=(MODEL,))
    assert settings.trial_warns(MODEL, {} if tag is None else {"supabase.trial": tag}) is warns
    assert settings.trial_warns("Two Tower", {"supabase.key": MODEL})
    assert not settings.trial_warns("other", {})
