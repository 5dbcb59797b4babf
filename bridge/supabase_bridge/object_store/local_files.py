"""Local files written so that they appear whole or not at all, even after a power cut."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from supabase_bridge.errors import LocalFileError

PIECE_BYTES = 1024 * 1024
_CAREFULLY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_ABANDONED_AFTER = timedelta(days=1)


def local_error(path: Path, error: OSError) -> LocalFileError:
    """The system's complaint about a file, in its own words."""
    return LocalFileError(path, (error.strerror or str(error)).lower())


def pieces_of(path: Path) -> Iterator[bytes]:
    """A file's bytes in constant memory.

    Raises:
        LocalFileError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield from pieces_of_open(file)
    except OSError as error:
        raise local_error(path, error) from error


def pieces_of_open(file: BinaryIO) -> Iterator[bytes]:
    """What is left of an open file, in constant memory; OSErrors come out as they are."""
    while piece := file.read(PIECE_BYTES):
        yield piece


def open_for_reading(path: Path) -> BinaryIO:
    """Open a file that others may have put there: no link is followed, and a pipe does not keep us waiting.

    OSErrors come out as they are.
    """
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | _CAREFULLY))


def is_abandoned(status: os.stat_result) -> bool:
    """Whether a temporary file or directory is so old, a day, that whoever made it was killed."""
    return time.time() - status.st_mtime > _ABANDONED_AFTER.total_seconds()


def write_all(file: FileIO, data: bytes) -> None:
    """Write to an unbuffered file; the system may take less than it was given at once."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def metered(pieces: Iterable[bytes], progress: Callable[[int], None]) -> Iterator[bytes]:
    """The same pieces; `progress` gets the size of each one after it was used."""
    for piece in pieces:
        yield piece
        progress(len(piece))


def write_flushed(path: Path, pieces: Iterable[bytes]) -> str:
    """Write a new file and flush it to the disk; return the SHA-256 of what was written. A failure leaves no file.

    Raises:
        LocalFileError: it cannot be written.
    """
    digest = hashlib.sha256()
    try:
        with path.open("xb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        discard(path)
        raise local_error(path, error) from error
    except BaseException:
        discard(path)
        raise
    return digest.hexdigest()


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory of our own that is gone, with what is in it, at the end of the block.

    Raises:
        LocalFileError: it cannot be made.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="supabase-bridge-")
    except OSError as error:
        raise local_error(Path(error.filename or "a temporary directory"), error) from error
    with made as directory:
        yield Path(directory)


def discard(path: Path) -> None:
    """Remove a temporary file, if it is there and can be removed."""
    with suppress(OSError):
        path.unlink()


def flush_directories(directory: Path, *, up_to: Path) -> None:
    """Flush the entries of a directory and of those above it, up to and with `up_to`, to the disk.

    Raises:
        LocalFileError: the disk does not take them.
    """
    while True:
        try:
            descriptor = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            pass  # It was pruned after its last object was deleted: nothing is left to keep.
        except OSError as error:
            raise local_error(directory, error) from error
        if directory == up_to:
            return
        directory = directory.parent


def prune_directories(directory: Path, *, up_to: Path) -> None:
    """Remove empty directories upwards, below `up_to`; `rmdir` refuses one that somebody has just put a file into."""
    while directory != up_to:
        try:
            directory.rmdir()
        except OSError:
            return
        directory = directory.parent
