"""The demonstration's ONNX graph against the model it was written from."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest

from supabase_bridge.demo.model import Tower, TwoTower
from supabase_bridge.demo.training import max_difference, to_onnx


def tower(rng: np.random.Generator, inputs: int) -> Tower:
    return Tower(
        hidden_weight=rng.normal(size=(10, inputs)).astype(np.float32),
        hidden_bias=rng.normal(size=10).astype(np.float32),
        output_weight=rng.normal(size=(4, 10)).astype(np.float32),
        output_bias=rng.normal(size=4).astype(np.float32),
    )


def model(seed: int = 0) -> TwoTower:
    rng = np.random.default_rng(seed)
    return TwoTower(user_tower=tower(rng, 5), item_tower=tower(rng, 8))


def shapes(values: list[onnx.ValueInfoProto]) -> dict[str, list[str | int]]:
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values
    }


def test_the_graph_takes_both_feature_batches_and_gives_both_embedding_batches() -> None:
    graph = to_onnx(model()).graph
    assert shapes(list(graph.input)) == {"user_features": ["batch_u", 5], "item_features": ["batch_i", 8]}
    assert shapes(list(graph.output)) == {"user_embedding": ["batch_u", 4], "item_embedding": ["batch_i", 4]}
    floats = {value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}
    assert floats == {onnx.TensorProto.FLOAT}


def test_the_file_declares_versions_that_older_runtimes_read() -> None:
    proto = to_onnx(model())
    assert proto.ir_version == 8
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 17)]


def test_the_graph_passes_the_full_check() -> None:
    onnx.checker.check_model(to_onnx(model()).SerializeToString(), full_check=True)


def test_the_graph_computes_what_the_model_computes() -> None:
    assert max_difference(model(), to_onnx(model())) < 1e-5


def test_onnxruntime_computes_what_the_model_computes() -> None:
    rng = np.random.default_rng(5)
    users, items = rng.random((3, 5), dtype=np.float32), rng.random((4, 8), dtype=np.float32)
    session = onnxruntime.InferenceSession(to_onnx(model()).SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(["user_embedding", "item_embedding"], {"user_features": users, "item_features": items})
    assert np.allclose(found[0], model().user_tower.embed(users), atol=1e-5)
    assert np.allclose(found[1], model().item_tower.embed(items), atol=1e-5)


def test_the_graph_of_other_weights_differs() -> None:
    assert max_difference(model(), to_onnx(model(seed=1))) > 0.1


def test_the_two_batches_may_differ_in_size() -> None:
    users, items = np.ones((1, 5), dtype=np.float32), np.ones((30, 8), dtype=np.float32)
    evaluator = onnx.reference.ReferenceEvaluator(to_onnx(model()))
    embeddings = evaluator.run(None, {"user_features": users, "item_features": items})
    assert [np.shape(embedding) for embedding in embeddings] == [(1, 4), (30, 4)]


def test_an_output_of_length_zero_stays_zero() -> None:
    nothing = TwoTower(*(whole._replace(output_weight=np.zeros((4, 10)), output_bias=np.zeros(4)) for whole in model()))
    assert max_difference(nothing, to_onnx(nothing)) == 0.0


def test_the_same_weights_give_the_same_bytes() -> None:
    assert to_onnx(model()).SerializeToString() == to_onnx(model()).SerializeToString()


def test_weights_that_do_not_fit_together_are_refused() -> None:
    broken = model()._replace(user_tower=model().user_tower._replace(output_weight=np.zeros((4, 11))))
    with pytest.raises(onnx.shape_inference.InferenceError, match="Gemm"):
        to_onnx(broken)
