"""A release's files on their way from the bucket: into the cache, into somebody's directory, or only past a check."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from supabase_bridge.consumer.delivery import deliver, link_or_copy
from supabase_bridge.consumer.downloading import check, download, read, time_for
from supabase_bridge.consumer.reading import Deadline, Reader
from supabase_bridge.consumer.release import Release
from supabase_bridge.consumer.shelf import Shelf
from supabase_bridge.documents import LIMIT_BYTES, FileRecord
from supabase_bridge.errors import (
    BridgeError,
    CorruptObjectError,
    LocalFileError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    SettingsError,
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FileVerdict:
    """One file held against its record.

    Attributes:
        problem: What is wrong; None where it is as recorded.
        unread: Whether that is only that it could not be read: it may be as recorded.
    """

    name: str
    record: FileRecord
    problem: str | None
    unread: bool = False


class Files:
    """Fetches the files of releases; each has a time of its own. Thread-safe.

    Args:
        shelf: Where they are kept; None: nowhere.
        timeout: What each file may take, besides what its size needs at `minimum_rate`.
        minimum_rate: Bytes in a second.
    """

    def __init__(self, reader: Reader, *, shelf: Shelf | None, timeout: timedelta, minimum_rate: int) -> None:
        self._reader = reader
        self._shelf = shelf
        self._timeout = timeout
        self._minimum_rate = minimum_rate

    def keep(self, release: Release) -> Path:
        """The directory of the cache that has them.

        Raises:
            SettingsError: there is no cache.
        """
        if self._shelf is None:
            raise SettingsError("cache_dir", "there is none; name a directory to pull to")
        return self._take(self._shelf, release, lambda _directory: None)

    def deliver(self, release: Release, destination: Path) -> None:
        """Make a directory hold exactly these files; see `delivery.deliver`."""
        deliver(destination, lambda made: self._fill(release, made))

    def verify(self, release: Release) -> list[FileVerdict]:
        """Read every file of a release from the store, keep none, and hold each against its record."""
        verdicts = []
        for name, record in release.files.items():
            problem, unread = None, False
            try:
                deadline = self._deadline(record.size_bytes)
                check(self._reader, release.keys.file(name), record, deadline=deadline)
            except BridgeError as error:
                problem, unread = str(error), not isinstance(error, CorruptObjectError | ObjectNotFoundError)
            verdicts.append(FileVerdict(name=name, record=record, problem=problem, unread=unread))
        return verdicts

    def document(self, release: Release, name: str) -> bytes:
        """A small file of a release, compared with its record.

        Raises:
            ObjectNotFoundError, ObjectTooLargeError, CorruptObjectError: it is not there, no document, or damaged.
        """
        key = release.keys.file(name)
        record = release.files.get(name)
        if record is None:
            raise ObjectNotFoundError(self._reader.name, key)
        if record.size_bytes > LIMIT_BYTES:
            raise ObjectTooLargeError(self._reader.name, key, LIMIT_BYTES)
        return read(self._reader, key, record, deadline=self._deadline(record.size_bytes))

    def _deadline(self, size_bytes: int) -> Deadline:
        return Deadline.after(time_for(size_bytes, timeout=self._timeout, minimum_rate=self._minimum_rate))

    def _fetch(self, release: Release, name: str, record: FileRecord, path: Path) -> None:
        deadline = self._deadline(record.size_bytes)
        download(self._reader, release.keys.file(name), record, path, deadline=deadline)

    def _take(self, shelf: Shelf, release: Release, use: Callable[[Path], None]) -> Path:
        """A release from the cache, or through it."""

        def fetch(name: str, record: FileRecord, path: Path) -> None:
            self._fetch(release, name, record, path)

        return shelf.take(release, fetch, use, wait_seconds=self._deadline(release.size_bytes).seconds)

    def _fill(self, release: Release, directory: Path) -> None:
        """Put a release's files into an empty directory; through the cache unless that is too small, or full."""

        def put(kept: Path) -> None:
            for name in release.files:
                link_or_copy(kept / name, directory / name)

        if self._shelf is not None and self._shelf.holds(release.size_bytes):
            try:
                self._take(self._shelf, release, put)
            except LocalFileError as error:
                facts = {"path": str(error.path), "reason": error.reason}
                _logger.warning("The cache cannot take a release, which goes past it", extra=facts)
            else:
                return
        for name, record in release.files.items():
            self._fetch(release, name, record, directory / name)
