"""What a pickle would import, found without unpickling it; what no state_dict needs is refused.

The scanner picklescan lists the imports. What it leaves open is closed here: a pickle must be whole, and an import that
nobody knows counts as unsafe.

Source: PEP 3154 and pickletools for the opcodes.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Iterator
from typing import IO

from picklescan.scanner import SafetyLevel, scan_pickle_bytes

from supabase_bridge.errors import UnsafePickleError

_PICKLE_LIMIT_BYTES = 16_000_000
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PICKLES = 5
"""torch.save before 1.6 wrote a magic number, a version, what the system is like, the object and the storages' keys."""

_DTYPES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128 float8_e4m3fn float8_e5m2 "
    "Size Tensor device UntypedStorage"
)
_REBUILT = (
    "_rebuild_tensor _rebuild_tensor_v3 _rebuild_parameter _rebuild_parameter_with_state _rebuild_qtensor "
    "_rebuild_sparse_tensor"
)
_OF_A_STATE_DICT = frozenset(
    {
        *(("torch", name) for name in _DTYPES.split()),
        *(("torch._utils", name) for name in _REBUILT.split()),
        ("torch.nn.parameter", "Parameter"),
        ("torch.storage", "UntypedStorage"),
        ("torch.storage", "TypedStorage"),
        ("torch.serialization", "_get_layout"),
        ("collections", "Counter"),
        ("builtins", "set"),
        ("builtins", "bytearray"),
        ("builtins", "complex"),
        ("__builtin__", "set"),
        ("__builtin__", "bytearray"),
        ("__builtin__", "complex"),
        ("_codecs", "encode"),
    }
)


def scan_pickles(file: IO[bytes], name: str, allowed: frozenset[str]) -> None:
    """Scan a file that begins with a pickle: torch.save's of before 1.6, or a pickle and nothing else."""
    data = io.BytesIO(file.read(_PICKLE_LIMIT_BYTES))
    first = _next_pickle(data, name)
    if not _is_legacy_magic(first):
        if data.read(1) or file.read(1):
            raise UnsafePickleError(name, "it is no file of torch.save's: something follows its first pickle")
        _scan_globals(first, name, allowed)
        return
    for _ in range(_LEGACY_PICKLES - 1):
        _scan_globals(_next_pickle(data, name), name, allowed)


def scan_one_pickle(file: IO[bytes], name: str, allowed: frozenset[str]) -> None:
    """Scan a pickle and nothing else, as an archive holds it."""
    stream = io.BytesIO(_bounded(file, name))
    pickled = _next_pickle(stream, name)
    if stream.read(1):
        raise UnsafePickleError(name, "something follows the pickle's end")
    _scan_globals(pickled, name, allowed)


def _next_pickle(stream: io.BytesIO, name: str) -> bytes:
    """The bytes of the next pickle, which must be whole."""
    begin = stream.tell()
    try:
        for opcode, _, _ in _opcodes(stream):
            if opcode.startswith("EXT"):
                raise UnsafePickleError(
                    name, "it refers to Python's registry of extensions, so nobody can tell to what"
                )
    except UnsafePickleError:
        raise
    except (ValueError, EOFError, IndexError, OverflowError, MemoryError, Warning) as error:
        # Python warns of odd escapes in a pickle's text, which is an error where the program makes warnings errors.
        problem = f"it is neither an archive nor a pickle of at most {_PICKLE_LIMIT_BYTES} bytes ({str(error)[:100]})"
        raise UnsafePickleError(name, problem) from error
    return stream.getvalue()[begin : stream.tell()]


def _opcodes(stream: io.BytesIO) -> Iterator[tuple[str, object, int | None]]:
    for opcode, argument, position in pickletools.genops(stream):
        yield opcode.name, argument, position


def _is_legacy_magic(pickled: bytes) -> bool:
    operations = [(name, argument) for name, argument, _ in _opcodes(io.BytesIO(pickled)) if name != "PROTO"]
    return [argument for _, argument in operations] == [_LEGACY_MAGIC, None]


def _scan_globals(pickled: bytes, name: str, allowed: frozenset[str]) -> None:
    """Refuse a pickle by what it imports."""
    try:
        result = scan_pickle_bytes(io.BytesIO(pickled), name, multiple_pickles=False)
    except ValueError as error:
        raise UnsafePickleError(name, f"its imports cannot be told: {error}") from error
    if result.scan_err:
        raise UnsafePickleError(name, "its imports cannot be told")
    refused = sorted(
        f"{item.module}.{item.name}"
        for item in result.globals
        if item.safety is not SafetyLevel.Innocuous
        and (item.module, item.name) not in _OF_A_STATE_DICT
        and not _is_allowed(f"{item.module}.{item.name}", allowed)
    )
    if refused:
        shown = ", ".join(repr(text[:80]) for text in refused[:5])
        raise UnsafePickleError(
            name,
            f"loading it would import {shown}, which no state_dict needs. Save model.state_dict() instead, or name it "
            "in allowed_pickle_globals in the settings if it is yours",
        )


def _is_allowed(name: str, allowed: frozenset[str]) -> bool:
    modules = [entry.removesuffix("*") for entry in allowed if entry.endswith(".*")]
    return name in allowed or name.startswith(tuple(modules))


def _bounded(stream: IO[bytes], name: str) -> bytes:
    data = stream.read(_PICKLE_LIMIT_BYTES + 1)
    if len(data) > _PICKLE_LIMIT_BYTES:
        raise UnsafePickleError(name, f"the pickle is larger than {_PICKLE_LIMIT_BYTES} bytes")
    return data
