"""What loading a PyTorch file would import or run, found without loading it; beyond a state_dict's needs it is refused.

An archive must mean the same to every reader, and whatever a reader could unpickle must be harmless.

Source: docs.pytorch.org/docs/stable/notes/serialization.html; torch/serialization.py and torch/export/pt2_archive.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Collection
from typing import IO

from supabase_bridge import exported_program_scan as exported
from supabase_bridge.errors import UnsafePickleError
from supabase_bridge.pickle_imports import scan_one_pickle, scan_pickles

_PROGRAM_LIMIT_BYTES = 100_000_000
_NESTING_LIMIT = 3
_MEMBERS_LIMIT = 100_000
_ZIP_START = b"PK\x03\x04"
_ZIP_END = b"PK\x05\x06"
_ZIP_END_SEARCHED_BYTES = 80_000
"""PyTorch's reader looks so far back from a file's end, in blocks; Python's a little less."""
_END = struct.Struct("<4s8xLLH")
_END_LOCATOR = struct.Struct("<4s4xQ4x")
_LARGE_END = struct.Struct("<4sQ28xQQ")
_LARGE_END_REST_BYTES = 44
_IN_LARGE_END = 0xFFFFFFFF
_PICKLE_SUFFIXES = (".pkl", ".pickle")
_CODE_SUFFIXES = (".so", ".dll", ".dylib", ".pyd")
_LOADED_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_LOADED_PREFIXES = ("serialized_", "opaque_obj_", "custom_obj_")


def scan(file: IO[bytes], name: str, *, allowed: Collection[str]) -> None:
    """Refuse a PyTorch file whose loading could run code. Nothing of it is loaded.

    Args:
        name: The file's name.
        allowed: Further imports that are accepted, as `module.name`; `module.*` is all there is in and below a module.

    Raises:
        UnsafePickleError: it names another import, holds machine code, or is nothing that torch.save or torch.export
            writes.
    """
    _scan_loaded(file, name, frozenset(allowed), depth=1)


def _scan_loaded(file: IO[bytes], name: str, allowed: frozenset[str], *, depth: int) -> None:
    """Scan what is given to torch.load or torch.export.load, as each of their readers would take it."""
    start = file.read(tarfile.BLOCKSIZE)
    if not start:
        raise UnsafePickleError(name, "it is empty")
    if _is_tar(start):
        raise UnsafePickleError(name, "it is a tar archive, which torch.load would unpickle unseen")
    if start.startswith(_ZIP_START):
        file.seek(0)
        _scan_archive(file, name, allowed, depth=depth)
        return
    end = file.seek(0, io.SEEK_END)
    file.seek(max(0, end - _ZIP_END_SEARCHED_BYTES))
    if _ZIP_END in file.read(_ZIP_END_SEARCHED_BYTES):
        raise UnsafePickleError(name, "it begins as a pickle and ends as an archive, so each reader takes another part")
    file.seek(0)
    scan_pickles(file, name, allowed)


def _is_tar(start: bytes) -> bool:
    """Whether a file begins as a tar archive, which torch.load of a file tries before it unpickles."""
    try:
        tarfile.TarInfo.frombuf(start, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


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
            unpickled = _unpickled(archive, members, name)
            for member in members:
                found = _scan_member(archive, member, name, allowed, depth, member in unpickled) or found
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


def _unpickled(archive: zipfile.ZipFile, members: Collection[zipfile.ZipInfo], name: str) -> set[zipfile.ZipInfo]:
    """The members that a reader gives to torch.load or pickle.

    Among an exported program's weights these are all but the ones of which a description says that they are bare bytes.
    """
    raw: set[str] = set()
    unpickled: set[str] = set()
    payloads = {member for member in members if exported.is_payload(member.filename.lower())}
    described = {member for member in payloads if member.filename.lower().endswith(".json")}
    for member in described:
        with archive.open(member) as stream:
            some, others = exported.raw_payloads(_program(stream, member.filename), f"{name}:{member.filename}")
        raw |= some
        unpickled |= others
    return {
        member
        for member in members
        if _is_loaded(member.filename.lower())
        or (member in payloads - described and _basename(member) not in raw - unpickled)
    }


def _basename(member: zipfile.ZipInfo) -> str:
    return member.filename.lower().rpartition("/")[2]


def _is_loaded(member: str) -> bool:
    if exported.is_program(member):
        return False
    return member.endswith(_LOADED_SUFFIXES) or member.rpartition("/")[2].startswith(_LOADED_PREFIXES)


def _scan_member(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    name: str,
    allowed: frozenset[str],
    depth: int,
    is_unpickled: bool,
) -> bool:
    """Scan what a reader would take for more than bytes; True where there was such a thing."""
    inside, lower = f"{name}:{member.filename}", member.filename.lower()
    if lower.endswith(_CODE_SUFFIXES):
        raise UnsafePickleError(name, f"{member.filename} is machine code")
    if "/aotinductor/" in lower:
        raise UnsafePickleError(
            name, f"{member.filename} is for a compiled model, which is built and run when it is loaded"
        )
    with archive.open(member) as stream:
        if lower.endswith(_PICKLE_SUFFIXES):
            scan_one_pickle(stream, inside, allowed)
            return True
        if exported.is_program(lower):
            exported.scan_program(_program(stream, inside), inside)
            return False
        is_archive = stream.read(len(_ZIP_START)) == _ZIP_START
        if not is_archive and (not is_unpickled or member.file_size == 0):
            return False
        if is_archive and member.compress_type != zipfile.ZIP_STORED:
            raise UnsafePickleError(name, f"{member.filename} is a compressed archive within the archive")
        stream.seek(0)
        _scan_loaded(stream, inside, allowed, depth=depth + 1)
    return True


def _program(stream: IO[bytes], name: str) -> bytes:
    data = stream.read(_PROGRAM_LIMIT_BYTES + 1)
    if len(data) > _PROGRAM_LIMIT_BYTES:
        raise UnsafePickleError(name, f"it is larger than {_PROGRAM_LIMIT_BYTES} bytes")
    return data
