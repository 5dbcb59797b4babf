"""Trainings with their artifacts in the same Supabase project as the releases."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from supabase_bridge.settings.model import Settings
from tests.support.scene import MLMODEL, Scene, supabase_environment
from tests.support.simulators.storage import StorageSimulator
from tests.support.torch_save import torch_save

ARTIFACTS = "artifacts"
DESTINATION = f"supabase://{ARTIFACTS}/mlflow"


def settings_in_project(settings: Settings, simulator: StorageSimulator, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with MLflow's artifacts in the project, also for the artifact repositories that MLflow makes."""
    for name, value in supabase_environment(simulator).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(settings.home))
    monkeypatch.setenv("SUPABASE_BRIDGE_ARTIFACT_BUCKETS", ARTIFACTS)
    return settings.with_changes(artifact_buckets=(ARTIFACTS,), artifacts_destination=DESTINATION)


def large_onnx(seed: int, *, rows: int = 600) -> bytes:
    """Return an ONNX model with one large tensor, 1.2 MB by default."""
    weights = np.random.default_rng(seed).standard_normal((rows, 512)).astype(np.float32)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width])
        for name, width in (("features", rows), ("embedding", 512))
    ]
    node = helper.make_node("MatMul", ["features", "weights"], ["embedding"])
    graph = helper.make_graph([node], "tower", ends[:1], ends[1:], [numpy_helper.from_array(weights, "weights")])
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    return data


def torch_archive(storage: bytes) -> bytes:
    """Return the file that torch.save writes for one tensor with these bytes; it imports nothing."""
    return torch_save(pickle.dumps({"weights": "0"}, protocol=2), [storage])


def large_files(seed: int = 1) -> dict[str, bytes]:
    """Return the files of a training, large enough for a copy."""
    return {
        "model/MLmodel": MLMODEL,
        "model/model.onnx": large_onnx(seed),
        "two_tower_latest.pt": torch_archive(np.random.default_rng(seed).bytes(1_500_000)),
    }


def train_in_project(scene: Scene, directory: Path, files: Mapping[str, bytes] | None = None, **arguments: Any) -> int:
    """Log a run through MLflow's client, its files to the project, and register its model; returns the version."""
    run_id = scene.log_run(files={}, running=True, **arguments)
    for path, data in (large_files(scene.trained) if files is None else files).items():
        local = directory / run_id / path
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(data)
    scene.client.log_artifacts(run_id, str(directory / run_id))
    ended = scene.client.get_run(run_id).info.start_time + 30_000
    scene.client.set_terminated(run_id, end_time=ended)
    return scene.register(run_id)
