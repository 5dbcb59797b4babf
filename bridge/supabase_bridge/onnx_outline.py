"""An ONNX model without its large weights: what the checker needs, read at a few places of the file.

Source: onnx.proto, whose field numbers never change; Protocol Buffers' encoding,
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from supabase_bridge.errors import InvalidModelFileError

_GRAPH_OF_MODEL, _INITIALIZER_OF_GRAPH, _RAW_DATA_OF_TENSOR = 7, 5, 9
_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}
LARGE_BYTES = 1024 * 1024
"""Smaller tensors are kept: shapes, which the checker looks into, are among them, and leaving one out is a request."""

_ELEMENT_BYTES: dict[int, int] = {
    TensorProto.FLOAT: 4,
    TensorProto.DOUBLE: 8,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.INT8: 1,
    TensorProto.INT16: 2,
    TensorProto.INT32: 4,
    TensorProto.INT64: 8,
    TensorProto.UINT8: 1,
}
"""Types whose tensors have a known size; those of any other type are kept whole."""


@dataclass(frozen=True, kw_only=True)
class _Field:
    """A field of a message: where it begins, and where its value does."""

    number: int
    start: int
    value: int
    end: int
    delimited: bool


def write_outline(file: BinaryIO, size_bytes: int, target: Path, *, left_out: str, large_bytes: int) -> None:
    """Write an ONNX model to `target` whose large weights are in a file beside it, as a hole that has their size.

    The model is otherwise the one in `file`, and what refers to weights outside it stays as it is.

    Args:
        size_bytes: The size of `file`.
        left_out: The name of the file beside `target`; one that no training can have written into its model.
        large_bytes: Tensors larger than this are left out.

    Raises:
        InvalidModelFileError: it is no ONNX model, or one of its weights is not as large as its shape says.
    """
    model = onnx.ModelProto()
    hole_bytes = 0
    try:
        for field in _fields(file, 0, size_bytes):
            if field.number != _GRAPH_OF_MODEL or not field.delimited:
                model.MergeFromString(_bytes(file, field.start, field.end))
                continue
            for part in _fields(file, field.value, field.end):
                if part.number != _INITIALIZER_OF_GRAPH or part.end - part.value <= large_bytes:
                    model.graph.MergeFromString(_bytes(file, part.start, part.end))
                    continue
                tensor = model.graph.initializer.add()
                hole_bytes += _add_tensor(file, part, tensor, left_out=left_out, offset=hole_bytes)
    except (DecodeError, ValueError) as error:
        raise InvalidModelFileError(target.name, str(error)[:300]) from error
    target.write_bytes(model.SerializeToString())
    with (target.parent / left_out).open("wb") as weights:
        weights.truncate(hole_bytes)


def _add_tensor(file: BinaryIO, field: _Field, tensor: onnx.TensorProto, *, left_out: str, offset: int) -> int:
    """Read a large tensor without its raw data, where it has any; how many bytes were left out."""
    raw: _Field | None = None
    for part in _fields(file, field.value, field.end):
        if part.number == _RAW_DATA_OF_TENSOR and part.delimited:
            raw = part
        else:
            tensor.MergeFromString(_bytes(file, part.start, part.end))
    if raw is None:
        return 0
    size_bytes = raw.end - raw.value
    element_bytes = _ELEMENT_BYTES.get(tensor.data_type)
    if element_bytes is None or tensor.data_location == TensorProto.EXTERNAL:
        tensor.raw_data = _bytes(file, raw.value, raw.end)
        return 0
    if size_bytes != element_bytes * math.prod(tensor.dims):
        raise ValueError(f"the data of tensor {tensor.name!r} has {size_bytes} bytes, not what its shape says")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", left_out), ("offset", str(offset)), ("length", str(size_bytes))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return size_bytes


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[_Field]:
    """The fields of the message between two offsets; the file may be read elsewhere between two of them."""
    position = start
    while position < end:
        tag, value = _varint(file, position, end)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            _, stop = _varint(file, value, end)
        elif kind == _LENGTH_DELIMITED:
            length, value = _varint(file, value, end)
            stop = value + length
        elif kind in _FIXED_BYTES:
            stop = value + _FIXED_BYTES[kind]
        else:
            raise ValueError(f"a field of kind {kind} at byte {position}")
        if number == 0 or stop > end:
            raise ValueError(f"the field at byte {position} is damaged")
        yield _Field(number=number, start=position, value=value, end=stop, delimited=kind == _LENGTH_DELIMITED)
        position = stop


def _varint(file: BinaryIO, position: int, end: int) -> tuple[int, int]:
    """A number and the offset behind it."""
    found = 0
    file.seek(position)
    for index, byte in enumerate(file.read(min(10, end - position))):
        found |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return found, position + index + 1
    raise ValueError(f"the number at byte {position} does not end")


def _bytes(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    found = file.read(end - start)
    if len(found) != end - start:
        raise ValueError("the file is shorter than it should be")
    return found
