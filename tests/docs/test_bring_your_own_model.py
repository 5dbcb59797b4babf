"""The page about other kinds of models: its snippets give an ONNX model that becomes a release."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.support.machine import need_torch
from tests.support.scene import MLMODEL, Scene

pytestmark = pytest.mark.mlflow

_PAGE = (Path(__file__).parents[2] / "docs" / "bring-your-own-model.md").read_text()
SNIPPETS = dict(re.findall(r"^## (scikit-learn|PyTorch|LightGBM)\n.*?^```python\n(.*?)^```", _PAGE, re.M | re.S))


@pytest.mark.parametrize("name", ["scikit-learn", "LightGBM", "PyTorch"])
@pytest.mark.exhaustive
def test_a_model_that_a_snippet_converts_becomes_a_release(directory_scene: Scene, name: str) -> None:
    if name == "PyTorch":
        need_torch()
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(SNIPPETS[name], f"<{name}>", "exec"), found)  # noqa: S102 - our own page
    onnx = found["onnx_model"].SerializeToString()
    version = directory_scene.train(files={"model/MLmodel": MLMODEL, "model/model.onnx": onnx})
    directory_scene.promote(version)
    directory_scene.work()
    assert directory_scene.tags(version).get("error") is None
    assert directory_scene.current() == version
