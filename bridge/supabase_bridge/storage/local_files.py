"""Write local files atomically, open files of others safely, and lock files between processes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

from supabase_bridge.core.errors import LocalFileError, os_errors

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no lock that ends with its process
    fcntl = None  # type: ignore[assignment]  # mypy knows the module of this platform only

PIECE_BYTES = 1024 * 1024
_SAFE_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def local_error(path: Path, error: OSError) -> LocalFileError:
    """Return the error for a file from the operating system's message."""
    return LocalFileError(path, (error.strerror or str(error)).lower())


def pieces_of(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes in constant memory; raises LocalFileError."""
    with os_errors(path), path.open("rb") as file:
        yield from pieces_of_open(file)


def pieces_of_open(file: BinaryIO) -> Iterator[bytes]:
    """Yield the rest of an open file in constant memory; raises OSError."""
    while piece := file.read(PIECE_BYTES):
        yield piece


def open_for_reading(path: Path) -> BinaryIO:
    """Open a file that others may have created: links are not followed, and a pipe does not block; raises OSError."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | _SAFE_FLAGS))


def is_abandoned(status: os.stat_result) -> bool:
    """Return True if a temporary file or directory is older than a day, so that its process must have been killed."""
    return time.time() - status.st_mtime > timedelta(days=1).total_seconds()


def write_flushed(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a new file and flush it to the disk; a failure raises LocalFileError and leaves no file."""
    try:
        with os_errors(path), path.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        discard(path)
        raise


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Create a private directory and delete it, with its content, at the end of the block; raises LocalFileError."""
    with os_errors(Path(tempfile.gettempdir())):
        made = tempfile.TemporaryDirectory(prefix="supabase-bridge-")
    with made as directory:
        yield Path(directory)


@contextmanager
def file_lock(path: Path, *, wait_seconds: float = 0, remove: bool = False) -> Iterator[bool]:
    """Hold the advisory lock of a file, which is created where it is missing.

    The operating system releases the lock when its process ends, also when it is killed.

    Args:
        remove: Delete the file at the end of the block, while the lock is held.

    Yields:
        True while the lock is held. False if another process, or another thread of this one, kept it longer than
        `wait_seconds`, or if no lock can be made: what it guards must be safe without it.
    """
    descriptor = _lock(path, time.monotonic() + wait_seconds)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            if remove:
                discard(path)
            os.close(descriptor)


def _lock(path: Path, until: float) -> int | None:
    while fcntl is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        except OSError:
            return None
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have deleted the file: a lock on a file without a name excludes no one.
            if os.fstat(descriptor).st_nlink:
                return descriptor
        os.close(descriptor)
        if time.monotonic() >= until:
            return None
        time.sleep(0.02)
    return None


def discard(path: Path) -> None:
    """Delete a temporary file; a failure is ignored."""
    with suppress(OSError):
        path.unlink()
