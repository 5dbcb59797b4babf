"""From an object to a local file that is whole and as recorded, or is not there."""

from __future__ import annotations

import hashlib
import uuid
from datetime import timedelta
from pathlib import Path

from supabase_bridge.consumer.reading import Deadline, Reader
from supabase_bridge.documents import FileRecord
from supabase_bridge.errors import CorruptObjectError
from supabase_bridge.object_store.hashed_output import HashedOutput
from supabase_bridge.object_store.local_files import discard, local_error

_READ_ONLY = 0o444
_LONGEST = timedelta(days=30)
"""A forged record may say any size; what a lock, a timer and a socket wait for has a limit."""


def time_for(size_bytes: int, *, timeout: timedelta, minimum_rate: int) -> timedelta:
    """How long a body may take: `timeout`, and as much as its bytes need at the lowest rate (bytes in a second).

    No more than 30 days, whatever size is recorded.
    """
    bounded = min(size_bytes, int(_LONGEST.total_seconds()) * minimum_rate)
    return min(timeout + timedelta(seconds=bounded / minimum_rate), _LONGEST)


def download(reader: Reader, key: str, record: FileRecord, path: Path, *, deadline: Deadline) -> None:
    """Write an object to `path`, over what is there and read-only, once its bytes are known to be those recorded.

    Raises:
        ObjectNotFoundError: there is no such object.
        CorruptObjectError: it is not as recorded; `path` was not touched.
        DeadlineExceededError: it took too long.
        LocalFileError: the file cannot be written.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with HashedOutput(temporary) as output:
            for piece in reader.stream(key, size_bytes=record.size_bytes, deadline=deadline):
                output.write(piece)
            _compare(reader, key, record, output.record().sha256)
        temporary.chmod(_READ_ONLY)
        temporary.replace(path)
    except OSError as error:
        raise local_error(path, error) from error
    finally:
        discard(temporary)


def check(reader: Reader, key: str, record: FileRecord, *, deadline: Deadline) -> None:
    """Read an object to its end, keep nothing, and hold it against its record.

    Raises:
        ObjectNotFoundError: there is no such object.
        CorruptObjectError: it is not as recorded.
        DeadlineExceededError: it took too long.
    """
    digest = hashlib.sha256()
    for piece in reader.stream(key, size_bytes=record.size_bytes, deadline=deadline):
        digest.update(piece)
    _compare(reader, key, record, digest.hexdigest())


def read(reader: Reader, key: str, record: FileRecord, *, deadline: Deadline) -> bytes:
    """The content of a small object.

    Raises: as `check` does.
    """
    data = b"".join(reader.stream(key, size_bytes=record.size_bytes, deadline=deadline))
    _compare(reader, key, record, FileRecord.of(data).sha256)
    return data


def _compare(reader: Reader, key: str, record: FileRecord, found: str) -> None:
    if found != record.sha256:
        raise CorruptObjectError(reader.name, key, f"SHA-256 {record.sha256}", f"SHA-256 {found}")
