"""A directory that keeps files by their SHA-256, so that what was downloaded once is not downloaded again."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from supabase_bridge.documents import FileRecord
from supabase_bridge.errors import CorruptObjectError
from supabase_bridge.object_store import ObjectStore
from supabase_bridge.object_store.hashed_output import HashedOutput
from supabase_bridge.object_store.local_files import (
    discard,
    is_abandoned,
    local_error,
    open_for_reading,
    pieces_of_open,
)

logger = logging.getLogger(__name__)

_PRIVATE = 0o700


class DigestCache:
    """Files by digest, below one directory; any number of processes and threads may use it at once.

    An entry is believed no further than its bytes: each hit is hashed while it is copied out, which costs a fraction of
    a download, and a damaged entry is deleted and fetched again. Copies go out, not links: whoever gets one may write
    to it. Where the cache cannot be written (a full disk, a home that is not there), downloads succeed without it.

    Args:
        directory: Made when the first file is kept; None: nothing is kept.
        limit_bytes: All entries together are not larger; those used least recently go first. Processes that keep
            different files at the same moment may exceed it until the next file is kept.
    """

    def __init__(self, directory: Path | None, *, limit_bytes: int) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes

    def fetch(self, store: ObjectStore, key: str, record: FileRecord, target: Path) -> None:
        """Write an object to `target`: whole and as recorded, or not at all; from the cache where it is there.

        Constant memory; connections that break are taken up where they broke (see `ObjectStore.stream`).

        Raises:
            ObjectNotFoundError: it is not in the cache, and not in the store.
            CorruptObjectError: what the store has is not what is recorded; nothing of it is kept.
            LocalFileError: `target` cannot be written.
        """
        temporary = target.with_name(f".{uuid.uuid4().hex}.part")
        try:
            if not self._copy_out(record, temporary):
                self._download(store, key, record, temporary)
            temporary.replace(target)
        except OSError as error:
            raise local_error(target, error) from error
        finally:
            discard(temporary)

    def _copy_out(self, record: FileRecord, path: Path) -> bool:
        """Whether the content was here, and is at `path` now."""
        entry = self._entry(record)
        if entry is None:
            return False
        with HashedOutput(path) as output:
            for piece in _pieces_of_entry(entry):
                output.write(piece)
            found = output.record()
        if found == record:
            with suppress(OSError):
                os.utime(entry)
            return True
        if found.size_bytes:
            logger.warning("A cached file was damaged and is fetched again", extra={"path": str(entry)})
            discard(entry)
        return False

    def _download(self, store: ObjectStore, key: str, record: FileRecord, path: Path) -> None:
        """Write the object to `path`, and beside it to a new entry, which counts once the digest is right."""
        entry = self._entry(record) if record.size_bytes <= self._limit_bytes else None
        with _NewEntry(entry) as new, HashedOutput(path) as output:
            for piece in store.stream(key):
                output.write(piece)
                if output.size_bytes > record.size_bytes:
                    break
                new.write(piece)
            found = output.record()
            if found != record:
                raise CorruptObjectError(store.name, key, _described(record), _described(found))
            if entry is not None:
                self._make_room(record.size_bytes)
                new.place()

    def _entry(self, record: FileRecord) -> Path | None:
        return None if self._directory is None else self._directory / record.sha256[:2] / record.sha256

    def _make_room(self, size_bytes: int) -> None:
        """Delete what was used least recently until so much more fits, and what killed processes left behind."""
        if self._directory is None:
            return
        found: list[tuple[float, int, Path]] = []
        for path in self._directory.glob("[0-9a-f][0-9a-f]/*"):
            with suppress(OSError):
                status = path.stat()
                if path.suffix != _NewEntry.SUFFIX:
                    found.append((status.st_mtime, status.st_size, path))
                elif is_abandoned(status):
                    discard(path)
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total + size_bytes <= self._limit_bytes:
                break
            discard(path)
            total -= size


class _NewEntry:
    """A file on its way into the cache. That it cannot be written is logged, and nobody else's concern.

    Args:
        path: Where it will be; None: nowhere.
    """

    SUFFIX = ".part"

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._temporary = None if path is None else path.with_name(f"{uuid.uuid4().hex}{self.SUFFIX}")
        self._file: BinaryIO | None = None

    def __enter__(self) -> _NewEntry:
        if self._temporary is not None:
            try:
                self._temporary.parent.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
                self._file = self._temporary.open("xb")
            except OSError as error:
                self._give_up(error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        if self._temporary is not None:
            discard(self._temporary)

    def write(self, piece: bytes) -> None:
        if self._file is not None:
            try:
                self._file.write(piece)
            except OSError as error:
                self._give_up(error)

    def place(self) -> None:
        """Make it an entry."""
        if self._file is not None and self._temporary is not None and self._path is not None:
            try:
                self._file.close()
                self._temporary.replace(self._path)
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        logger.warning("A download is not kept in the cache", extra={"path": str(self._path), "reason": str(error)})
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None


def _described(record: FileRecord) -> str:
    return f"SHA-256 {record.sha256} after {record.size_bytes} bytes"


def _pieces_of_entry(path: Path) -> Iterator[bytes]:
    """A cached file's bytes; they just end where it is not there, or cannot be read."""
    try:
        with open_for_reading(path) as file:
            yield from pieces_of_open(file)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            logger.warning("A cached file cannot be read", extra={"path": str(path), "reason": str(error)})
