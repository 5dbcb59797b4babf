"""A training logged to MLflow the way a data scientist logs one, up to the registered version."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.data.dataset import Dataset
from mlflow.data.dataset_source_registry import get_dataset_source_from_json
from mlflow.data.meta_dataset import MetaDataset
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils.logging_utils import MLFLOW_LOGGING_STREAM

from supabase_bridge.demo.interactions import Interactions, Pairs
from supabase_bridge.demo.onnx_export import to_onnx
from supabase_bridge.demo.state_dict import write_state_dict
from supabase_bridge.demo.two_tower import Evaluation, Hyperparameters, TwoTower

STATE_DICT_NAME = "two_tower_latest.pt"
_MODEL_NAME = "two_tower"  # of the logged model within its run


def log_training(
    model: TwoTower,
    evaluation: Evaluation,
    hyperparameters: Hyperparameters,
    *,
    interactions: Interactions,
    trained_at: datetime,
    directory: Path,
    registered_model_name: str,
    experiment: str,
) -> str:
    """Log one finished run to MLflow's current tracking server and register its model.

    What MLflow says meanwhile on stdout and stderr is dropped, since only the command reports; errors are raised.

    Args:
        model: the trained weights.
        evaluation: what the validation split said of them.
        hyperparameters: what they were trained with.
        interactions: what they were trained on.
        trained_at: when the training ended, with a time zone.
        directory: an existing directory for the files to be logged; the interactions stay there as CSV, and the run
            names them as its datasets.
        registered_model_name: the registered model, created if there is none.
        experiment: the experiment's name, created if there is none.

    Returns:
        The number of the new model version.

    Raises:
        mlflow.exceptions.MlflowException: MLflow cannot be reached or refuses something; the run is then marked failed.
    """
    state_dict = directory / STATE_DICT_NAME
    write_state_dict(state_dict, model)
    with _silent_mlflow():
        mlflow.set_experiment(experiment)
        with mlflow.start_run(run_name="train_two_tower", description=_description(interactions, hyperparameters)):
            mlflow.log_params(_params(interactions, hyperparameters, trained_at))
            mlflow.log_metrics(asdict(evaluation))
            mlflow.log_input(_dataset(directory / "interactions_train.csv", interactions.train), "training")
            mlflow.log_input(_dataset(directory / "interactions_val.csv", interactions.validation), "validation")
            mlflow.log_artifact(str(state_dict))
            logged = mlflow.onnx.log_model(
                to_onnx(model),
                registered_model_name=registered_model_name,
                signature=_signature(model),
                onnx_execution_providers=["CPUExecutionProvider"],
                # Given, because to infer them MLflow would load the model in a new process.
                pip_requirements=["mlflow", "onnx", "onnxruntime"],
                **_naming_arguments(),
            )
    return str(logged.registered_model_version)


def _params(interactions: Interactions, hyperparameters: Hyperparameters, trained_at: datetime) -> dict[str, Any]:
    return asdict(hyperparameters) | {
        "format": "two_tower.feature_mlp",
        "trained_at": trained_at.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "input_schema_version": 1,
        "user_feature_dim": interactions.user_feature_dim,
        "item_feature_dim": interactions.item_feature_dim,
        "tag_vocab_size": interactions.tag_vocab_size,
        "performer_vocab_size": interactions.performer_vocab_size,
        "preferred_tag_vocab_size": interactions.user_feature_dim,
    }


def _description(interactions: Interactions, hyperparameters: Hyperparameters) -> str:
    return (
        f"Trained for {hyperparameters.epochs} epochs on {len(interactions.train):,} generated interactions of "
        f"{len(interactions.user_features):,} users with {len(interactions.item_features):,} items; price feature "
        f"{'on' if hyperparameters.use_price_feature else 'off'}."
    )


def _dataset(path: Path, pairs: Pairs) -> Dataset:
    """Write the pairs to `path` as CSV and describe that file by its digest."""
    np.savetxt(path, pairs, fmt="%d", delimiter=",", header="user,item", comments="")
    return MetaDataset(  # type: ignore[abstract]  # MLflow declares `profile` abstract, yet means this class to be used
        # By its type, because MLflow warns while it guesses what a bare path stands for.
        get_dataset_source_from_json(json.dumps({"uri": str(path)}), "local"),
        name=path.stem,
        digest=hashlib.sha256(path.read_bytes()).hexdigest()[:32],  # MLflow takes 36 characters at most
    )


def _signature(model: TwoTower) -> ModelSignature:
    users, items = model.user_tower, model.item_tower
    return ModelSignature(
        inputs=Schema(
            [_rows("user_features", users.hidden_weight.shape[1]), _rows("item_features", items.hidden_weight.shape[1])]
        ),
        outputs=Schema(
            [_rows("user_embedding", len(users.output_bias)), _rows("item_embedding", len(items.output_bias))]
        ),
    )


def _rows(name: str, length: int) -> TensorSpec:
    return TensorSpec(np.dtype(np.float32), (-1, length), name)


def _naming_arguments() -> dict[str, Any]:
    """Name the logged model as this MLflow wants it: 3 warns of `artifact_path`, 2 has nothing else."""
    known = inspect.signature(mlflow.onnx.log_model).parameters
    arguments: dict[str, Any] = {"name" if "name" in known else "artifact_path": _MODEL_NAME}
    if "save_as_external_data" in known:
        arguments["save_as_external_data"] = False  # a release is a single .onnx file
    return arguments


@contextmanager
def _silent_mlflow() -> Iterator[None]:
    """Drop MLflow's log lines and the run's address that it writes to stdout, for as long as the block runs."""
    with warnings.catch_warnings():
        # MLflow's own type hints make it warn while this loads, which log_model would do; later warnings are ours.
        warnings.simplefilter("ignore")
        import_module("mlflow.pyfunc")
    enabled = MLFLOW_LOGGING_STREAM.enabled
    MLFLOW_LOGGING_STREAM.enabled = False
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        MLFLOW_LOGGING_STREAM.enabled = enabled
