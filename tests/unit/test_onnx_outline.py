"""The outline of a model: the checker says of it what it says of the whole, and the weights are hardly read."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from supabase_bridge.errors import InvalidModelFileError
from supabase_bridge.onnx_file import Outline, check, outline, tensors

ROWS = 700
LARGE = 1_000


class Watched(io.BytesIO):
    """A file that counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.read_bytes += len(found)
        return found


def model(dtype: type[np.generic] = np.float32) -> onnx.ModelProto:
    """Weights of three sizes, a shape that inference looks into, and an input."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [None, ROWS]), ("y", [10, None]))
    ]
    nodes = [
        helper.make_node("Cast", ["weights"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "cast"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Reshape", ["sum", "shape"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.ones((ROWS, 40), dtype), "weights"),
        numpy_helper.from_array(np.ones(40, np.float32), "bias"),
        numpy_helper.from_array(np.array([10, -1]), "shape"),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def outlined(data: bytes, directory: Path) -> Outline:
    return outline(io.BytesIO(data), len(data), directory, large_bytes=LARGE)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int64, np.int8, np.uint8, np.uint32])
def test_an_outline_is_the_model_but_for_its_large_weights(tmp_path: Path, dtype: type[np.generic]) -> None:
    whole = model(dtype)
    file = Watched(whole.SerializeToString())
    size = len(file.getvalue())
    made = outline(file, size, tmp_path, large_bytes=LARGE)
    assert made.external_files == ()
    check(made.path)
    (tmp_path / "whole.onnx").write_bytes(file.getvalue())
    assert tensors(made.path) == tensors(tmp_path / "whole.onnx")
    if dtype is not np.uint32:  # A type of which nothing is known is kept as it is.
        assert file.read_bytes < size / 5
    found = onnx.load(made.path, load_external_data=False)
    del found.graph.initializer[:], whole.graph.initializer[:]
    assert found == whole


BROKEN: list[tuple[str, Callable[[onnx.ModelProto], object]]] = [
    ("an operator that there is none of", lambda proto: setattr(proto.graph.node[0], "op_type", "NoSuch")),
    ("an input that nothing gives", lambda proto: proto.graph.node[1].input.__setitem__(0, "nobody")),
    ("shapes that do not fit", lambda proto: proto.graph.initializer[0].dims.__setitem__(1, 41)),
    ("a tensor without a type", lambda proto: proto.graph.initializer[0].ClearField("data_type")),
    ("no graph", lambda proto: proto.ClearField("graph")),
    ("no operator set", lambda proto: proto.ClearField("opset_import")),
    ("weights that end early", lambda proto: setattr(proto.graph.initializer[0], "raw_data", bytes(LARGE * 2))),
]


@pytest.mark.parametrize(("name", "damage"), BROKEN)
def test_what_the_checker_refuses_it_refuses_by_its_outline(
    tmp_path: Path, name: str, damage: Callable[[onnx.ModelProto], object]
) -> None:
    proto = model()
    damage(proto)
    (tmp_path / "whole.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidModelFileError):
        check(tmp_path / "whole.onnx")
    with pytest.raises(InvalidModelFileError):
        check(outlined(proto.SerializeToString(), tmp_path).path)
    assert name


def test_weights_outside_the_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(model(), path, save_as_external_data=True, location="weights.bin", size_threshold=LARGE)
    assert outlined(path.read_bytes(), tmp_path).external_files == ("weights.bin",)


def test_a_file_larger_than_any_model_is_refused_unread(tmp_path: Path) -> None:
    file = Watched(b"")
    with pytest.raises(InvalidModelFileError, match="2 GiB"):
        outline(file, 2**31, tmp_path)
    assert file.read_bytes == 0


WHOLE = model().SerializeToString()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255), cut=st.booleans())
def test_whatever_is_damaged_has_an_outline_like_it_or_a_named_error(
    tmp_path: Path, place: int, value: int, cut: bool
) -> None:
    data = WHOLE[:place] if cut else WHOLE[:place] + bytes([value]) + WHOLE[place + 1 :]
    (tmp_path / "whole.onnx").write_bytes(data)
    try:
        check(tmp_path / "whole.onnx")
        passes = True
    except InvalidModelFileError:
        passes = False
    try:
        made = outlined(data, tmp_path)
        check(made.path)
        outline_passes = not made.external_files
    except InvalidModelFileError:
        outline_passes = False
    # It may be stricter, where weights are longer than their shape says; never more lenient.
    assert passes or not outline_passes
