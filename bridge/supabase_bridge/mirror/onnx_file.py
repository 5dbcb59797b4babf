"""Read the structure of an ONNX file, join the weights that lie beside it, and validate it.

These functions parse a trainer's file: only the sandbox process (`checks.sandbox`) calls them.
"""

from __future__ import annotations

import mmap
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, EncodeError

from supabase_bridge.core.documents import OnnxGraph, TensorRecord
from supabase_bridge.mirror.errors import Fault, ModelRejectedError
from supabase_bridge.storage.local_files import discard, local_error

_PROTOBUF_LIMIT_BYTES = 2**31 - 1
_ENDS_LIMIT_BYTES = 500_000
"""For the description of all inputs and outputs."""
_LOCATION_LIMIT_BYTES = 4_096
_NESTING_LIMIT = 100
"""That of protobuf's own parsers."""
_DEFAULT_DOMAIN = "ai.onnx"
_KINDS_LIMIT = 300
"""Kinds of operators that are counted apart, and the most operator sets."""
_ENDS_RECORDED = 100
_NAME_LIMIT = 200


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of a graph.

    Attributes:
        dtype: numpy's name for the type of its elements; None where numpy has none, or it is no tensor.
        shape: -1 for a dimension that is not fixed.
        names: The graph's name of each dimension that is not fixed, or "".
    """

    name: str
    dtype: str | None
    shape: Sequence[int]
    names: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The structure of an ONNX model, without its nodes and weights.

    Attributes:
        external_files: The files that hold its weights, as normalised paths relative to the ONNX file.
        operators: How often each operator occurs, by its domain and name; surplus kinds are counted as "others".
        opsets: The version of each operator set, by its domain.
    """

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    external_files: Sequence[str] = ()
    operators: Mapping[str, int] = field(default_factory=dict)
    opsets: Mapping[str, int] = field(default_factory=dict)

    @property
    def record(self) -> OnnxGraph:
        """The record for model_meta.json: of many inputs and outputs the first ones, of long names the beginning."""
        inputs, outputs = (
            [TensorRecord(name=one.name[:_NAME_LIMIT], type=one.dtype, shape=_named_shape(one)) for one in ends]
            for ends in (self.inputs[:_ENDS_RECORDED], self.outputs[:_ENDS_RECORDED])
        )
        return OnnxGraph(inputs=inputs, outputs=outputs, operators=dict(self.operators), opsets=dict(self.opsets))

    @property
    def record_notes(self) -> list[str]:
        """Notes on what `record` leaves out."""
        ends = (("inputs", self.inputs), ("outputs", self.outputs))
        return [
            f"onnx_graph has the first {_ENDS_RECORDED} of {len(found)} {name}"
            for name, found in ends
            if len(found) > _ENDS_RECORDED
        ]


@dataclass(frozen=True, kw_only=True)
class GivenInput:
    """A version's own description of its input.

    Attributes:
        example: Its MLflow input example, as JSON.
        signature: The inputs of its MLflow signature, as JSON.
    """

    example: bytes | None = None
    signature: str | None = None


NO_GIVEN_INPUT = GivenInput()


def check_size(name: str, size_bytes: int) -> None:
    """Check that a model of this size, its weights included, can be one ONNX file; a larger one is never loaded.

    Raises:
        ModelRejectedError: it cannot; the message says what to do.
    """
    if size_bytes > _PROTOBUF_LIMIT_BYTES:
        reason = (
            f"with its weights it has {size_bytes} bytes, and one ONNX file holds at most 2 GiB. "
            "Export it in half precision or quantised, or split it into several models"
        )
        raise ModelRejectedError(name, Fault.INVALID, reason)


def read_structure(path: Path) -> Structure:
    """Read the inputs, the outputs and the names of the weight files of the ONNX model at `path`.

    The file is walked field by field: its nodes and weights never become objects, whatever their number.

    Raises:
        ModelRejectedError: it is no ONNX model, or larger than one can be.
        LocalFileError: it cannot be read.
    """
    try:
        check_size(path.name, path.stat().st_size)
        with path.open("rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
            return structure_of(data, path.name)
    except ValueError as error:
        raise ModelRejectedError(path.name, Fault.INVALID, str(error)[:300]) from error
    except OSError as error:
        raise local_error(path, error) from error


def structure_of(data: Any, name: str) -> Structure:
    """Return the structure of an ONNX model, of whose bytes only those that describe it are read.

    Args:
        data: Its bytes, or `FileParts`.

    Raises:
        ModelRejectedError: they are no ONNX model.
        MissingPartError: see `FileParts`.
    """
    try:
        inputs, outputs = _ends(data)
        external, operators = _contents(data)
        return Structure(
            inputs=inputs,
            outputs=outputs,
            external_files=external,
            operators=operators,
            opsets=_opsets(data),
        )
    except (DecodeError, IndexError, ValueError) as error:
        raise ModelRejectedError(name, Fault.INVALID, str(error)[:300]) from error


def join(path: Path, target: Path) -> None:
    """Write the model at `path`, with the weights that lie beside it, to `target` as one file.

    Raises:
        ModelRejectedError: a weight file is missing or damaged, or the whole would be larger than 2 GiB.
        LocalFileError: `target` cannot be written; no part of it is left.
    """
    try:
        parts = [path, *(path.parent / name for name in read_structure(path).external_files)]
        total = sum(part.stat().st_size for part in parts)
    except OSError as error:
        raise ModelRejectedError(path.name, Fault.INVALID, f"a weight file is missing: {error}") from error
    check_size(path.name, total)
    try:
        whole: bytes = onnx.load(path).SerializeToString()
        # ONNX's loader skips the tensors of training graphs, and sparse ones.
        left, _ = _contents(whole)
    except (onnx.checker.ValidationError, DecodeError, EncodeError, OSError, ValueError) as error:
        raise ModelRejectedError(path.name, Fault.INVALID, str(error)[:300]) from error
    if left:
        problem = "some of its weights are in other files and cannot be joined"
        raise ModelRejectedError(path.name, Fault.INVALID, problem)
    try:
        target.write_bytes(whole)
    except OSError as error:
        discard(target)
        raise local_error(target, error) from error


def validate(path: Path) -> list[str]:
    """Check that the file at `path` is a valid ONNX model.

    Returns:
        Notes: shapes that the graph declares otherwise than ONNX infers them, which no runtime refuses.

    Raises:
        ModelRejectedError: it is not; the reason is that of ONNX's own checker.
    """
    try:
        onnx.checker.check_model(path)
        try:
            onnx.checker.check_model(path, full_check=True)
        except onnx.shape_inference.InferenceError as error:
            return [f"ONNX infers other shapes than the graph declares: {' '.join(str(error).split())[:300]}"]
        return []
    except (onnx.checker.ValidationError, DecodeError, ValueError) as error:
        raise ModelRejectedError(path.name, Fault.INVALID, str(error).strip()[:300]) from error


# --- protobuf, field by field -----------------------------------------------------------------------------------------


@cache
def _inner_messages(kind: Descriptor) -> Mapping[int, Descriptor]:
    """Return the kinds of the messages in a message, by the numbers of their fields."""
    return {field.number: field.message_type for field in kind.fields if field.message_type}


def _fields(data: Any, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield each field of a message: its number, and where its value begins and ends.

    The value of a field without a length is its bytes on the wire.
    """
    position = begin
    while position < end:
        tag, position = (data[position], position + 1) if data[position] < 0x80 else _varint(data, position)
        kind, start = tag & 7, position
        if kind == 2:
            size, start = (data[position], position + 1) if data[position] < 0x80 else _varint(data, position)
            position = start + size
        elif kind == 0:
            _, position = _varint(data, position)
        elif kind in {1, 5}:
            position += 8 if kind == 1 else 4
        else:
            raise ValueError("it is no protobuf message")
        if position > end:
            raise ValueError("it ends in the middle of a field")
        yield tag >> 3, start, position


def _varint(data: Any, position: int) -> tuple[int, int]:
    byte: int = data[position]
    if byte < 0x80:
        return byte, position + 1
    value = byte & 0x7F
    for shift in range(7, 70, 7):
        position += 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
    raise ValueError("it has a number of more than ten bytes")


def _messages(data: Any) -> Iterator[tuple[Descriptor, int, int]]:
    """Yield where each tensor and node of a model begins and ends: of inner graphs, functions, training graphs too."""
    open_messages = [(_fields(data, 0, len(data)), _inner_messages(onnx.ModelProto.DESCRIPTOR))]
    while open_messages:
        fields, inner_messages = open_messages[-1]
        for number, begin, end in fields:
            kind = inner_messages.get(number)
            if kind in {onnx.TensorProto.DESCRIPTOR, onnx.NodeProto.DESCRIPTOR} and begin < end:
                yield kind, begin, end
            if kind is not None and kind is not onnx.TensorProto.DESCRIPTOR and begin < end:
                if len(open_messages) > _NESTING_LIMIT:
                    raise ValueError("its graphs are nested too deep")
                open_messages.append((_fields(data, begin, end), _inner_messages(kind)))
                break
        else:
            open_messages.pop()


def _contents(data: Any) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the normalised locations of all tensors in other files, and the number of each operator."""
    locations: set[str] = set()
    operators: Counter[str] = Counter()
    for kind, begin, end in _messages(data):
        if kind is onnx.NodeProto.DESCRIPTOR:
            name = _operator(data, begin, end)
            operators[name if name in operators or len(operators) < _KINDS_LIMIT else "others"] += 1
        elif (location := _external_location(data, begin, end)) is not None:
            locations.add(location)
    return tuple(sorted(locations)), dict(sorted(operators.items()))


def _external_location(data: Any, begin: int, end: int) -> str | None:
    """Return the file that holds a tensor's data; None if the tensor itself holds it."""
    location, external = "", False
    for number, start, stop in _fields(data, begin, end):
        if number == onnx.TensorProto.DATA_LOCATION_FIELD_NUMBER:
            external = external or _varint(data, start)[0] == onnx.TensorProto.EXTERNAL
        elif number == onnx.TensorProto.EXTERNAL_DATA_FIELD_NUMBER:
            if stop - start > _LOCATION_LIMIT_BYTES:
                raise ValueError(f"the name of a weight file is longer than {_LOCATION_LIMIT_BYTES} bytes")
            entry = onnx.StringStringEntryProto.FromString(data[start:stop])
            location = entry.value if entry.key == "location" and not location else location
    return posixpath.normpath(location) if external else None


def _operator(data: Any, begin: int, end: int) -> str:
    """Return the name of a node's operator, with its domain unless that is ONNX's own."""
    places = {number: (start, stop) for number, start, stop in _fields(data, begin, end)}
    name = _text(data, places.get(onnx.NodeProto.OP_TYPE_FIELD_NUMBER))
    domain = _text(data, places.get(onnx.NodeProto.DOMAIN_FIELD_NUMBER))
    return name if domain in {"", _DEFAULT_DOMAIN} else f"{domain}.{name}"


def _opsets(data: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for field_number, begin, end in _fields(data, 0, len(data)):
        if field_number == onnx.ModelProto.OPSET_IMPORT_FIELD_NUMBER and len(found) < _KINDS_LIMIT:
            values = {number: (start, stop) for number, start, stop in _fields(data, begin, end)}
            if onnx.OperatorSetIdProto.VERSION_FIELD_NUMBER in values:
                version = _varint(data, values[onnx.OperatorSetIdProto.VERSION_FIELD_NUMBER][0])[0]
                domain = _text(data, values.get(onnx.OperatorSetIdProto.DOMAIN_FIELD_NUMBER))
                found[domain or _DEFAULT_DOMAIN] = min(version, 2**31)
    return dict(sorted(found.items()))


def _text(data: Any, place: tuple[int, int] | None) -> str:
    """Return the begin of a text field; "" if it is absent."""
    if place is None:
        return ""
    start, stop = place
    return bytes(data[start : min(stop, start + _NAME_LIMIT)]).decode(errors="replace")


def _named_shape(tensor: Tensor) -> list[int | str]:
    names = [*tensor.names, *[""] * (len(tensor.shape) - len(tensor.names))]
    sizes = zip(tensor.shape, names, strict=True)
    return [size if size >= 0 else name[:_NAME_LIMIT] or "?" for size, name in sizes]


def _ends(data: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Return the graph's inputs, without those that are weights, and its outputs."""
    weights: set[str] = set()
    inputs: list[onnx.ValueInfoProto] = []
    outputs: list[onnx.ValueInfoProto] = []
    ends = {onnx.GraphProto.INPUT_FIELD_NUMBER: inputs, onnx.GraphProto.OUTPUT_FIELD_NUMBER: outputs}
    room = _ENDS_LIMIT_BYTES
    for part, graph_begin, graph_end in _fields(data, 0, len(data)):
        if part != onnx.ModelProto.GRAPH_FIELD_NUMBER:
            continue
        for number, begin, end in _fields(data, graph_begin, graph_end):
            if number in ends:
                room -= end - begin
                if room < 0:
                    raise ValueError(f"its inputs and outputs take more than {_ENDS_LIMIT_BYTES} bytes")
                ends[number].append(onnx.ValueInfoProto.FromString(data[begin:end]))
            elif number == onnx.GraphProto.INITIALIZER_FIELD_NUMBER:
                weights |= {
                    data[start:stop].decode()
                    for inner, start, stop in _fields(data, begin, end)
                    if inner == onnx.TensorProto.NAME_FIELD_NUMBER
                }
    return [_tensor(value) for value in inputs if value.name not in weights], [_tensor(value) for value in outputs]


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    declared = value.type.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(declared.elem_type))
    except KeyError:
        dtype = None
    return Tensor(
        name=value.name,
        dtype=dtype.name if dtype is not None and dtype.kind in "biufOU" else None,
        shape=[size.dim_value if size.HasField("dim_value") else -1 for size in declared.shape.dim],
        names=[size.dim_param for size in declared.shape.dim],
    )
