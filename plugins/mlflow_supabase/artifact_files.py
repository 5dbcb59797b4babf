"""Find the local files to log, spool streams to a temporary file, and show upload progress."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mlflow.environment_variables import MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE
from mlflow.utils.file_utils import ArtifactProgressBar

from mlflow_supabase.artifact_errors import invalid
from supabase_bridge.core.errors import os_errors
from supabase_bridge.storage.base import Body, Progress
from supabase_bridge.storage.local_files import discard, open_for_reading

IN_MEMORY_BYTES = 256 * 1024
"""Longer content is not held in memory."""

_logger = logging.getLogger(__name__)


@contextmanager
def upload_progress(file: Path) -> Iterator[Progress]:
    """Show MLflow's progress bar, which appears from 500 MB on unless MLflow's settings disable it.

    Raises:
        LocalFileError: the file was deleted.
    """
    step: int = MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE.get()
    waiting = 0
    with os_errors(file):
        size_bytes = file.stat().st_size

    with ArtifactProgressBar.chunks(size_bytes, f"Uploading {file}", step) as bar:

        def advance(size_bytes: int) -> None:
            nonlocal waiting
            waiting += size_bytes
            while waiting >= step:
                waiting -= step
                bar.update()

        yield advance
        if waiting:
            bar.update()


class SpooledFile:
    """Collect a stream in memory, or in a temporary file once it is long; the end of the block deletes the file.

    `tempfile.SpooledTemporaryFile` does not fit: its file has no path on POSIX, and a resumable upload opens a path.
    """

    def __init__(self) -> None:
        self._pieces = bytearray()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> SpooledFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            discard(Path(self._file.name))

    @property
    def in_memory(self) -> bool:
        return self._file is None

    def add(self, piece: bytes) -> None:
        """Add the next piece.

        Raises:
            LocalFileError: the temporary file cannot be written.
        """
        if self._file is None:
            self._pieces += piece
            if len(self._pieces) <= IN_MEMORY_BYTES:
                return
            piece, self._pieces = bytes(self._pieces), bytearray()
        with os_errors(Path(tempfile.gettempdir())):
            if self._file is None:
                self._file = tempfile.NamedTemporaryFile(prefix="supabase-", delete=False)  # noqa: SIM115 - see __exit__
            self._file.write(piece)

    def body(self) -> Body:
        """Return all of it, for an upload inside the block.

        Raises:
            LocalFileError: the temporary file cannot be written.
        """
        if self._file is None:
            return bytes(self._pieces)
        path = Path(self._file.name)
        with os_errors(path):
            self._file.flush()
        return path


def check_file(path: Path) -> None:
    """Check that `path` leads to a regular file, also through links: opening a pipe could block forever.

    Raises:
        MlflowException: it does not.
    """
    with _refusals():
        regular = path.is_file()
    if not regular:
        raise invalid(f"{path} cannot be logged: it is missing, a broken link, or not a regular file")


def files_below(root: Path) -> list[Path]:
    """Return every file below a directory, sorted; links to folders are not followed, as in MLflow's repositories.

    Raises:
        MlflowException: a file cannot be logged, or a folder cannot be listed.
    """
    found = []
    with _refusals():
        if not root.is_dir():
            raise invalid(f"{root} is not a directory")
        for directory, folders, names in os.walk(root, onerror=_raise):
            for folder in [Path(directory, name) for name in folders]:
                if folder.is_symlink():
                    _logger.warning("A link to a folder is not followed", extra={"path": str(folder)})
            found += [Path(directory, name) for name in names]
    for path in found:
        check_file(path)
    return sorted(found)


def body_of(path: Path) -> Body:
    """Return the body to upload: the bytes of a small file, so that a concurrent writer cannot change what was hashed.

    Raises:
        LocalFileError: it cannot be read.
    """
    with os_errors(path), open_for_reading(path.resolve()) as file:
        data = file.read(IN_MEMORY_BYTES + 1)
    return data if len(data) <= IN_MEMORY_BYTES else path


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise an OSError of the block as MLflow's exception."""
    try:
        yield
    except OSError as error:
        raise invalid(f"{error.filename} cannot be read: {(error.strerror or str(error)).lower()}") from error


def _raise(error: OSError) -> None:
    raise error
