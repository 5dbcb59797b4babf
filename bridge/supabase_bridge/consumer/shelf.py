"""Local copies of releases, each in a directory named by its content, shared by processes and bounded in size."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from supabase_bridge.consumer.locking import exclusive
from supabase_bridge.consumer.release import Release
from supabase_bridge.documents import FileRecord
from supabase_bridge.object_store.local_files import (
    discard,
    is_abandoned,
    local_error,
    open_for_reading,
    pieces_of_open,
)

Fetch: TypeAlias = Callable[[str, FileRecord, Path], None]
"""Writes a file of the release, by its name and record, to a path: whole and as recorded, or not at all."""

_PRIVATE = 0o700

_logger = logging.getLogger(__name__)


class Shelf:
    """Releases below one directory; any number of processes and threads may use it at once.

    A file is believed no further than its bytes: each one is hashed before it is given out, and a damaged one is
    fetched again. Files are read-only, since DESTs may share them by hard links.

    Args:
        directory: Made when the first release comes.
        limit_bytes: All releases together are not larger; those used least recently go first. The one that is being
            given out stays, however large it is.
    """

    def __init__(self, directory: Path, *, limit_bytes: int) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes

    def holds(self, size_bytes: int) -> bool:
        """Whether a release of this size can be kept at all: it fits, and the directory can be written."""
        if size_bytes > self._limit_bytes:
            return False
        try:
            self._make()
        except OSError as error:
            facts = {"path": str(self._directory), "reason": error.strerror}
            _logger.warning("Nothing can be kept in the cache", extra=facts)
            return False
        return os.access(self._directory, os.W_OK)

    def take(self, release: Release, fetch: Fetch, use: Callable[[Path], None], *, wait_seconds: float) -> Path:
        """The directory with exactly the files of a release; what is missing or damaged is fetched.

        `use` gets it before another process may remove it.

        One process fetches, the others wait for it, but no longer than `wait_seconds`: then they fetch as well, which
        costs time and harms nothing.

        Raises:
            BridgeError: what `fetch` raises; files that were fetched before that stay, and are not fetched again.
            LocalFileError: the directory cannot be written.
        """
        directory = self._directory / release.content_id
        with suppress(OSError):  # Said below, where it is needed.
            self._make()
        with exclusive(self._lock_of(directory), wait_seconds=wait_seconds):
            try:
                directory.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
                for name, record in release.files.items():
                    path = directory / name
                    if not _is_as_recorded(path, record):
                        fetch(name, record, path)
                os.utime(directory)
                use(directory)
            except OSError as error:
                raise local_error(directory, error) from error
        self._make_room(keep=directory)
        return directory

    def _make(self) -> None:
        """Make the directory, before a lock in it does: for nobody else, whatever may be read in the bucket."""
        self._directory.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)

    def _lock_of(self, directory: Path) -> Path:
        return directory.with_name(f"{directory.name}.lock")

    def _make_room(self, *, keep: Path) -> None:
        """Delete releases that were used least recently until the rest fits, and what killed processes left behind."""
        found: list[tuple[float, int, Path]] = []
        with suppress(OSError):
            for path in self._directory.iterdir():
                with suppress(OSError):
                    if path.suffix == ".gone":
                        shutil.rmtree(path, ignore_errors=True)
                    elif path.is_dir():
                        found.append((path.stat().st_mtime, _size(path), path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._limit_bytes:
                break
            if path != keep and self._remove(path):
                total -= size

    def _remove(self, directory: Path) -> bool:
        """Delete a release unless it is being taken; nobody sees half of it, since it loses its name first."""
        lock = self._lock_of(directory)
        with exclusive(lock, wait_seconds=0) as held:
            if not held:
                return False
            gone = directory.with_name(f"{uuid.uuid4().hex}.gone")
            try:
                directory.rename(gone)
            except OSError as error:
                facts = {"path": str(directory), "reason": error.strerror}
                _logger.warning("A release cannot be removed from the cache", extra=facts)
                return False
            discard(lock)
        shutil.rmtree(gone, ignore_errors=True)
        return True


def _is_as_recorded(path: Path, record: FileRecord) -> bool:
    """Whether a local file has exactly the recorded bytes; what a killed download left beside it is removed."""
    for part in _parts_beside(path):
        discard(part)
    try:
        with open_for_reading(path) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size != record.size_bytes:
                return False
            digest = hashlib.sha256()
            for piece in pieces_of_open(file):
                digest.update(piece)
    except FileNotFoundError:
        return False
    except OSError as error:
        _logger.warning("A cached file cannot be read", extra={"path": str(path), "reason": str(error)})
        return False
    return digest.hexdigest() == record.sha256


def _parts_beside(path: Path) -> Iterator[Path]:
    with suppress(OSError):
        for part in path.parent.glob(".*.part"):
            with suppress(OSError):
                if is_abandoned(part.stat()):
                    yield part


def _size(directory: Path) -> int:
    """All files in a directory together; one that goes away meanwhile counts nothing."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(OSError):
            status = path.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total
