"""A release directory as an MLflow model: MLmodel and the environment files, made from the version's own."""

from __future__ import annotations

import platform
import re
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
from supabase_bridge.python_environment import conda_env, python_env, python_version, requirements

_CONDA, _PYTHON_ENV, _REQUIREMENTS = ENVIRONMENT_NAMES
_LOADER = "mlflow.onnx"
_KEPT = ("artifact_path", "metadata", "model_uuid", "run_id", "signature", "utc_time_created")
"""Fields of MLmodel that only describe. The others speak of files which a release does not have, make MLflow look for
its server, or for credentials and resources of the trainer's choice."""
_NUMBERS = ("graph_optimization_level", "inter_op_num_threads", "intra_op_num_threads")
_MODES = ("sequential", "parallel", "SEQUENTIAL", "PARALLEL")
_PROVIDER = re.compile(r"[A-Za-z]{1,40}ExecutionProvider")
_NODES_LIMIT = 200_000
"""Of MLmodel, with what its aliases refer to counted each time."""
_NUMERIC = frozenset("biuf")


def parse_mlmodel(data: bytes) -> dict[str, Any]:
    """Read an MLmodel file.

    Raises:
        InvalidDocumentError: it is no YAML, or nothing that MLflow could read.
    """
    try:
        value = _load(data)
        flavors = Model.from_dict(value).flavors
        if not isinstance(flavors, dict) or not all(isinstance(flavor, dict) for flavor in flavors.values()):
            raise InvalidDocumentError(MLMODEL_NAME, "flavors: expected a table of tables")
    except (
        MlflowException,
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        LookupError,
    ) as error:
        raise InvalidDocumentError(MLMODEL_NAME, str(error)[:300]) from error
    return {**value, "flavors": flavors}


def _load(data: bytes) -> Any:
    """YAML without what explodes: PyYAML follows merge keys and aliases wherever they lead, each time anew."""
    loader = yaml.SafeLoader(data)
    try:
        node = loader.get_single_node()
        if node is None or _nodes(node, {}) > _NODES_LIMIT:
            raise InvalidDocumentError(MLMODEL_NAME, "it is empty, or much larger than it looks")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _nodes(node: Any, known: dict[int, int]) -> int:
    """How many nodes a document has where each alias counts as what it refers to; endless where it contains itself."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _NODES_LIMIT + 1
    inner = node.value if isinstance(node, yaml.CollectionNode) else ()
    parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
    known[id(node)] = 1 + sum(_nodes(part, known) for part in parts)
    return known[id(node)]


def model_files(
    own: Mapping[str, Any],
    environment: Mapping[str, bytes],
    tensors: Tensors,
    *,
    keys: ReleaseKeys,
    facts: TrainingFacts,
) -> dict[str, bytes]:
    """The files that make the release of `keys` an MLflow model, by name; equal arguments give equal bytes.

    What the version's MLmodel says of its ONNX model is kept where it only describes. Only the flavors `onnx` and
    `python_function` remain, loaded by MLflow's own loader; options are kept by name, and of the environment the
    versions of known packages: nothing that a trainer writes makes whoever serves the release run or load anything.

    Args:
        own: The version's MLmodel; empty where it has none.
        environment: The version's own environment files, by name.
        tensors: What the ONNX model takes and gives; its signature where the version has none.

    Raises:
        InvalidDocumentError: MLmodel would be larger than LIMIT_BYTES.
    """
    of_onnx = "onnx" in own.get("flavors", {})
    flavors = own.get("flavors", {}) if of_onnx else {}
    # The environment of another flavor (a torch model beside the ONNX file, say) may lack what runs ONNX.
    kept = environment if of_onnx or not own else {}
    python = python_version(kept, flavors.get("python_function", {}), platform.python_version())
    value = {name: own[name] for name in own if name in _KEPT} if of_onnx else _made(keys, facts)
    value["flavors"] = _flavors(flavors, keys.onnx_name, python)
    if value.get("signature") is None and (signature := _signature(tensors)) is not None:
        value["signature"] = signature.to_dict()
    mlmodel = _yaml(value)
    if len(mlmodel) > LIMIT_BYTES:
        raise InvalidDocumentError(MLMODEL_NAME, f"larger than {LIMIT_BYTES} bytes")
    lines = requirements(kept.get(_REQUIREMENTS), _default_requirements())
    return {
        MLMODEL_NAME: mlmodel,
        _CONDA: _yaml(conda_env(lines, python)),
        _PYTHON_ENV: _yaml(python_env(python)),
        _REQUIREMENTS: "".join(f"{line}\n" for line in lines).encode(),
    }


def names_onnx_file(mlmodel: bytes, onnx_name: str) -> bool:
    """Whether an MLmodel file is that of the release with this ONNX file.

    Raises:
        InvalidDocumentError: see `parse_mlmodel`.
    """
    flavors = parse_mlmodel(mlmodel).get("flavors", {})
    return all(flavors.get(name, {}).get("data") == onnx_name for name in ("onnx", "python_function"))


def _flavors(own: Mapping[str, Any], onnx_name: str, python: str) -> dict[str, Any]:
    flavor = own.get("onnx", {})
    onnx: dict[str, Any] = {"code": None, "data": onnx_name, "providers": _providers(flavor.get("providers"))}
    if isinstance(version := flavor.get("onnx_version"), str):
        onnx["onnx_version"] = version
    if options := _session_options(flavor.get("onnx_session_options")):
        onnx["onnx_session_options"] = options
    environment = {"conda": _CONDA, "virtualenv": _PYTHON_ENV}
    function = {"data": onnx_name, "env": environment, "loader_module": _LOADER, "python_version": python}
    return {"onnx": onnx, "python_function": function}


def _providers(own: object) -> list[str]:
    """Execution providers by name only: their options name libraries and files on the machine that serves."""
    listed = own if isinstance(own, list) else [own]
    names = [item[0] if isinstance(item, list) and item else item for item in listed]
    return [name for name in names if isinstance(name, str) and _PROVIDER.fullmatch(name)] or ["CPUExecutionProvider"]


def _session_options(own: object) -> dict[str, Any]:
    """The session options that are a number or a word; `extra_session_config` can name anything."""
    given = own if isinstance(own, dict) else {}
    numbers = {name: given[name] for name in _NUMBERS if type(given.get(name)) is int}
    modes = {"execution_mode": given["execution_mode"]} if given.get("execution_mode") in _MODES else {}
    return {**numbers, **modes}


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


def _yaml(value: Mapping[str, Any]) -> bytes:
    text: str = yaml.safe_dump(dict(value), default_flow_style=False, allow_unicode=True)
    return text.encode()
