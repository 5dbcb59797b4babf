"""MLmodel and environment files without trainer-controlled code."""

from __future__ import annotations

import platform
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
import numpy as np
import yaml  # type: ignore[import-untyped]  # PyYAML, which MLflow reads MLmodel with, has no annotations
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from supabase_bridge.core.errors import InvalidDocumentError
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import ENVIRONMENT_NAMES, MLMODEL_NAME, ReleasePaths
from supabase_bridge.mirror.metadata import RunInfo
from supabase_bridge.mirror.onnx_file import Structure, Tensor

_CONDA, _PYTHON_ENV, _REQUIREMENTS = ENVIRONMENT_NAMES
_RUNTIMES = frozenset({"onnxruntime", "onnxruntime-gpu"})
_KNOWN = _RUNTIMES | {"mlflow", "onnx"}
"""Packages whose versions are kept from the training's requirements."""
_SPECIFIER = r"(?:==|~=|!=|<=|>=|<|>) *[0-9][0-9A-Za-z.*!]*"
_REQUIREMENT = re.compile(rf"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*) *(?:{_SPECIFIER}(?: *, *{_SPECIFIER})*)?")
_VERSION = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}(?:\.[0-9]{1,3})?")
_PYTHON_LINE = re.compile(r"""python: (?P<quote>['"]?)(?P<version>[0-9.]+)(?P=quote)""")
_KEPT = ("artifact_path", "metadata", "model_uuid", "run_id", "signature", "utc_time_created")
"""Fields of MLmodel that only describe the model. Others name files that a release lacks, make MLflow call its server,
or name credentials and resources of the trainer's choice."""
_NUMBERS = ("graph_optimization_level", "inter_op_num_threads", "intra_op_num_threads")
_UNREADABLE = (MlflowException, yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError, LookupError)
"""The errors of PyYAML and MLflow for bytes that are no MLmodel file."""
_PROVIDER = re.compile(r"[A-Za-z]{1,40}ExecutionProvider")


def requirements(own: bytes | None, default: Sequence[str]) -> list[str]:
    """Return the lines of requirements.txt: the training's versions of mlflow, onnx and onnxruntime, else `default`.

    A line is kept if it is one of these names with version specifiers (PEP 508) and nothing else: no URL, path, option,
    extra, marker or other package.

    Args:
        default: The requirements of this installation; what the training's own lines lack, unless they name a runtime.
    """
    lines = [line.strip() for line in (own or b"").decode(errors="replace").splitlines()]
    kept = [line for line in lines if _package(line) in _KNOWN]
    named = {_package(line) for line in kept}
    return kept if named & _RUNTIMES else [*kept, *(line for line in default if _package(line) not in named)]


def _package(line: str) -> str | None:
    """Return the name in a line of requirements, normalised (PEP 503); None for a line of another form."""
    found = _REQUIREMENT.fullmatch(line)
    return re.sub(r"[-_.]+", "-", found["name"]).lower() if found else None


def _python_version(environment: Mapping[str, bytes], flavor: Mapping[str, Any]) -> str:
    """Return the training's Python version: from python_env.yaml, from its flavor, or the version that runs here."""
    lines = environment.get(_PYTHON_ENV, b"").decode(errors="replace").splitlines()
    found = next((match["version"] for line in lines if (match := _PYTHON_LINE.fullmatch(line))), None)
    wanted = found or flavor.get("python_version")
    return wanted if isinstance(wanted, str) and _VERSION.fullmatch(wanted) else platform.python_version()


def parse_mlmodel(data: bytes) -> dict[str, Any]:
    """Read an MLmodel file.

    Raises:
        InvalidDocumentError: it is no YAML, has aliases, or is nothing that MLflow could read.
    """
    try:
        value = _Loader(data).get_single_data()
        flavors = Model.from_dict(value).flavors
        if not isinstance(flavors, dict) or not all(isinstance(flavor, dict) for flavor in flavors.values()):
            raise InvalidDocumentError(MLMODEL_NAME, "flavors: expected a table of tables")
    except _UNREADABLE as error:
        raise InvalidDocumentError(MLMODEL_NAME, str(error)[:300]) from error
    return {**value, "flavors": flavors}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no annotations
    """A YAML loader that refuses aliases: a few lines of aliases can expand to a document of any size."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has a YAML alias, which is not read")
        return super().compose_node(parent, index)


def model_files(
    own: Mapping[str, Any],
    environment: Mapping[str, bytes],
    structure: Structure,
    *,
    paths: ReleasePaths,
    facts: RunInfo,
) -> dict[str, bytes]:
    """Make the files that make a release an MLflow model, by name; equal arguments give equal bytes.

    Fields of the version's MLmodel are kept if they only describe the model. Only the flavors `onnx` and
    `python_function` remain, with MLflow's own loader. Options are kept by name, and versions of known packages.
    Nothing that a trainer writes makes a server of the release run code or load a file.

    Args:
        own: The version's MLmodel; empty where it has none.
        environment: The version's own environment files, by name.
        structure: The ONNX model's inputs and outputs are the signature where the version has none.

    Raises:
        InvalidDocumentError: MLmodel would be larger than LIMIT_BYTES.
    """
    of_onnx = "onnx" in own.get("flavors", {})
    flavors = own.get("flavors", {}) if of_onnx else {}
    # The environment of another flavor, such as a PyTorch model beside the ONNX file, may lack an ONNX runtime.
    kept = environment if of_onnx or not own else {}
    python = _python_version(kept, flavors.get("python_function", {}))
    value = {name: own[name] for name in own if name in _KEPT} if of_onnx else _made(paths, facts)
    value["flavors"] = _flavors(flavors.get("onnx", {}), paths.onnx_name, python)
    # MLflow converts JSON input to the types of the signature, and refuses a bare array for a single input with a name.
    inputs = _schema(structure.inputs, named=len(structure.inputs) > 1)
    if value.get("signature") is None and inputs is not None:
        value["signature"] = ModelSignature(inputs=inputs, outputs=_schema(structure.outputs)).to_dict()
    mlmodel = _yaml(value)
    if len(mlmodel) > LIMIT_BYTES:
        raise InvalidDocumentError(MLMODEL_NAME, f"larger than {LIMIT_BYTES} bytes")
    lines = requirements(kept.get(_REQUIREMENTS), _default_requirements())
    dependencies = [f"python={python}", "pip", {"pip": lines}]
    return {
        MLMODEL_NAME: mlmodel,
        _CONDA: _yaml({"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": dependencies}),
        _PYTHON_ENV: _yaml(
            {
                "python": python,
                "build_dependencies": ["pip", "setuptools", "wheel"],
                "dependencies": [f"-r {_REQUIREMENTS}"],
            }
        ),
        _REQUIREMENTS: "".join(f"{line}\n" for line in lines).encode(),
    }


def _flavors(own: Mapping[str, Any], onnx_name: str, python: str) -> dict[str, Any]:
    onnx: dict[str, Any] = {"code": None, "data": onnx_name, "providers": _providers(own.get("providers"))}
    if isinstance(version := own.get("onnx_version"), str):
        onnx["onnx_version"] = version
    if options := _session_options(own.get("onnx_session_options")):
        onnx["onnx_session_options"] = options
    environment = {"conda": _CONDA, "virtualenv": _PYTHON_ENV}
    function = {"data": onnx_name, "env": environment, "loader_module": "mlflow.onnx", "python_version": python}
    return {"onnx": onnx, "python_function": function}


def _providers(own: object) -> list[str]:
    """Keep execution providers by name only: their options name libraries and files on the serving machine."""
    listed = own if isinstance(own, list) else [own]
    names = [item[0] if isinstance(item, list) and item else item for item in listed]
    return [name for name in names if isinstance(name, str) and _PROVIDER.fullmatch(name)] or ["CPUExecutionProvider"]


def _session_options(own: object) -> dict[str, Any]:
    """Keep the session options that are a number or a word; `extra_session_config` could name any library."""
    given = own if isinstance(own, dict) else {}
    numbers = {name: given[name] for name in _NUMBERS if type(given.get(name)) is int}
    modes = (
        {"execution_mode": given["execution_mode"]}
        if given.get("execution_mode") in ("sequential", "parallel", "SEQUENTIAL", "PARALLEL")
        else {}
    )
    return {**numbers, **modes}


def _made(paths: ReleasePaths, facts: RunInfo) -> dict[str, Any]:
    """Make the general part of MLmodel for a version without one; it depends on no clock and no random number."""
    model = Model(
        run_id=facts.mlflow_run_id,
        utc_time_created=facts.ended_at.replace(tzinfo=None),
        model_uuid=uuid.uuid5(uuid.NAMESPACE_URL, f"supabase:{paths.prefix}").hex,
    )
    return {name: value for name, value in model.to_dict().items() if value is not None}


def _schema(tensors: Sequence[Tensor], *, named: bool = True) -> Schema | None:
    """Return MLflow's description of the tensors; None unless all of them are numeric."""
    specs: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype(tensor.dtype), tuple(tensor.shape), tensor.name if named else None)
        for tensor in tensors
        if tensor.dtype is not None and np.dtype(tensor.dtype).kind in "biuf"
    ]
    return Schema(specs) if specs and len(specs) == len(tensors) else None


def _default_requirements() -> list[str]:
    try:
        found = mlflow.onnx.get_default_pip_requirements()
    except ImportError:
        # MLflow asks for the installed version, and onnxruntime may not be installed.
        found = ["onnx", "onnxruntime"]
    return [f"mlflow=={mlflow.__version__}", *found]


def _yaml(value: Mapping[str, Any]) -> bytes:
    data: bytes = yaml.safe_dump(dict(value), default_flow_style=False, allow_unicode=True, encoding="utf-8")
    return data
