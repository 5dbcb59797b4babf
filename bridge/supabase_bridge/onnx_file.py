"""A version's ONNX model as one file: weights that lie beside it are joined in, bytes otherwise unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError, Message
from onnx.external_data_helper import uses_external_data

from supabase_bridge.errors import InvalidModelFileError
from supabase_bridge.object_store.local_files import discard, local_error

_PROTOBUF_LIMIT_BYTES = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of a graph.

    Attributes:
        dtype: The type of its elements; None where numpy has none, or it is no tensor.
        shape: -1 for what is not fixed.
        names: What the graph calls each dimension that is not fixed, or "".
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """What a graph must be given, and what it gives."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What an ONNX file says of its model, the weights aside.

    Attributes:
        ir_version: The version of the format.
        opset: That of ONNX's own operators; None where it uses none of them.
        external_files: The files, relative to the ONNX file, that hold its weights; none for a model that is whole.
    """

    tensors: Tensors
    ir_version: int
    opset: int | None
    external_files: tuple[str, ...]


def check_size(name: str, size_bytes: int) -> None:
    """Check that a model of this size, its weights included, can be one ONNX file: what is larger is never loaded.

    Raises:
        InvalidModelFileError: it cannot; the message says what to do.
    """
    if size_bytes > _PROTOBUF_LIMIT_BYTES:
        reason = (
            f"with its weights it has {size_bytes} bytes, and one ONNX file holds at most 2 GiB. "
            "Export it in half precision or quantised, or split it into models of their own"
        )
        raise InvalidModelFileError(name, reason)


def read_graph(path: Path) -> Graph:
    """What the ONNX model at `path` says of itself.

    Raises:
        InvalidModelFileError: it is no ONNX model, or larger than one can be.
        LocalFileError: it cannot be read.
    """
    model = _load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    locations = {
        next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        for tensor in _tensors(model)
        if uses_external_data(tensor)
    }
    return Graph(
        tensors=Tensors(inputs=_described(inputs), outputs=_described(model.graph.output)),
        ir_version=model.ir_version,
        opset=max((entry.version for entry in model.opset_import if entry.domain == ""), default=None),
        external_files=tuple(sorted(locations)),
    )


def join(path: Path, target: Path) -> None:
    """Write the model at `path`, with the weights that lie beside it, to `target` as one file.

    Raises:
        InvalidModelFileError: a weight file is missing or damaged, or the whole would be larger than 2 GiB, which no
            ONNX file can be.
        LocalFileError: `target` cannot be written, which says nothing of the model; it is not there then.
    """
    whole = _joined(path)
    try:
        target.write_bytes(whole)
    except OSError as error:
        discard(target)
        raise local_error(target, error) from error


def check(path: Path) -> None:
    """Check that the file at `path` is a valid ONNX model.

    Raises:
        InvalidModelFileError: it is not; the checker's words say why.
    """
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, DecodeError, ValueError) as error:
        raise InvalidModelFileError(path.name, str(error).strip()[:300]) from error


def _joined(path: Path) -> bytes:
    """The model at `path` with the weights that lie beside it, read only if the whole can be an ONNX file."""
    try:
        parts = [path, *(path.parent / name for name in read_graph(path).external_files)]
        total = sum(part.stat().st_size for part in parts)
    except OSError as error:
        raise InvalidModelFileError(path.name, f"a weight file is missing: {error}") from error
    check_size(path.name, total)
    try:
        model = onnx.load(path)
        if any(uses_external_data(tensor) for tensor in _tensors(model)):
            # ONNX's loader passes over some: those of training graphs, and sparse ones.
            raise InvalidModelFileError(path.name, "some of its weights are in other files and cannot be joined")
        whole: bytes = model.SerializeToString()
    except (onnx.checker.ValidationError, DecodeError, EncodeError, OSError, ValueError) as error:
        raise InvalidModelFileError(path.name, str(error)[:300]) from error
    return whole


def _load(path: Path) -> onnx.ModelProto:
    """The model without weights that lie beside it."""
    try:
        check_size(path.name, path.stat().st_size)
        return onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise InvalidModelFileError(path.name, str(error)[:300]) from error
    except OSError as error:
        raise local_error(path, error) from error


def _described(values: Sequence[onnx.ValueInfoProto]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            name=value.name,
            dtype=_dtype(value.type.tensor_type.elem_type),
            shape=tuple(
                size.dim_value if size.HasField("dim_value") else -1 for size in value.type.tensor_type.shape.dim
            ),
            names=tuple(size.dim_param for size in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


def _dtype(element_type: int) -> np.dtype[Any] | None:
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element_type))
    except KeyError:
        return None


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor in a model, wherever it is: graphs in graphs, functions, sparse tensors, training graphs."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if isinstance(value, Message) else value:
                yield from _tensors(inner)
