"""Log a training of the demo to MLflow: parameters, metrics, datasets, state_dict and ONNX model."""

from __future__ import annotations

import inspect
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import onnx.reference
from mlflow.data.dataset import Dataset
from mlflow.data.dataset_source_registry import get_dataset_source_from_json
from mlflow.data.numpy_dataset import from_numpy
from mlflow.utils.logging_utils import MLFLOW_LOGGING_STREAM
from onnx import helper, numpy_helper

from supabase_bridge.demo.model import NORM_FLOOR, Evaluation, Floats, Hyperparameters, Interactions, Pairs, TwoTower


def named_weights(model: TwoTower) -> dict[str, Floats]:
    """Return the weights under the names of a torch module with two `Sequential` towers, as contiguous float32."""
    layers = ("0.weight", "0.bias", "2.weight", "2.bias")
    return {
        f"{name}.{layer}": np.ascontiguousarray(weight, dtype="<f4")
        for name, tower in model._asdict().items()
        for layer, weight in zip(layers, tower, strict=True)
    }


def to_onnx(model: TwoTower) -> onnx.ModelProto:
    """Return an ONNX model with the outputs `user_embedding` and `item_embedding`.

    The inputs `user_features` (batch_u rows) and `item_features` (batch_i rows) are float32 and both required; the two
    batches can differ in size.

    Raises:
        onnx.shape_inference.InferenceError: the shapes of a tower's weights do not match.
    """
    nodes: list[onnx.NodeProto] = []
    values: dict[str, onnx.ValueInfoProto] = {}
    for side, tower in (("user", model.user_tower), ("item", model.item_tower)):
        first, second = ([f"{side}_tower.{layer}.{kind}" for kind in ("weight", "bias")] for layer in (0, 2))
        for operator, inputs, output, attributes in (
            ("Gemm", [f"{side}_features", *first], "hidden", {"transB": 1}),
            ("Relu", [f"{side}_hidden"], "active", {}),
            ("Gemm", [f"{side}_active", *second], "output", {"transB": 1}),
            # These three are torch.nn.functional.normalize.
            ("ReduceL2", [f"{side}_output"], "length", {"axes": [1], "keepdims": 1}),
            ("Max", [f"{side}_length", "norm_floor"], "divisor", {}),
            ("Div", [f"{side}_output", f"{side}_divisor"], "embedding", {}),
        ):
            nodes.append(helper.make_node(operator, inputs, [f"{side}_{output}"], **attributes))
        for name, width in (("features", tower.hidden_weight.shape[1]), ("embedding", tower.output_weight.shape[0])):
            shape = [f"batch_{side[0]}", width]
            values[f"{side}_{name}"] = helper.make_tensor_value_info(f"{side}_{name}", onnx.TensorProto.FLOAT, shape)
    weights = {"norm_floor": np.float32(NORM_FLOOR), **named_weights(model)}
    graph = helper.make_graph(
        nodes,
        "two_tower",
        [values["user_features"], values["item_features"]],
        [values["user_embedding"], values["item_embedding"]],
        [numpy_helper.from_array(np.asarray(weight), name) for name, weight in weights.items()],
    )
    # IR version 8 came with opset 17, so every runtime that knows this opset reads the file.
    opset = helper.make_opsetid("", 17)
    proto = helper.make_model(graph, opset_imports=[opset], ir_version=8, producer_name="supabase-bridge demo")
    onnx.checker.check_model(proto, full_check=True)
    return proto


def max_difference(model: TwoTower, proto: onnx.ModelProto) -> float:
    """Return the largest absolute difference between the embeddings of the ONNX model and of the weights."""
    rng = np.random.default_rng(0)
    users = rng.random((16, model.user_tower.hidden_weight.shape[1]), dtype=np.float32)
    items = rng.random((17, model.item_tower.hidden_weight.shape[1]), dtype=np.float32)
    evaluator = onnx.reference.ReferenceEvaluator(proto)
    found = evaluator.run(["user_embedding", "item_embedding"], {"user_features": users, "item_features": items})
    expected = (model.user_tower.embed(users), model.item_tower.embed(items))
    return max(float(np.abs(left - right).max()) for left, right in zip(found, expected, strict=True))


def write_state_dict(path: Path, model: TwoTower) -> None:
    """Write a state_dict of float32 tensors that `torch.load(path, weights_only=True)` reads, without PyTorch.

    The file is replaced atomically, and equal weights give equal bytes.
    """
    no_hooks = b"ccollections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
    tensors, records = b"", {"data.pkl": b"", "byteorder": b"little"}  # the pickle first, as torch.save does
    for key, (name, array) in enumerate(named_weights(model).items()):
        strides = tuple(step // array.itemsize for step in array.strides)
        storage = _call_arguments("storage", b"ctorch\nFloatStorage\n", str(key), "cpu", array.size) + pickle.BINPERSID
        arguments = _call_arguments(storage, 0, array.shape, strides, False, no_hooks)
        tensors += _opcodes(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + pickle.REDUCE
        records[f"data/{key}"] = array.tobytes()
    records["version"] = b"3\n"
    records["data.pkl"] = pickle.PROTO + b"\x02" + no_hooks + pickle.MARK + tensors + pickle.SETITEMS + pickle.STOP
    part = path.with_name(f".{path.name}.part")
    with zipfile.ZipFile(part, "w") as archive:
        for name, content in records.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)  # its time is 1980, not the clock's
    part.replace(path)


def _call_arguments(*arguments: Any) -> bytes:
    """Pickle a tuple of which some elements are opcodes already."""
    return pickle.MARK + b"".join(map(_opcodes, arguments)) + pickle.TUPLE


def _opcodes(value: Any) -> bytes:
    """Pickle one value, without the frame of a whole pickle; bytes are opcodes already."""
    return value if isinstance(value, bytes) else pickle.dumps(value, protocol=2)[2:-1]


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

    MLflow's messages on stdout and stderr are dropped; errors are raised.

    Args:
        trained_at: When the training ended, with a time zone.
        directory: An existing directory for the files to be logged. The CSV files of the datasets stay there.
        registered_model_name: The registered model, created if it is missing.
        experiment: The experiment's name, created if it is missing.

    Returns:
        The number of the new model version.

    Raises:
        mlflow.exceptions.MlflowException: MLflow is unavailable or refuses a call; the run is then marked as failed.
    """
    state_dict = directory / "two_tower_latest.pt"
    write_state_dict(state_dict, model)
    users, items = interactions.user_features[:1], interactions.item_features[:1]
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
                signature=mlflow.models.infer_signature(
                    {"user_features": users, "item_features": items},
                    {"user_embedding": model.user_tower.embed(users), "item_embedding": model.item_tower.embed(items)},
                ),
                onnx_execution_providers=["CPUExecutionProvider"],
                # To infer the requirements, MLflow would load the model in a new process.
                pip_requirements=["mlflow", "onnx", "onnxruntime"],
                **_naming_arguments(),
            )
    return str(logged.registered_model_version)


def _params(interactions: Interactions, hyperparameters: Hyperparameters, trained_at: datetime) -> dict[str, Any]:
    tags, item_features = interactions.user_features.shape[1], interactions.item_features.shape[1]
    return asdict(hyperparameters) | {
        "format": "two_tower.feature_mlp",
        "trained_at": trained_at.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "input_schema_version": 1,
        "user_feature_dim": tags,
        "item_feature_dim": item_features,
        "tag_vocab_size": tags,
        "performer_vocab_size": item_features - tags - 1,  # the last one is the price
        "preferred_tag_vocab_size": tags,
    }


def _description(interactions: Interactions, hyperparameters: Hyperparameters) -> str:
    return (
        f"Trained for {hyperparameters.epochs} epochs on {len(interactions.train):,} generated interactions of "
        f"{len(interactions.user_features):,} users with {len(interactions.item_features):,} items; price feature "
        f"{'on' if hyperparameters.use_price_feature else 'off'}."
    )


def _dataset(path: Path, pairs: Pairs) -> Dataset:
    """Write the pairs to `path` as CSV and return them as a dataset with this source."""
    np.savetxt(path, pairs, fmt="%d", delimiter=",", header="user,item", comments="")
    # With its type, because MLflow warns when it guesses the type of a plain path.
    source = get_dataset_source_from_json(json.dumps({"uri": str(path)}), "local")
    return from_numpy(pairs, source=source, name=path.stem)


def _naming_arguments() -> dict[str, Any]:
    """Name the logged model with the argument of the installed MLflow: 3 warns about `artifact_path`, 2 requires it."""
    known = inspect.signature(mlflow.onnx.log_model).parameters
    arguments: dict[str, Any] = {"name" if "name" in known else "artifact_path": "two_tower"}
    if "save_as_external_data" in known:
        arguments["save_as_external_data"] = False  # a release is a single .onnx file
    return arguments


@contextmanager
def _silent_mlflow() -> Iterator[None]:
    """Drop MLflow's log records, and the run's URL that it prints on stdout, for the length of a block."""
    with warnings.catch_warnings():
        # MLflow warns about its own type hints while this module loads; later warnings are not suppressed.
        warnings.simplefilter("ignore")
        import_module("mlflow.pyfunc")
    enabled = MLFLOW_LOGGING_STREAM.enabled
    MLFLOW_LOGGING_STREAM.enabled = False
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        MLFLOW_LOGGING_STREAM.enabled = enabled
