"""A release directory as an MLflow model: MLmodel and the environment files, made from the version's own."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
import yaml  # type: ignore[import-untyped]  # PyYAML, which MLflow reads MLmodel with, has no annotations
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from supabase_bridge.completion import TrainingFacts
from supabase_bridge.documents import LIMIT_BYTES
from supabase_bridge.errors import InvalidDocumentError
from supabase_bridge.layout import ENVIRONMENT_NAMES, MLMODEL_NAME, ReleaseKeys
from supabase_bridge.onnx_file import Tensor, Tensors

_CONDA, _PYTHON_ENV, _REQUIREMENTS = ENVIRONMENT_NAMES
_LOADER = "mlflow.onnx"
_NOT_IN_A_RELEASE = ("saved_input_example_info", "model_size_bytes", "model_id")
"""Fields of MLmodel that speak of files which a release does not have, or that make MLflow look for its server."""
_NUMERIC = frozenset("biuf")


def parse_mlmodel(data: bytes) -> dict[str, Any]:
    """Read an MLmodel file.

    Raises:
        InvalidDocumentError: it is no YAML, or nothing that MLflow could read.
    """
    try:
        value = yaml.safe_load(data)
        flavors = Model.from_dict(value).flavors
        if not isinstance(flavors, dict) or not all(isinstance(flavor, dict) for flavor in flavors.values()):
            raise InvalidDocumentError(MLMODEL_NAME, "flavors: expected a table of tables")
    except (MlflowException, yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidDocumentError(MLMODEL_NAME, str(error)[:300]) from error
    return dict(value)


def model_files(
    own: Mapping[str, Any],
    environment: Mapping[str, bytes],
    tensors: Tensors,
    *,
    keys: ReleaseKeys,
    facts: TrainingFacts,
) -> dict[str, bytes]:
    """The files that make the release of `keys` an MLflow model, by name; equal arguments give equal bytes.

    What the version's MLmodel says of its ONNX model is kept, the paths aside. Only the flavors `onnx` and
    `python_function` remain, loaded by MLflow's own loader: nothing of the training's code is in a release.

    Args:
        own: The version's MLmodel; empty where it has none.
        environment: The version's own environment files, by name.
        tensors: What the ONNX model takes and gives; its signature where the version has none.

    Raises:
        InvalidDocumentError: MLmodel would be larger than LIMIT_BYTES.
    """
    of_onnx = "onnx" in own.get("flavors", {})
    value = {name: own[name] for name in own if name not in _NOT_IN_A_RELEASE} if of_onnx else _made(keys, facts)
    value["flavors"] = _flavors(own.get("flavors", {}), keys.onnx_name) if of_onnx else _flavors({}, keys.onnx_name)
    if value.get("signature") is None and (signature := _signature(tensors)) is not None:
        value["signature"] = signature.to_dict()
    mlmodel = _yaml(value)
    if len(mlmodel) > LIMIT_BYTES:
        raise InvalidDocumentError(MLMODEL_NAME, f"larger than {LIMIT_BYTES} bytes")
    # The environment of another flavor (a torch model beside the ONNX file, say) may lack what runs ONNX.
    kept = environment if of_onnx or not own else {}
    requirements = kept.get(_REQUIREMENTS) or "".join(f"{line}\n" for line in _default_requirements()).encode()
    return {
        MLMODEL_NAME: mlmodel,
        _CONDA: kept.get(_CONDA) or _yaml(_conda_env(requirements)),
        _PYTHON_ENV: kept.get(_PYTHON_ENV) or _yaml(_python_env()),
        _REQUIREMENTS: requirements,
    }


def names_onnx_file(mlmodel: bytes, onnx_name: str) -> bool:
    """Whether an MLmodel file is that of the release with this ONNX file.

    Raises:
        InvalidDocumentError: see `parse_mlmodel`.
    """
    flavors = parse_mlmodel(mlmodel).get("flavors", {})
    return all(flavors.get(name, {}).get("data") == onnx_name for name in ("onnx", "python_function"))


def _flavors(own: Mapping[str, Any], onnx_name: str) -> dict[str, Any]:
    onnx = {name: value for name, value in own.get("onnx", {}).items() if name != "extra_files"}
    function = dict(own.get("python_function", {}))
    if function.get("loader_module") != _LOADER:
        function = {"python_version": platform.python_version()}
    onnx.setdefault("providers", ["CPUExecutionProvider"])
    function.update(loader_module=_LOADER, env={"conda": _CONDA, "virtualenv": _PYTHON_ENV})
    return {
        "onnx": {**onnx, "data": onnx_name, "code": None},
        "python_function": {**{n: v for n, v in function.items() if n != "code"}, "data": onnx_name},
    }


def _made(keys: ReleaseKeys, facts: TrainingFacts) -> dict[str, Any]:
    """MLmodel's general part for a version that has none: nothing in it is drawn or read from a clock."""
    model = Model(
        run_id=facts.mlflow_run_id,
        utc_time_created=facts.ended_at.replace(tzinfo=None),
        model_uuid=uuid.uuid5(uuid.NAMESPACE_URL, f"supabase:{keys.prefix}").hex,
    )
    return {name: value for name, value in model.to_dict().items() if value is not None}


def _signature(tensors: Tensors) -> ModelSignature | None:
    """What the ONNX graph itself says it takes and gives; MLflow has no words for tensors that are not numeric.

    With it MLflow turns what comes as JSON into the types that ONNX wants.
    """
    # An only input with a name could no longer be given as a bare array.
    inputs = _schema(tensors.inputs, named=len(tensors.inputs) > 1)
    return None if inputs is None else ModelSignature(inputs=inputs, outputs=_schema(tensors.outputs))


def _schema(tensors: Sequence[Tensor], *, named: bool = True) -> Schema | None:
    """None unless all are numeric."""
    specs: list[ColSpec | TensorSpec] = [
        TensorSpec(tensor.dtype, tensor.shape, tensor.name if named else None)
        for tensor in tensors
        if tensor.dtype is not None and tensor.dtype.kind in _NUMERIC
    ]
    return Schema(specs) if specs and len(specs) == len(tensors) else None


def _default_requirements() -> list[str]:
    try:
        found = mlflow.onnx.get_default_pip_requirements()
    except ImportError:
        # MLflow asks which version is installed here, where onnxruntime need not be.
        found = ["onnx", "onnxruntime"]
    return [f"mlflow=={mlflow.__version__}", *found]


def _conda_env(requirements: bytes) -> dict[str, Any]:
    lines = [line.strip() for line in requirements.decode(errors="replace").splitlines()]
    pip = [line for line in lines if line and not line.startswith("#")]
    python = f"python={platform.python_version()}"
    return {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": [python, "pip", {"pip": pip}]}


def _python_env() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "build_dependencies": ["pip", "setuptools", "wheel"],
        "dependencies": [f"-r {_REQUIREMENTS}"],
    }


def _yaml(value: Mapping[str, Any]) -> bytes:
    text: str = yaml.safe_dump(dict(value), default_flow_style=False, allow_unicode=True)
    return text.encode()
