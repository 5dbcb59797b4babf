"""Two versions of a model, logged to MLflow, promoted and released as by users. Run as a program:

    python -m tests.support.two_releases HOME

The graph has an input and an output for each tower; version N doubles the user's features and adds N to the item's.
Version 1 is in Production and has a signature; version 2 is in Staging and has none, and its weights lie beside it.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import mlflow
import numpy as np
import onnx
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from onnx import TensorProto, helper, numpy_helper

from supabase_bridge.app.runtime import open_runtime
from supabase_bridge.demo.run import prepare
from supabase_bridge.settings.model import Settings

MODEL = "two_tower"
WIDTH = 32


def graph(version: int) -> onnx.ModelProto:
    """Return the graph of one version."""
    double = numpy_helper.from_array(2 * np.eye(WIDTH, dtype=np.float32), "double")
    added = numpy_helper.from_array(np.full((1, WIDTH), version, dtype=np.float32), "added")

    def rows(name: str, count: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [count, WIDTH])

    made = helper.make_graph(
        [
            helper.make_node("MatMul", ["user_features", "double"], ["user_embedding"]),
            helper.make_node("Add", ["item_features", "added"], ["item_embedding"]),
        ],
        "two_tower",
        [rows("user_features", "users"), rows("item_features", "items")],
        [rows("user_embedding", "users"), rows("item_embedding", "items")],
        [double, added],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def log_version(version: int, signature: ModelSignature | None) -> None:
    with mlflow.start_run():
        # MLflow 3 wants a name, MLflow 2 knows none.
        named = {"name" if mlflow.__version__ >= "3" else "artifact_path": MODEL}
        mlflow.onnx.log_model(
            graph(version),
            registered_model_name=MODEL,
            signature=signature,
            pip_requirements=["mlflow", "onnx", "onnxruntime"],
            save_as_external_data=version > 1,
            **named,
        )


def main(home: Path) -> dict[str, str]:
    """Return the run_ids by version."""
    settings = Settings.load(home=home)
    prepare(settings)
    mlflow.set_experiment("supabase-bridge demo")
    inputs: list[TensorSpec] = [
        TensorSpec(np.dtype(np.float32), (-1, WIDTH), name) for name in ("user_features", "item_features")
    ]
    log_version(1, ModelSignature(inputs=Schema([*inputs])))
    log_version(2, None)
    with open_runtime(settings) as made:
        made.registry.promote(MODEL, 1, "Production")
        made.registry.promote(MODEL, 2, "Staging")
        made.worker().drain()
        return {str(number): made.registry.version(MODEL, number).tags["supabase.run_id"] for number in (1, 2)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    found = main(Path(sys.argv[1]))
    sys.stdout.write(json.dumps(found) + "\n")
