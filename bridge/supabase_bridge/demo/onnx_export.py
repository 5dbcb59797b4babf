"""A trained two-tower model as one ONNX graph, with an input and an output for each tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from supabase_bridge.demo.interactions import Floats
from supabase_bridge.demo.two_tower import NORM_FLOOR, Tower, TwoTower

OPSET = 17
IR_VERSION = 8  # that of the ONNX release which brought opset 17, so every runtime with the opset reads the file
_FLOOR = "norm_floor"
_CHECKED_ROWS = 16


def to_onnx(model: TwoTower) -> onnx.ModelProto:
    """Return a graph whose outputs `user_embedding` and `item_embedding` are what the towers compute in numpy.

    The inputs are `user_features` (batch_u rows) and `item_features` (batch_i rows), all float32; both must be given,
    and either batch may have any number of rows.

    Raises:
        onnx.shape_inference.InferenceError: the weights of a tower do not fit together.
    """
    parts = [_tower_parts("user", "batch_u", model.user_tower), _tower_parts("item", "batch_i", model.item_tower)]
    graph = helper.make_graph(
        [node for part in parts for node in part.nodes],
        "two_tower",
        [part.features for part in parts],
        [part.embedding for part in parts],
        [
            numpy_helper.from_array(np.array(NORM_FLOOR, dtype=np.float32), _FLOOR),
            *(weight for part in parts for weight in part.weights),
        ],
    )
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="supabase-bridge demo",
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def max_difference(model: TwoTower, proto: onnx.ModelProto) -> float:
    """Return the largest absolute difference between the graph's embeddings and the model's own, on fixed input.

    onnxruntime computes the graph where it is installed, since that is what serves the file; the demonstration does
    not demand it, and otherwise the slower reference implementation in onnx does.
    """
    rng = np.random.default_rng(0)
    features = {
        "user_features": rng.random((_CHECKED_ROWS, model.user_tower.hidden_weight.shape[1]), dtype=np.float32),
        "item_features": rng.random((_CHECKED_ROWS + 1, model.item_tower.hidden_weight.shape[1]), dtype=np.float32),
    }
    user_embedding, item_embedding = _run(proto, features)
    return max(
        float(np.abs(user_embedding - model.user_tower.embed(features["user_features"])).max()),
        float(np.abs(item_embedding - model.item_tower.embed(features["item_features"])).max()),
    )


@dataclass(frozen=True, kw_only=True)
class _TowerParts:
    features: onnx.ValueInfoProto
    nodes: tuple[onnx.NodeProto, ...]
    weights: tuple[onnx.TensorProto, ...]
    embedding: onnx.ValueInfoProto


def _tower_parts(side: str, batch: str, tower: Tower) -> _TowerParts:
    """Write one tower in ONNX: Gemm, Relu, Gemm, then the division by the length that `F.normalize` does."""
    names = tuple(f"{side}_tower.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias"))
    hidden, active, output, length, divisor = (
        f"{side}_{name}" for name in ("hidden", "active", "output", "length", "divisor")
    )
    features, embedding = f"{side}_features", f"{side}_embedding"
    return _TowerParts(
        features=helper.make_tensor_value_info(features, TensorProto.FLOAT, [batch, tower.hidden_weight.shape[1]]),
        nodes=(
            helper.make_node("Gemm", [features, *names[:2]], [hidden], transB=1),
            helper.make_node("Relu", [hidden], [active]),
            helper.make_node("Gemm", [active, *names[2:]], [output], transB=1),
            helper.make_node("ReduceL2", [output], [length], axes=[1], keepdims=1),
            helper.make_node("Max", [length, _FLOOR], [divisor]),
            helper.make_node("Div", [output, divisor], [embedding]),
        ),
        weights=tuple(
            numpy_helper.from_array(np.ascontiguousarray(array, dtype=np.float32), name)
            for name, array in zip(names, tower.arrays(), strict=True)
        ),
        embedding=helper.make_tensor_value_info(embedding, TensorProto.FLOAT, [batch, tower.output_weight.shape[0]]),
    )


def _run(proto: onnx.ModelProto, features: Mapping[str, Floats]) -> tuple[Floats, Floats]:
    try:
        runtime = import_module("onnxruntime")
    except ImportError:
        evaluator = import_module("onnx.reference").ReferenceEvaluator(proto)
    else:
        evaluator = runtime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    user_embedding, item_embedding = evaluator.run(["user_embedding", "item_embedding"], dict(features))
    return user_embedding, item_embedding
