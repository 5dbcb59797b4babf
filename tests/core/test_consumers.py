"""What the declared consumers of a model can load, and what a refusal advises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from supabase_bridge.core.consumers import ANY_CONSUMER, OnnxFacts, parse_consumers

EDGE = parse_consumers({"consumers": ["edge"]})


def facts(*, ir: int = 8, opset: int = 17, ml: int | None = None, **more: Any) -> OnnxFacts:
    opsets = {"ai.onnx": opset, **({} if ml is None else {"ai.onnx.ml": ml})}
    return OnnxFacts(ir=ir, opsets=opsets, **more)


@pytest.mark.parametrize(
    ("table", "found", "expected"),
    [
        ({"consumers": ["edge"]}, facts(ir=10, opset=21, ml=5), None),
        ({"consumers": ["edge"]}, facts(ir=11), "IR version 11, and ONNX Runtime 1.20 reads 10 at most"),
        ({"consumers": ["edge"]}, facts(ir=11), "model.ir_version = 10"),
        ({"consumers": ["edge"]}, facts(opset=22), "opset_version=21 (torch.onnx.export)"),
        ({"consumers": ["edge"]}, facts(opset=22), "target_opset={'': 21, 'ai.onnx.ml': 5} (skl2onnx"),
        ({"onnxruntime": "1.18"}, facts(ml=5), "the opset ai.onnx 17 and ai.onnx.ml 5"),
        ({"onnxruntime": "1.20.3"}, facts(ir=10, opset=21), None),
        ({"onnxruntime": "1.22"}, facts(ir=10, opset=23), "ONNX Runtime 1.22 reads 22"),
        ({"onnxruntime": "1.23"}, facts(ir=11, opset=23), None),
        ({"onnxruntime": "1.30"}, facts(ir=13, opset=26), None),
        ({"onnxruntime": "1.31"}, facts(ir=14, opset=28), "ONNX Runtime 1.31 reads 13 at most"),
        ({"onnxruntime": "2.0"}, facts(ir=14, opset=28), None),
        ({"consumers": ["edge"], "onnxruntime": "1.32"}, facts(ir=14), "ONNX Runtime 1.20"),
        ({"consumers": ["edge"], "onnxruntime": "1.16"}, facts(ir=10), "ONNX Runtime 1.16"),
        ({"consumers": ["edge"]}, facts(operators=[("ai.onnx", "MatMul"), ("com.microsoft", "Gelu")]), None),
        ({"consumers": ["edge"]}, facts(operators=[("ai.onnx.contrib", "GPT2Tokenizer")]), "contrib::GPT2Tokenizer"),
        ({"consumers": ["edge"]}, facts(size_bytes=85_000_000), None),
        ({"consumers": ["edge"]}, facts(size_bytes=90_000_000), "takes about 270000000 bytes of memory"),
        ({"consumers": ["edge"]}, facts(size_bytes=90_000_000), "supabase.towers to user"),
        ({"memory_bytes": 1_000}, facts(ir=14, size_bytes=400), "a consumer has 1000"),
        ({}, facts(ir=99, opset=99, size_bytes=10**12), None),
    ],
)
def test_a_file_is_held_against_the_oldest_runtime_and_the_least_memory(
    table: Mapping[str, object], found: OnnxFacts, expected: str | None
) -> None:
    problem = parse_consumers(table).problem(found)
    assert (problem is None) == (expected is None)
    assert expected is None or expected in str(problem)


def test_all_problems_are_named_at_once() -> None:
    problem = str(EDGE.problem(facts(ir=14, opset=28, operators=[("x", "Y")], size_bytes=10**9)))
    assert [word in problem for word in ("IR version", "opset", "x::Y", "memory")] == [True] * 4


def test_a_model_without_a_table_has_no_limits() -> None:
    assert parse_consumers({}) == ANY_CONSUMER


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"consumer": ["edge"]}, "consumer: no such setting of a model; there are consumers, onnxruntime"),
        ({"consumers": "edge"}, "expected a list of 'edge'"),
        ({"consumers": ["cloud"]}, "expected a list of 'edge'"),
        ({"onnxruntime": 1.2}, "expected a version such as '1.20'"),
        ({"onnxruntime": "1.15"}, "1.16 at least"),
        ({"onnxruntime": "new"}, "expected a version"),
        ({"onnxruntime": "1." + "9" * 5_000}, "expected a version"),
        ({"memory_bytes": 0}, "a whole number of bytes"),
        ({"memory_bytes": True}, "a whole number of bytes"),
        ({"unloadable": "ignore"}, "expected 'refuse' or 'warn'"),
    ],
)
def test_a_malformed_table_is_refused(table: Mapping[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace("(", r"\(")):
        parse_consumers(table)
