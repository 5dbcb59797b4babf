"""Object bodies in temporary files, so that 2 GiB cost no memory."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


class Blob:
    """Immutable bytes in a file, which exists as long as the blob is referenced."""

    def __init__(self, path: Path, *, size_bytes: int, md5: str) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.md5 = md5
        # A reader of an overwritten object keeps its blob, so its file, until it is done: never a torn body.
        weakref.finalize(self, path.unlink, missing_ok=True).atexit = False

    def open(self) -> BinaryIO:
        """Open the bytes for reading; the caller closes."""
        return self.path.open("rb")

    def whole(self) -> BlobRange:
        """Return the whole blob as a range."""
        return BlobRange(blob=self, start=0, length=self.size_bytes)


@dataclass(frozen=True, kw_only=True)
class BlobRange:
    """A range of a blob's bytes."""

    blob: Blob
    start: int
    length: int

    def __len__(self) -> int:
        return self.length

    def slice(self, start: int, stop: int) -> BlobRange:
        """Return the bytes from `start` to before `stop`, both relative to this range."""
        stop = min(stop, self.length)
        return BlobRange(blob=self.blob, start=self.start + start, length=max(0, stop - start))

    def read(self) -> bytes:
        """Return all bytes of the range."""
        with self.blob.open() as file:
            file.seek(self.start)
            return file.read(self.length)


class BlobWriter:
    """A body that is being received; it can be resumed after an interruption."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.size_bytes = 0
        path.touch()

    @contextlib.contextmanager
    def appending(self) -> Iterator[Callable[[bytes], None]]:
        """Yield a function that appends bytes; no file stays open afterwards."""
        with self._path.open("ab", buffering=0) as file:

            def append(data: bytes) -> None:
                file.write(data)
                self._md5.update(data)
                self.size_bytes += len(data)

            yield append

    def finish(self) -> Blob:
        """Return the finished blob; the writer is not used afterwards."""
        return Blob(self._path, size_bytes=self.size_bytes, md5=self._md5.hexdigest())

    def discard(self) -> None:
        """Discard the written bytes."""
        self._path.unlink(missing_ok=True)


class BlobStore:
    """A private directory for the bodies of one simulator."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="storage-simulator-"))
        self.close = weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)

    def writer(self) -> BlobWriter:
        """Return a new, empty body."""
        return BlobWriter(self._directory / uuid.uuid4().hex)

    def from_bytes(self, data: bytes) -> Blob:
        """Return a blob of these bytes."""
        writer = self.writer()
        with writer.appending() as append:
            append(data)
        return writer.finish()

    def copied(self, blob: Blob) -> Blob:
        """Another blob of the same bytes, hashed again."""
        writer = self.writer()
        with blob.open() as source, writer.appending() as append:
            while piece := source.read(256 * 1024):
                append(piece)
        return writer.finish()
