"""Fetch or check each file of a release."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from supabase_bridge.client.cache import READ_ONLY, Cache
from supabase_bridge.client.install import install, link_or_copy
from supabase_bridge.client.readers import Reader
from supabase_bridge.client.release import Release
from supabase_bridge.core.documents import FileRecord
from supabase_bridge.core.errors import BridgeError, LocalFileError, SettingsError
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.storage.base import for_each
from supabase_bridge.storage.errors import CorruptObjectError, ObjectNotFoundError, ObjectTooLargeError
from supabase_bridge.storage.hashing import HashingWriter, hash_pieces
from supabase_bridge.storage.local_files import discard, local_error
from supabase_bridge.storage.time_budget import TimeBudget

_LONGEST = timedelta(days=30)
"""The limit of every wait, because a forged record may have any size."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FileVerdict:
    """The result of comparing one file with its record.

    Attributes:
        problem: The difference, or why the file could not be read. None: it is as recorded.
        unread: True if the file could not be read, so that it may be as recorded.
    """

    name: str
    record: FileRecord
    problem: str | None
    unread: bool = False


class Files:
    """Downloads and checks the files of releases; each file has its own time budget. Thread-safe.

    Args:
        cache: None: no file is cached.
        timeout: The time for each file, besides the time for its size at `minimum_rate`.
        minimum_rate: Bytes per second.
    """

    def __init__(self, reader: Reader, *, cache: Cache | None, timeout: timedelta, minimum_rate: int) -> None:
        self._reader = reader
        self._cache = cache
        self._timeout = timeout
        self._minimum_rate = minimum_rate

    def fetch(self, release: Release) -> Path:
        """Return the directory of the cache with the files of a release.

        Raises:
            SettingsError: there is no cache.
        """
        if self._cache is None:
            raise SettingsError("cache_dir", "there is none; name a directory to pull to")
        return self._cached(self._cache, release, lambda _directory: None)

    def install(self, release: Release, destination: Path) -> None:
        """Replace a directory by the files of a release; see `install.install`."""
        install(destination, lambda made: self._fill(release, made))

    def copy(self, release: Release, name: str, path: Path) -> None:
        """Write one file of a release to `path`, as a copy that the caller may change.

        Raises:
            ObjectNotFoundError: the release has no such file, or it is missing.
            CorruptObjectError: it is not as recorded; `path` is unchanged.
            LocalFileError: `path` cannot be written.
        """
        key = release.paths.file(name)
        if (record := release.files.get(name)) is None:
            raise ObjectNotFoundError(self._reader.name, key)
        if self._cache is not None and self._cache.copy_to(record, path):
            return
        self._download(release, name, path, read_only=False)
        if self._cache is not None:
            self._cache.add(record, path)

    def verify(self, release: Release) -> list[FileVerdict]:
        """Read every file of a release from the bucket, store none, and compare each with its record."""
        verdicts = []
        for name, record in release.files.items():
            problem, unread = None, False
            try:
                key = release.paths.file(name)
                self._compare(key, record, hash_pieces(self._stream(key, record)))
            except BridgeError as error:
                problem, unread = str(error), not isinstance(error, CorruptObjectError | ObjectNotFoundError)
            verdicts.append(FileVerdict(name=name, record=record, problem=problem, unread=unread))
        return verdicts

    def document(self, release: Release, name: str) -> bytes:
        """Return a small file of a release, compared with its record.

        Raises:
            ObjectNotFoundError, CorruptObjectError: it is missing, or not as recorded.
            ObjectTooLargeError: it is larger than LIMIT_BYTES.
        """
        key = release.paths.file(name)
        record = release.files.get(name)
        if record is None:
            raise ObjectNotFoundError(self._reader.name, key)
        if record.size_bytes > LIMIT_BYTES:
            raise ObjectTooLargeError(self._reader.name, key, LIMIT_BYTES)
        data = b"".join(self._stream(key, record))
        self._compare(key, record, FileRecord.of(data))
        return data

    def _deadline(self, size_bytes: int) -> TimeBudget:
        """Return the time for a body: `timeout`, and the time for its bytes at the minimum rate."""
        bounded = min(size_bytes, int(_LONGEST.total_seconds()) * self._minimum_rate)
        return TimeBudget(min(self._timeout + timedelta(seconds=bounded / self._minimum_rate), _LONGEST))

    def _stream(self, key: str, record: FileRecord) -> Iterator[bytes]:
        return self._reader.stream(key, size_bytes=record.size_bytes, deadline=self._deadline(record.size_bytes))

    def _compare(self, key: str, record: FileRecord, found: FileRecord) -> None:
        if found.sha256 != record.sha256:
            raise CorruptObjectError(self._reader.name, key, f"SHA-256 {record.sha256}", f"SHA-256 {found.sha256}")

    def _download(self, release: Release, name: str, path: Path, *, read_only: bool = True) -> None:
        """Write a file to `path` after its bytes were compared with the record; an existing file is replaced."""
        key, record = release.paths.file(name), release.files[name]
        temporary = path.with_name(f".{uuid.uuid4().hex}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with HashingWriter(temporary) as output:
                for piece in self._stream(key, record):
                    output.write(piece)
                self._compare(key, record, output.record())
            if read_only:
                temporary.chmod(READ_ONLY)
            temporary.replace(path)
        except OSError as error:
            raise local_error(path, error) from error
        finally:
            discard(temporary)

    def _cached(self, cache: Cache, release: Release, use: Callable[[Path], None]) -> Path:
        """Return the cached directory of a release; missing files are downloaded into the cache."""

        return cache.directory(
            release,
            lambda name, path: self._download(release, name, path),
            use,
            wait_seconds=self._deadline(release.size_bytes).seconds,
        )

    def _fill(self, release: Release, directory: Path) -> None:
        """Put a release's files into an empty directory; through the cache unless that is too small or full."""

        def put(kept: Path) -> None:
            for name in release.files:
                link_or_copy(kept / name, directory / name)

        if self._cache is not None and self._cache.has_room(release.size_bytes):
            try:
                self._cached(self._cache, release, put)
            except LocalFileError as error:
                facts = {"path": str(error.path), "reason": error.reason}
                _logger.warning("A release is downloaded without the cache, which cannot be written", extra=facts)
            else:
                return
        for_each(release.files, lambda name: self._download(release, name, directory / name))
