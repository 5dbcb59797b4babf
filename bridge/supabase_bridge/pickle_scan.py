"""What loading a PyTorch file would import, found without loading it; beyond a state_dict's needs it is refused.

The scanner picklescan lists the imports of each pickle. What it leaves open is closed here: a pickle must be whole, an
archive must mean the same to every reader, and an import that nobody knows counts as unsafe.

Source: docs.pytorch.org/docs/stable/notes/serialization.html; PEP 3154 and pickletools for the opcodes.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Collection, Iterator
from typing import IO

from picklescan.scanner import SafetyLevel, scan_pickle_bytes

from supabase_bridge.errors import UnsafePickleError

_PICKLE_LIMIT_BYTES = 16_000_000
_NESTING_LIMIT = 3
_MEMBERS_LIMIT = 100_000
_ZIP_START = b"PK\x03\x04"
_END = struct.Struct("<4s8xLLH")
_END_LOCATOR = struct.Struct("<4s4xQ4x")
_LARGE_END = struct.Struct("<4sQ28xQQ")
_LARGE_END_REST_BYTES = 44
_IN_LARGE_END = 0xFFFFFFFF
_PICKLE_SUFFIXES = (".pkl", ".pickle")
_CODE_SUFFIXES = (".so", ".dll", ".dylib", ".pyd")
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


def scan(file: IO[bytes], name: str, *, allowed: Collection[str]) -> None:
    """Refuse a PyTorch file whose loading could run code. Nothing of it is loaded.

    Args:
        name: The file's name.
        allowed: Further imports that are accepted, as `module.name`; `module.*` is all there is in and below a module.

    Raises:
        UnsafePickleError: it names another import, holds machine code, or is nothing that torch.save or torch.export
            writes.
    """
    start = file.read(len(_ZIP_START))
    file.seek(0)
    if start == _ZIP_START:
        _scan_archive(file, name, frozenset(allowed), depth=1)
    elif start:
        _scan_pickles(file, name, frozenset(allowed))
    else:
        raise UnsafePickleError(name, "it is empty")


def _scan_archive(file: IO[bytes], name: str, allowed: frozenset[str], *, depth: int) -> None:
    """Scan a zip of torch.save's (one pickle and the tensors' bytes) or torch.export's (others inside it)."""
    if depth > _NESTING_LIMIT:
        raise UnsafePickleError(name, f"archives in it are nested more than {_NESTING_LIMIT} deep")
    found = False
    try:
        _check_end(file, name)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            # PyTorch's reader compares names without case; of two that are alike each reader may take another.
            if len({member.filename.lower() for member in members}) < len(members):
                raise UnsafePickleError(name, "it has two members of one name")
            if len(members) > _MEMBERS_LIMIT:
                raise UnsafePickleError(name, f"it has more than {_MEMBERS_LIMIT} members")
            for member in members:
                found = _scan_member(archive, member, name, allowed, depth) or found
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise UnsafePickleError(name, f"it is a damaged archive: {str(error)[:200]}") from error
    if not found and not name.lower().endswith(".pt2"):
        raise UnsafePickleError(name, "there is no pickle in it, which every file of torch.save has")


def _check_end(file: IO[bytes], name: str) -> None:
    """Refuse an archive whose end leaves it to the reader where its directory is.

    Of a directory that is not right before the end, zipfile reads what is, and PyTorch's reader what the end names;
    so what is scanned would not be what is loaded. Source: PKWARE's APPNOTE, sections 4.3.14 to 4.3.16.
    """
    end = file.seek(-_END.size, io.SEEK_END)
    signature, size, begin, comment = _END.unpack(file.read(_END.size))
    whole = signature == b"PK\x05\x06" and comment == 0
    before = end - _END_LOCATOR.size - _LARGE_END.size
    if whole and before >= 0:
        file.seek(before)
        large, rest, large_size, large_begin = _LARGE_END.unpack(file.read(_LARGE_END.size))
        locator, place = _END_LOCATOR.unpack(file.read(_END_LOCATOR.size))
        if locator == b"PK\x06\x07":
            agree = size in {large_size, _IN_LARGE_END} and begin in {large_begin, _IN_LARGE_END}
            whole = (large, rest, place) == (b"PK\x06\x06", _LARGE_END_REST_BYTES, before) and agree
            end, size, begin = before, large_size, large_begin
    if not whole or begin + size != end:
        raise UnsafePickleError(name, "its end is not that of an archive as torch.save writes it")
    file.seek(0)


def _scan_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, allowed: frozenset[str], depth: int
) -> bool:
    """Scan what a reader would take for more than bytes; True where there was such a thing."""
    inside, lower = f"{name}:{member.filename}", member.filename.lower()
    if lower.endswith(_CODE_SUFFIXES):
        raise UnsafePickleError(name, f"{member.filename} is machine code")
    if lower.endswith(_PICKLE_SUFFIXES):
        with archive.open(member) as stream:
            _scan_whole_pickle(_bounded(stream, inside), inside, allowed)
        return True
    with archive.open(member) as stream:
        if stream.read(len(_ZIP_START)) != _ZIP_START:
            return False
        if member.compress_type != zipfile.ZIP_STORED:
            raise UnsafePickleError(name, f"{member.filename} is a compressed archive within the archive")
        stream.seek(0)
        _scan_archive(stream, inside, allowed, depth=depth + 1)
    return True


def _scan_pickles(file: IO[bytes], name: str, allowed: frozenset[str]) -> None:
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


def _scan_whole_pickle(data: bytes, name: str, allowed: frozenset[str]) -> None:
    stream = io.BytesIO(data)
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
