"""An ONNX file is held against the declared consumers of its model before anything is uploaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from supabase_bridge.core.consumers import parse_consumers
from supabase_bridge.mirror.checks.consumers import check_consumers, read_facts
from supabase_bridge.mirror.errors import Fault, ModelRejectedError

EDGE = parse_consumers({"consumers": ["edge"]})


def saved(directory: Path, *, ir: int = 8, opset: int = 17, custom: bool = False) -> Path:
    """A model with a branch and a function of its own; `custom`: with an operator of an extension in the branch."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    inner = helper.make_node("Tokenize" if custom else "Identity", ["x"], ["y"], domain="ai.onnx.contrib" * custom)
    branches = {name: helper.make_graph([inner], name, [], [ends[1]]) for name in ("then_branch", "else_branch")}
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True])),
        helper.make_node("If", ["yes"], ["z"], **branches),
        helper.make_node("Same", ["z"], ["y"], domain="own"),
    ]
    imports = [helper.make_opsetid(domain, version) for domain, version in (("", opset), ("own", 1))]
    same = helper.make_function("own", "Same", ["a"], ["b"], [helper.make_node("Identity", ["a"], ["b"])], imports[:1])
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=imports, functions=[same], ir_version=ir)
    path = directory / f"model-{ir}-{opset}.onnx"
    onnx.save(model, path)
    return path


def test_the_facts_of_a_file_are_its_versions_and_the_operators_it_does_not_define(tmp_path: Path) -> None:
    path = saved(tmp_path, ir=9, opset=19, custom=True)
    found = read_facts(path, opened=path)
    assert (found.ir, dict(found.opsets)) == (9, {"ai.onnx": 19, "own": 1})
    assert set(found.operators) == {
        *(("ai.onnx", name) for name in ("Constant", "If", "Identity")),
        ("ai.onnx.contrib", "Tokenize"),
    }
    assert found.size_bytes == path.stat().st_size


def test_a_file_that_the_consumers_cannot_load_is_rejected_or_noted(tmp_path: Path) -> None:
    assert check_consumers(saved(tmp_path), EDGE, {}) == []
    newer = saved(tmp_path, ir=13, opset=25)
    with pytest.raises(ModelRejectedError, match="cannot be loaded by its consumers: it has IR version 13") as caught:
        check_consumers(newer, EDGE, {})
    assert caught.value.fault is Fault.UNLOADABLE
    (note,) = check_consumers(newer, dataclasses.replace(EDGE, warns=True), {})
    assert "its declared consumers cannot load it: it has IR version 13" in note


def test_the_user_tower_is_what_the_memory_is_for_where_a_release_has_it(tmp_path: Path) -> None:
    whole, tower = saved(tmp_path), saved(tmp_path, opset=18)
    with whole.open("ab") as file:
        file.write(onnx.ModelProto(doc_string="x" * 2_000).SerializeToString())
    small = parse_consumers({"memory_bytes": 3 * tower.stat().st_size})
    assert check_consumers(whole, small, {"user": tower}) == []
    for towers in ({}, {"item": tower}):
        with pytest.raises(ModelRejectedError, match=r"supabase\.towers to user"):
            check_consumers(whole, small, towers)


def test_the_table_agrees_with_the_installed_runtime(tmp_path: Path) -> None:
    version = ".".join(onnxruntime.__version__.split(".")[:2])
    consumers = parse_consumers({"onnxruntime": version})

    def loads(path: Path) -> bool:
        try:
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception:  # noqa: BLE001 - the runtime has errors of many types, and any of them is a refusal
            return False
        return True

    def accepted(path: Path) -> bool:
        return consumers.problem(read_facts(path, opened=path)) is None

    files = [saved(tmp_path, ir=ir) for ir in range(8, onnx.IR_VERSION + 1)]
    files += [saved(tmp_path, opset=opset) for opset in range(17, onnx.defs.onnx_opset_version() + 1)]
    assert [path.name for path in files if accepted(path) and not loads(path)] == []
