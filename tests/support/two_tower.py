"""The two-tower example in tests: its scripts, data of its form, and small towers at its widths."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support.embedding_sets import WIDTH

EXAMPLE = Path(__file__).parents[2] / "examples" / "two_tower"
USER_WIDTH = 4099

Scripts: TypeAlias = "Callable[[str], Any]"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Scripts:
    """Imports a script of the example as its neighbours do."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return importlib.import_module


def raw_data(directory: Path) -> Path:
    """Data of the form of MovieLens: six users rate ten films, one at each second."""
    raw = directory / "ml" / "data" / "raw"
    raw.mkdir(parents=True)
    films = range(1, 11)
    rows = [f"{1 + second % 6}\t{1 + second % 10}\t{1 + second % 5}\t{second}" for second in range(30)]
    (raw / "ml-100k.inter").write_text("\n".join(["user\titem\trating\ttime", *rows]) + "\n")
    items = [f"{film}\tFilm {film}\t1990\tDrama{' Comedy' if film % 2 else ''}" for film in films]
    (raw / "ml-100k.item").write_text("\n".join(["item\ttitle\tyear\tgenres", *items]) + "\n")
    (raw / "ml-100k.link").write_text("\n".join(["item\tfilm", *(f"{film}\tm.{film}" for film in films)]) + "\n")
    edges = [f"m.{film}\tfilm.film.{relation}\tm.x{film % 3}" for film in films for relation in ("actor", "subjects")]
    (raw / "ml-100k.kg").write_text("\n".join(["head\trelation\ttail", *edges]) + "\n")
    return raw


def user_tower(seed: int, *, hidden: int = 4, width: int = WIDTH) -> bytes:
    """A user tower (Linear, ReLU, Linear, L2) with random weights, as ONNX."""
    random = np.random.default_rng(seed)
    shapes = {"w1": (USER_WIDTH, hidden), "b1": (hidden,), "w2": (hidden, width), "b2": (width,)}
    values = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Gemm", ["user_features", "w1", "b1"], ["first"]),
        helper.make_node("Relu", ["first"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "w2", "b2"], ["second"]),
        helper.make_node("LpNormalization", ["second"], ["user_embedding"], axis=1, p=2),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["users", size])
        for name, size in (("user_features", USER_WIDTH), ("user_embedding", width))
    ]
    graph = helper.make_graph(nodes, "user_tower", ends[:1], ends[1:], values)
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())
