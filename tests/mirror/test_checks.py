"""The checks of a model's files: real graphs, in the process of their own that they run in."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from supabase_bridge.core.documents import ModelMeta
from supabase_bridge.demo.model import Hyperparameters, generate_interactions, train
from supabase_bridge.demo.training import to_onnx
from supabase_bridge.mirror.checks.sandbox import Checks
from supabase_bridge.mirror.errors import (
    CheckInterruptedError,
    Fault,
    ModelRejectedError,
)
from supabase_bridge.mirror.source_files import ModelFile
from supabase_bridge.storage.hashing import hash_file
from tests.support.torch_save import torch_save

CHECKS = Checks(timeout=timedelta(seconds=60), memory_bytes=2_000_000_000)


def value(name: str, shape: Sequence[int | str | None], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    *,
    weights: Sequence[onnx.TensorProto] = (),
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    made = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def towers(
    *, user: int | None = 3, item: int | None = 4, embedding: int = 2, sides: str = "user item"
) -> onnx.ModelProto:
    """A graph like the demonstration's: each side's features, multiplied by weights."""
    sizes = {"user": user, "item": item}
    wanted = sides.split()
    weights = [
        numpy_helper.from_array(np.ones(({"user": 3, "item": 4}[side], embedding), np.float32), f"{side}_weights")
        for side in wanted
    ]
    return graph(
        [helper.make_node("MatMul", [f"{side}_features", f"{side}_weights"], [f"{side}_embedding"]) for side in wanted],
        [value(f"{side}_features", ["batch", sizes[side]]) for side in wanted],
        [value(f"{side}_embedding", ["batch", embedding]) for side in wanted],
        weights=weights,
    )


def one(
    operator: str,
    *,
    shape: Sequence[int | str | None] = ("batch", 3),
    gives: Sequence[int | str | None] | None = None,
    opset: int = 17,
    ir_version: int = 8,
    named: str = "x",
) -> onnx.ModelProto:
    """A graph of one operator."""
    node = helper.make_node(operator, [named], ["y"])
    ends = [value(named, shape)], [value("y", shape if gives is None else gives)]
    return graph([node], *ends, opset=opset, ir_version=ir_version)


def here(path: Path) -> ModelFile:
    """A local file of a model."""
    return ModelFile(record=hash_file(path), path=path)


def run(path: Path, model: onnx.ModelProto, *, using: Checks = CHECKS, **meta: int) -> tuple[str, ...]:
    """Run the checks of one ONNX model, as a file `m.onnx`, and return their notes."""
    file = path / "m.onnx"
    file.write_bytes(model.SerializeToString())
    return using.onnx(here(file), ModelMeta.from_object({"model_name": "m", "run_id": "r", **meta}))


def rejected(path: Path, model: onnx.ModelProto, **arguments: object) -> str:
    with pytest.raises(ModelRejectedError) as refused:
        run(path, model, **arguments)  # type: ignore[arg-type]  # the arguments of `run`
    assert refused.value.fault is Fault.FAILED
    assert refused.value.rejects
    assert not refused.value.retryable
    return refused.value.problem


# --- what passes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        towers(),
        towers(user=None, item=None),
        one("Identity"),
        one("Identity", shape=()),
        one("Identity", shape=(5, 3)),
        # Numbers that a network is usually given: a logarithm of none below zero.
        one("Log"),
        # 28 by 28 convolutions do not run on 2 by 2.
        graph(
            [helper.make_node("Conv", ["x", "w"], ["y"])],
            [value("x", ["batch", 1, "height", "width"])],
            [value("y", ["batch", 1, None, None])],
            weights=[numpy_helper.from_array(np.ones((1, 1, 28, 28), np.float32), "w")],
        ),
        # Indices into the smallest of vocabularies.
        graph(
            [helper.make_node("Gather", ["table", "x"], ["y"])],
            [value("x", ["batch"], TensorProto.INT64)],
            [value("y", ["batch", 3])],
            weights=[numpy_helper.from_array(np.ones((1, 3), np.float32), "table")],
        ),
        graph([helper.make_node("Identity", ["x"], ["y"])], *([value(n, [2], TensorProto.STRING)] for n in "xy")),
        graph([helper.make_node("Not", ["x"], ["y"])], *([value(n, [2], TensorProto.BOOL)] for n in "xy")),
        graph([helper.make_node("Identity", ["x"], ["y"])], *([value(n, [2], TensorProto.FLOAT16)] for n in "xy")),
        graph([helper.make_node("Identity", ["x"], ["y"])], *([value(n, [2], TensorProto.BFLOAT16)] for n in "xy")),
    ],
    ids=["towers", "open", "plain", "scalar", "fixed", "log", "conv", "index", "text", "bool", "half", "bfloat16"],
)
def test_a_model_that_does_what_it_says_passes(tmp_path: Path, model: onnx.ModelProto) -> None:
    run(tmp_path, model, user_feature_dim=3, item_feature_dim=4, embedding_dim=2)


def test_the_demonstrations_own_model_passes(tmp_path: Path) -> None:
    data = generate_interactions(np.random.default_rng(1), users=9, items=9, tag_vocab_size=5, performer_vocab_size=3)
    small = Hyperparameters(
        embedding_dim=4, hidden_dim=6, epochs=1, learning_rate=0.01, batch_size=16, use_price_feature=False, seed=7
    )
    run(tmp_path, to_onnx(train(data, small)), user_feature_dim=data.user_features.shape[1], embedding_dim=4)


def test_a_graph_with_names_of_its_own_is_not_compared(tmp_path: Path) -> None:
    run(tmp_path, one("Identity"), user_feature_dim=4099, item_feature_dim=21671)


# --- names and dimensions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (towers(user=3, item=4), "model_meta.json has user_feature_dim 9, and the graph takes 'user_features' [?, 3]"),
        (
            towers(sides="item"),
            (
                "model_meta.json has user_feature_dim 9, and the graph no input 'user_features' "
                "(inputs: 'item_features' [?, 4])"
            ),
        ),
        (
            graph(
                [helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.ones(2, np.float32)))],
                [],
                [value("y", [2])],
            ),
            "model_meta.json has user_feature_dim 9, and the graph no input 'user_features' (inputs: none)",
        ),
    ],
    ids=["another size", "no such input", "no input at all"],
)
def test_inputs_that_model_meta_contradicts_are_rejected(tmp_path: Path, model: onnx.ModelProto, said: str) -> None:
    assert rejected(tmp_path, model, user_feature_dim=9) == said


def test_an_input_of_open_size_is_tried_with_the_size_that_model_meta_has(tmp_path: Path) -> None:
    model = towers(user=None, item=None)
    run(tmp_path, model, user_feature_dim=3, item_feature_dim=4)
    said = rejected(tmp_path, model, user_feature_dim=3, item_feature_dim=5)
    assert said.startswith("a trial inference on made input failed: ")


def test_an_embedding_of_another_size_is_rejected(tmp_path: Path) -> None:
    said = rejected(tmp_path, towers(embedding=2), embedding_dim=256)
    assert said == "model_meta.json has embedding_dim 256, and the graph gives 'user_embedding' [?, 2]"


@pytest.mark.parametrize("name", ["user_features_raw", "features", "USER_FEATURES"])
def test_inputs_are_known_by_their_exact_names_alone(tmp_path: Path, name: str) -> None:
    run(tmp_path, one("Identity", named=name), user_feature_dim=9, embedding_dim=9)


def test_an_embedding_is_measured_where_the_graph_leaves_its_size_open(tmp_path: Path) -> None:
    model = towers()
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_param = "size"
    run(tmp_path, model, embedding_dim=2)
    said = rejected(tmp_path, model, embedding_dim=256)
    assert said == "model_meta.json has embedding_dim 256, and output 'user_embedding' has shape [2, 2]"


# --- the trial --------------------------------------------------------------------------------------------------------


def test_a_model_that_gives_nan_is_rejected(tmp_path: Path) -> None:
    minus = numpy_helper.from_array(np.array(-2, np.float32), "minus")
    nodes = [helper.make_node("Add", ["x", "minus"], ["z"]), helper.make_node("Sqrt", ["z"], ["y"])]
    model = graph(nodes, [value("x", ["batch", 3])], [value("y", ["batch", 3])], weights=[minus])
    assert rejected(tmp_path, model) == (
        "output 'y' has NaN or infinity in it, on every input that was tried "
        "(numbers between 0 and 1; numbers 1; numbers between -1 and 1)"
    )


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_rejected(tmp_path: Path, number: float) -> None:
    weights = numpy_helper.from_array(np.array([1, number, 1], np.float32), "w")
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"])]
    model = graph(nodes, [value("x", ["batch", 3])], [value("y", ["batch", 3])], weights=[weights])
    assert "NaN or infinity" in rejected(tmp_path, model)


def test_an_output_of_another_shape_than_declared_passes_with_a_note(tmp_path: Path) -> None:
    sizes = numpy_helper.from_array(np.array([-1], np.int64), "sizes")
    node = helper.make_node("Reshape", ["x", "sizes"], ["y"])
    model = graph([node], [value("x", ["batch", 3])], [value("y", ["batch"])], weights=[sizes])
    assert run(tmp_path, model) == ("output 'y' has shape [6], and the graph declares [2] for it",)


def test_a_graph_that_cannot_run_is_rejected(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.ones((1, 3), np.float32), "table")
    far = numpy_helper.from_array(np.array([7], np.int64), "far")
    nodes = [helper.make_node("Add", ["x", "far"], ["z"]), helper.make_node("Gather", ["table", "z"], ["y"])]
    model = graph(nodes, [value("x", ["b"], TensorProto.INT64)], [value("y", ["b", 3])], weights=[table, far])
    assert rejected(tmp_path, model).startswith("a trial inference on made input failed: ")


def test_an_operator_that_the_runtime_does_not_have_is_rejected(tmp_path: Path) -> None:
    model = one("Identity")
    model.graph.node[0].domain = "somewhere.else"
    model.opset_import.append(helper.make_opsetid("somewhere.else", 1))
    assert rejected(tmp_path, model).startswith("onnxruntime cannot open it: ")


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_a_graph_that_claims_huge_inputs_is_rejected(tmp_path: Path) -> None:
    said = rejected(tmp_path, one("Identity", shape=(10**6, 10**6)))
    assert said == ("input 'x' of shape [1000000, 1000000] is larger than 256000000 bytes, too large to be tried")


def test_a_graph_that_takes_more_memory_than_it_may_is_rejected(tmp_path: Path) -> None:
    sizes = numpy_helper.from_array(np.array([250_000_000], np.int64), "sizes")
    nodes = [helper.make_node("ConstantOfShape", ["sizes"], ["z"]), helper.make_node("ReduceSum", ["z"], ["y"])]
    model = graph(nodes, [], [value("y", [1])], weights=[sizes])
    small = Checks(timeout=timedelta(seconds=60), memory_bytes=500_000_000)
    assert "more memory than check_memory_bytes" in rejected(tmp_path, model, using=small)


def endless() -> onnx.ModelProto:
    """A loop of 2 ** 62 rounds."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["given"], ["made"])],
        "body",
        [value("round", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("given", [1000])],
        [value("on", [], TensorProto.BOOL), value("made", [1000])],
    )
    weights = [
        numpy_helper.from_array(np.array(2**62, np.int64), "rounds"),
        numpy_helper.from_array(np.array(True), "go_on"),
    ]
    node = helper.make_node("Loop", ["rounds", "go_on", "x"], ["y"], body=body)
    return graph([node], [value("x", [1000])], [value("y", [1000])], weights=weights)


def test_a_graph_that_never_ends_is_rejected_in_time(tmp_path: Path) -> None:
    hurried = Checks(timeout=timedelta(seconds=3), memory_bytes=2_000_000_000)
    said = rejected(tmp_path, endless(), using=hurried)
    assert said == "they took longer than 3 seconds (check_timeout in the settings)"


@pytest.mark.parametrize(("number", "interrupted"), [(signal.SIGKILL, True), (signal.SIGSEGV, False)])
def test_a_process_that_is_stopped_proves_nothing_and_one_that_crashes_does(
    tmp_path: Path, number: signal.Signals, interrupted: bool
) -> None:
    ended = threading.Event()

    def end_the_process() -> None:
        while not ended.wait(0.01):
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, number)
                return

    killer = threading.Thread(target=end_the_process)
    killer.start()
    try:
        with pytest.raises(CheckInterruptedError if interrupted else ModelRejectedError) as failed:
            run(tmp_path, endless())
    finally:
        ended.set()
        killer.join()
    assert failed.value.retryable is interrupted
    assert failed.value.rejects is not interrupted


# --- versions and other files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("opset", "ir_version", "said"), [(99, 8, "Opset 99"), (17, 99, "99")])
def test_a_model_of_versions_that_the_runtime_cannot_read_is_refused(
    tmp_path: Path, opset: int, ir_version: int, said: str
) -> None:
    with pytest.raises(ModelRejectedError) as refused:
        run(tmp_path, one("Identity", opset=opset, ir_version=ir_version))
    assert said in refused.value.problem


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x08\x12"])
def test_what_is_no_onnx_model_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelRejectedError, match=r"m\.onnx"):
        CHECKS.onnx(here(path), ModelMeta(model_name="m", run_id="r"))


class Payload:
    """An object that runs a command, which writes a file, when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self._path}",)


def test_a_malicious_state_dict_is_refused_and_never_run(tmp_path: Path) -> None:
    weights, proof = tmp_path / "m.pt", tmp_path / "proof"
    pickled = pickle.dumps({"weights": Payload(proof)})
    weights.write_bytes(torch_save(pickled))
    with pytest.raises(ModelRejectedError, match=r"m\.pt is not a safe PyTorch file: .*'posix\.system'"):
        CHECKS.state_dict(here(weights))
    dataclasses.replace(CHECKS, allowed_globals=("posix.system",)).state_dict(here(weights))
    assert not proof.exists()
    pickle.loads(pickled)
    assert proof.exists()


# --- a file in the project, of which only parts are read --------------------------------------------------------------


def tensors(path: Path, count: int, *, external: bool = False) -> ModelFile:
    """A model of some tensors of 400 kB."""
    weights = [numpy_helper.from_array(np.ones((100_000,), np.float32), f"w{number}") for number in range(count)]
    nodes = [helper.make_node("Add", ["x", tensor.name], [f"y{tensor.name}"]) for tensor in weights]
    model = graph(nodes, [value("x", [1])], [value("yw0", [100_000])], weights=weights)
    onnx.save(model, path / "m.onnx", save_as_external_data=external, location="weights", size_threshold=0)
    return here(path / "m.onnx")


@pytest.mark.parametrize(("count", "external"), [(1, False), (3, False), (3, True)])
def test_a_few_parts_of_a_model_show_its_whole_structure(tmp_path: Path, count: int, external: bool) -> None:
    file = tensors(tmp_path, count, external=external)
    assert CHECKS.structure_in_parts(file) == CHECKS.structure(file.local)


def test_the_structure_of_a_model_with_many_large_tensors_is_not_read_in_parts(tmp_path: Path) -> None:
    assert CHECKS.structure_in_parts(tensors(tmp_path, 20)) is None


def test_parts_of_a_file_that_is_no_model_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x0f" * 1_000_000)
    with pytest.raises(ModelRejectedError):
        CHECKS.structure_in_parts(here(tmp_path / "m.onnx"))
