"""A cache of released files by content: blobs by SHA-256, and releases as directories of hard links to them."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from supabase_bridge.client.release import Release
from supabase_bridge.core.documents import FileRecord
from supabase_bridge.storage.base import for_each
from supabase_bridge.storage.hashing import HashingWriter, hash_pieces
from supabase_bridge.storage.local_files import (
    discard,
    file_lock,
    is_abandoned,
    local_error,
    open_for_reading,
    pieces_of_open,
)

Fetch: TypeAlias = Callable[[str, Path], None]
"""Writes a file of the release to a path: as recorded, or not at all."""

READ_ONLY = 0o444
_PRIVATE = 0o700

_logger = logging.getLogger(__name__)


class Cache:
    """Files below one directory: `blobs/<sha256>`, and `releases/<content id>/` with links to them.

    Any number of processes and threads may use it at once. Every file is hashed before it is returned, and a damaged
    one is fetched again. Files are read-only, because releases and destinations share them by hard links.

    Args:
        directory: Created with the first file.
        limit_bytes: The total size of all files; the least recently used ones are evicted first. The release that is
            being returned stays, whatever its size.
    """

    def __init__(self, directory: Path, *, limit_bytes: int) -> None:
        self._blobs = directory / "blobs"
        self._releases = directory / "releases"
        self._limit_bytes = limit_bytes

    def has_room(self, size_bytes: int) -> bool:
        """Whether a release of this size can be cached at all: it fits, and the directory can be written."""
        if size_bytes > self._limit_bytes:
            return False
        try:
            _make(self._releases)
        except OSError as error:
            facts = {"path": str(self._releases), "reason": error.strerror}
            _logger.warning("The cache cannot be written", extra=facts)
            return False
        return os.access(self._releases, os.W_OK)

    def directory(self, release: Release, fetch: Fetch, use: Callable[[Path], None], *, wait_seconds: float) -> Path:
        """Return the directory with exactly the files of a release; missing and damaged files are fetched.

        One process fetches while others wait, for `wait_seconds` at most. After that they fetch too, which is slower
        but safe.

        Args:
            use: Called with the directory while no other process may evict it.

        Raises:
            BridgeError: an error of `fetch`; files that were fetched before stay in the cache.
            LocalFileError: the cache cannot be written.
        """
        directory = self._releases / release.content_id
        same_content: dict[str, list[str]] = {}
        for name, record in release.files.items():
            same_content.setdefault(record.sha256, []).append(name)

        def put(sha256: str) -> None:
            # One after the other, so that the second file is a link to the first one's blob.
            for name in same_content[sha256]:
                self._put(directory / name, name, release.files[name], fetch)

        with suppress(OSError):  # Reported below, inside the lock.
            _make(self._releases)
        with file_lock(_lock_of(directory), wait_seconds=wait_seconds):
            try:
                directory.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
                for_each(same_content, put)
                os.utime(directory)
                use(directory)
            except OSError as error:
                raise local_error(directory, error) from error
        self._evict(keep=directory)
        return directory

    def copy_to(self, record: FileRecord, path: Path) -> bool:
        """Copy a file to `path`, which the caller may change; False if the cache does not have it, or damaged.

        Raises:
            LocalFileError: `path` cannot be written.
        """
        blob = self._blobs / record.sha256
        temporary = path.with_name(f".{uuid.uuid4().hex}.part")
        try:
            with HashingWriter(temporary) as output:
                for piece in _pieces_of(blob):
                    output.write(piece)
                found = output.record()
            if found == record:
                temporary.replace(path)
                with suppress(OSError):
                    os.utime(blob)
                return True
        except OSError as error:
            raise local_error(path, error) from error
        finally:
            discard(temporary)
        if found.size_bytes:
            _logger.warning("A cached file was damaged and is fetched again", extra={"path": str(blob)})
            discard(blob)
        return False

    def add(self, record: FileRecord, path: Path) -> None:
        """Copy a file with this record into the cache, if it fits and the cache can be written."""
        if record.size_bytes > self._limit_bytes:
            return
        temporary = self._blobs / f"{uuid.uuid4().hex}.part"
        try:
            _make(self._blobs)
            shutil.copyfile(path, temporary)
            temporary.chmod(READ_ONLY)
            self._evict(needed_bytes=record.size_bytes)
            temporary.replace(self._blobs / record.sha256)
        except OSError as error:
            _logger.warning("A file is not cached", extra={"path": str(self._blobs), "reason": str(error)})
        finally:
            discard(temporary)

    def _put(self, path: Path, name: str, record: FileRecord, fetch: Fetch) -> None:
        """Put a file into a release's directory, unless it is there: from its blob, or fetched and linked as one."""
        if is_as_recorded(path, record):
            return
        blob = self._blobs / record.sha256
        temporary = path.with_name(f".{uuid.uuid4().hex}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # The link keeps the bytes while another process evicts the blob.
            os.link(blob, temporary, follow_symlinks=False)
            if is_as_recorded(temporary, record):
                temporary.replace(path)
                return
        except OSError:
            pass
        finally:
            discard(temporary)
        fetch(name, path)
        new = self._blobs / f"{uuid.uuid4().hex}.part"
        try:
            _make(self._blobs)
            os.link(path, new)
            new.replace(blob)
        except OSError as error:
            _logger.info("A file is cached for its release alone", extra={"path": str(path), "reason": str(error)})
        finally:
            discard(new)

    def _evict(self, *, keep: Path | None = None, needed_bytes: int = 0) -> None:
        """Delete the least recently used files until the rest fits, and leftovers of killed processes."""
        releases, blobs = self._scan()
        while True:
            # Linked files count once.
            sizes = {inode: size for entry in (*releases, *blobs) for inode, size in entry.inodes.items()}
            if sum(sizes.values()) + needed_bytes <= self._limit_bytes:
                return
            linked = {inode for entry in releases for inode in entry.inodes}
            candidates = [entry for entry in releases if entry.path != keep]
            candidates += [entry for entry in blobs if not linked & set(entry.inodes)]
            if not candidates:
                return
            oldest = min(candidates, key=lambda entry: entry.used_at)
            if oldest in blobs:
                discard(oldest.path)
                blobs.remove(oldest)
            else:
                releases.remove(oldest)
                if not _remove(oldest.path):
                    # A release in use keeps its bytes; no other eviction can free them.
                    blobs = [entry for entry in blobs if not set(entry.inodes) & set(oldest.inodes)]

    def _scan(self) -> tuple[list[_Entry], list[_Entry]]:
        """All releases and blobs; leftovers of killed processes are deleted."""
        releases, blobs = [], []
        for path in _children(self._releases):
            with suppress(OSError):
                if path.suffix == ".gone":
                    shutil.rmtree(path, ignore_errors=True)
                elif path.is_dir():
                    inodes = dict(_inode(file) for file in path.rglob("*") if file.is_file())
                    releases.append(_Entry(path=path, used_at=path.stat().st_mtime, inodes=inodes))
        for path in _children(self._blobs):
            with suppress(OSError):
                status = path.lstat()
                if path.suffix != ".part":
                    blobs.append(_Entry(path=path, used_at=status.st_mtime, inodes=dict([_inode(path)])))
                elif is_abandoned(status):
                    discard(path)
        return releases, blobs


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A blob or a release: when it was last used, and the sizes of its files by inode."""

    path: Path
    used_at: float
    inodes: dict[int, int]


def _inode(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_ino, status.st_size


def _children(directory: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from directory.iterdir()


def _make(directory: Path) -> None:
    """Create a directory that only its user can read: the bucket may be private."""
    directory.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)


def _lock_of(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.lock")


def _remove(directory: Path) -> bool:
    """Delete a release unless a process uses it. It is renamed first, so that no process sees a part of it."""
    lock = _lock_of(directory)
    with file_lock(lock, wait_seconds=0) as held:
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


def is_as_recorded(path: Path, record: FileRecord) -> bool:
    """Whether a local file has exactly the recorded bytes; an abandoned download beside it is deleted."""
    for part in path.parent.glob(".*.part"):
        with suppress(OSError):
            if is_abandoned(part.stat()):
                discard(part)
    try:
        status = path.lstat()
    except OSError:
        return False
    if not stat.S_ISREG(status.st_mode) or status.st_size != record.size_bytes:
        return False
    return hash_pieces(_pieces_of(path)) == record


def _pieces_of(path: Path) -> Iterator[bytes]:
    """The bytes of a regular file, no link; nothing if it does not exist or cannot be read."""
    try:
        with open_for_reading(path) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                yield from pieces_of_open(file)
    except FileNotFoundError:
        return
    except OSError as error:
        _logger.warning("A cached file cannot be read", extra={"path": str(path), "reason": str(error)})
