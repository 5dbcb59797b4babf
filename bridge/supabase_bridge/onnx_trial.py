"""Does an ONNX model do what its release says? Its versions, its inputs and outputs, and one inference on random input.

To be run in a process of its own: a graph may ask for any amount of time and memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from supabase_bridge import onnx_file
from supabase_bridge.errors import InvalidModelFileError, ModelCheckError
from supabase_bridge.onnx_file import Graph, Tensor, Tensors

_INPUT_LIMIT_BYTES = 256_000_000
_SIZES = (2, 1, 32, 256)
"""What a dimension that is not fixed is tried with, in this order, until the graph runs."""
_FATAL = 4
_SEED = 20251031
_ORT_ERRORS: tuple[type[Exception], ...] = (
    *(found for found in vars(ort).values() if isinstance(found, type) and issubclass(found, Exception)),
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """What model_meta.json says of a model's inputs and outputs; None where it says nothing."""

    user_feature_dim: int | None = None
    item_feature_dim: int | None = None
    embedding_dim: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Input:
    """An input of the trial: its shape, with None where the graph leaves a dimension open."""

    tensor: Tensor
    shape: tuple[int | None, ...]


def examine(path: Path, dimensions: Dimensions) -> None:
    """Check an ONNX model without weights beside it.

    Raises:
        InvalidModelFileError: it is no valid ONNX model, or a newer one than is understood here.
        ModelCheckError: its inputs or outputs are not what `dimensions` say, or it cannot be run, gives something else
            than it declares, or numbers that are not finite.
    """
    graph = onnx_file.read_graph(path)
    _check_versions(path.name, graph)
    onnx_file.check(path)
    _compare_inputs(path.name, graph.tensors.inputs, dimensions)
    _compare_outputs(path.name, graph.tensors, dimensions)
    _try(path, graph.tensors, dimensions)


# --- versions ---------------------------------------------------------------------------------------------------------


def _check_versions(name: str, graph: Graph) -> None:
    """Refuse what onnxruntime here does not read: its own answer to the smallest graph of these versions says so."""
    ir_version, opset = graph.ir_version, graph.opset
    if _runs(ir_version, 13 if opset is None else opset):
        return
    here = f"onnxruntime {onnxruntime.__version__} here"
    if not _runs(ir_version, 13):
        newest = next((known for known in range(int(onnx.IR_VERSION) + 2, 2, -1) if _runs(known, 13)), None)
        problem = f"it has IR version {ir_version}, and {here} reads up to {newest}"
    else:
        newest = next(known for known in range(onnx.defs.onnx_opset_version() + 2, 12, -1) if _runs(8, known))
        problem = f"it has opset {opset}, and {here} computes 7 to {newest}"
    raise InvalidModelFileError(name, f"{problem}. Export it for an older one, or update onnxruntime")


def _runs(ir_version: int, opset: int) -> bool:
    """Whether onnxruntime opens a graph of these versions that does nothing."""
    if opset < 7 or ir_version < 3:
        return False
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    try:
        _session(probe.SerializeToString())
    except _ORT_ERRORS:
        return False
    return True


# --- names and dimensions ---------------------------------------------------------------------------------------------


def _compare_inputs(name: str, inputs: Sequence[Tensor], dimensions: Dimensions) -> None:
    """Hold the towers' inputs, known by "user" and "item" in their names, against the dimensions.

    A graph whose inputs have neither in their names is no two-tower graph as we know it, and is not compared.
    """
    sides = {"user": dimensions.user_feature_dim, "item": dimensions.item_feature_dim}
    by_side = {side: [tensor for tensor in inputs if side in tensor.name.lower()] for side in sides}
    if inputs and not _has_towers(inputs):
        return
    for side, size in sides.items():
        if size is None:
            continue
        if not by_side[side]:
            problem = f"model_meta.json has {side}_feature_dim {size}, and the graph no input for it"
            raise ModelCheckError(name, f"{problem} (inputs: {_listed(inputs)})")
        if not any(_may_be(tensor.shape, size) for tensor in by_side[side]):
            found = _listed(by_side[side])
            raise ModelCheckError(name, f"model_meta.json has {side}_feature_dim {size}, and the graph takes {found}")


def _has_towers(inputs: Sequence[Tensor]) -> bool:
    return any(side in tensor.name.lower() for tensor in inputs for side in ("user", "item"))


def _compare_outputs(name: str, tensors: Tensors, dimensions: Dimensions) -> None:
    """Hold the outputs with "embed" in their names against the dimensions.

    Where none has, one output of a two-tower graph must be as wide as an embedding all the same.
    """
    size = dimensions.embedding_dim
    _require_embedding(name, tensors, [tensor.shape for tensor in tensors.outputs], dimensions)
    for tensor in tensors.outputs:
        if size is not None and "embed" in tensor.name.lower() and not _may_be(tensor.shape, size):
            raise ModelCheckError(
                name, f"model_meta.json has embedding_dim {size}, and the graph gives {_listed([tensor])}"
            )


def _require_embedding(name: str, tensors: Tensors, shapes: Sequence[Sequence[int]], dimensions: Dimensions) -> None:
    """See that one of a two-tower graph's outputs may be an embedding, or a score, where no name says which.

    Args:
        shapes: The outputs', declared or measured.
    """
    size, outputs = dimensions.embedding_dim, tensors.outputs
    if size is None or not _has_towers(tensors.inputs) or any("embed" in tensor.name.lower() for tensor in outputs):
        return
    # A graph that goes on from the embeddings to a score keeps them to itself.
    if not any(_may_be(shape, size) or shape[-1] == 1 for shape in shapes):
        problem = f"model_meta.json has embedding_dim {size}, and no output of the graph has that size"
        raise ModelCheckError(name, f"{problem} (outputs: {_listed(outputs)})")


def _may_be(shape: Sequence[int], size: int) -> bool:
    return not shape or shape[-1] in {size, -1}


def _listed(tensors: Sequence[Tensor]) -> str:
    shown = [f"{tensor.name[:80]!r} {['?' if size < 0 else size for size in tensor.shape]}" for tensor in tensors[:5]]
    return ", ".join(shown).replace("'?'", "?") or "none"


# --- the trial --------------------------------------------------------------------------------------------------------


def _try(path: Path, tensors: Tensors, dimensions: Dimensions) -> None:
    """Run the graph once on random input."""
    try:
        session = _session(str(path))
    except _ORT_ERRORS as error:
        raise ModelCheckError(path.name, f"onnxruntime cannot open it: {_words(error)}") from error
    if any(tensor.dtype is None or not _can_be_fed(tensor.dtype) for tensor in tensors.inputs):
        # Sequences, maps, and numbers that numpy has not: there is no random value of these to give.
        return
    inputs = [_Input(tensor=tensor, shape=_shape(tensor, dimensions)) for tensor in tensors.inputs]
    open_dimensions = any(size is None for item in inputs for size in item.shape)
    failure = ""
    for size in _SIZES if open_dimensions else _SIZES[:1]:
        feeds = dict(_feeds(path.name, inputs, size))
        try:
            results = session.run([tensor.name for tensor in tensors.outputs], feeds)
        except _ORT_ERRORS as error:
            failure = failure or _words(error)
            continue
        _check_results(path.name, tensors, results, dimensions, _sizes_by_name(inputs, size))
        return
    raise ModelCheckError(path.name, f"a trial inference on random input failed: {failure}")


def _session(model: str | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    # The graph as it is; an optimiser would compute whatever a graph asks for before it is run.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _shape(tensor: Tensor, dimensions: Dimensions) -> tuple[int | None, ...]:
    """An input's shape; where the last dimension of a tower's input is open, model_meta.json knows it."""
    shape: list[int | None] = [None if size < 0 else size for size in tensor.shape]
    for side, known in (("user", dimensions.user_feature_dim), ("item", dimensions.item_feature_dim)):
        if shape and shape[-1] is None and side in tensor.name.lower():
            shape[-1] = known
    return tuple(shape)


def _feeds(name: str, inputs: Sequence[_Input], size: int) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Random values for every input, the same at every run: between 0 and 1 for numbers, 0 for indices."""
    rng = np.random.default_rng(_SEED)
    for item in inputs:
        shape = tuple(size if known is None else known for known in item.shape)
        dtype = item.tensor.dtype or np.dtype(np.float32)
        if prod(shape) * dtype.itemsize > _INPUT_LIMIT_BYTES:
            problem = (
                f"input {item.tensor.name[:80]!r} of shape {list(shape)} is larger than {_INPUT_LIMIT_BYTES} bytes"
            )
            raise ModelCheckError(name, f"{problem}, too large to be tried")
        if dtype.kind == "f":
            yield item.tensor.name, rng.random(shape).astype(dtype)
        elif dtype.kind == "b":
            yield item.tensor.name, rng.random(shape) < 0.5
        elif dtype.kind in "iu":
            yield item.tensor.name, np.zeros(shape, dtype)
        else:
            yield item.tensor.name, np.full(shape, "a", dtype=object)


def _can_be_fed(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biuOUS" or dtype in (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


def _sizes_by_name(inputs: Sequence[_Input], size: int) -> Mapping[str, int]:
    """How large the dimensions that have names were in the trial."""
    return {
        named: size if known is None else known
        for item in inputs
        for named, known in zip(item.tensor.names, item.shape, strict=True)
        if named
    }


def _check_results(
    name: str, tensors: Tensors, results: Sequence[Any], dimensions: Dimensions, sizes: Mapping[str, int]
) -> None:
    measured = [getattr(result, "shape", ()) for result in results]
    _require_embedding(name, tensors, measured, dimensions)
    for tensor, result in zip(tensors.outputs, results, strict=True):
        if not isinstance(result, np.ndarray) or tensor.dtype is None:
            continue
        # A graph may leave an output's shape open altogether, which reads as no dimensions.
        if tensor.shape and not _fits(tensor, result.shape, sizes):
            problem = f"output {tensor.name[:80]!r} has shape {list(result.shape)}, and the graph declares "
            raise ModelCheckError(name, problem + _listed([tensor]))
        wanted = dimensions.embedding_dim
        if wanted is not None and "embed" in tensor.name.lower() and not _may_be(result.shape, wanted):
            problem = f"model_meta.json has embedding_dim {wanted}, and output {tensor.name[:80]!r} has shape "
            raise ModelCheckError(name, problem + str(list(result.shape)))
        if result.dtype.kind in "fc" and not np.isfinite(result).all():
            raise ModelCheckError(
                name, f"output {tensor.name[:80]!r} has NaN or infinity in it, on input between 0 and 1"
            )


def _fits(tensor: Tensor, shape: Sequence[int], sizes: Mapping[str, int]) -> bool:
    """Whether a shape is one that the graph declares; a dimension with an input's name is as large as there."""
    if len(shape) != len(tensor.shape):
        return False
    wanted = [
        sizes.get(named, -1) if size < 0 else size for size, named in zip(tensor.shape, tensor.names, strict=True)
    ]
    return all(size in {-1, found} for size, found in zip(wanted, shape, strict=True))


def _words(error: Exception) -> str:
    if "bad_alloc" in str(error) or "Failed to allocate" in str(error):
        return "it needs more memory than check_memory_bytes in the settings allows"
    return " ".join(str(error).split())[:300]
