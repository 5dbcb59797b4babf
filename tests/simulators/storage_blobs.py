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
    """Bytes that never change, in a file that lives as long as somebody holds the blob."""

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
        """All of it, as a range."""
        return BlobRange(blob=self, start=0, length=self.size_bytes)


@dataclass(frozen=True, kw_only=True)
class BlobRange:
    """A run of a blob's bytes."""

    blob: Blob
    start: int
    length: int

    def __len__(self) -> int:
        return self.length

    def slice(self, start: int, stop: int) -> BlobRange:
        """The bytes from `start` to before `stop`, both counted inside this range."""
        stop = min(stop, self.length)
        return BlobRange(blob=self.blob, start=self.start + start, length=max(0, stop - start))

    def read(self) -> bytes:
        """All bytes of the range, in memory."""
        with self.blob.open() as file:
            file.seek(self.start)
            return file.read(self.length)


class BlobWriter:
    """A body on its way in; it can be continued after an interruption, and keeps what it was given."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.size_bytes = 0
        path.touch()

    @contextlib.contextmanager
    def appending(self) -> Iterator[Callable[[bytes], None]]:
        """A function that appends bytes; no file stays open afterwards."""
        with self._path.open("ab", buffering=0) as file:

            def append(data: bytes) -> None:
                file.write(data)
                self._md5.update(data)
                self.size_bytes += len(data)

            yield append

    def finish(self) -> Blob:
        """The finished blob; the writer must not be used any more."""
        return Blob(self._path, size_bytes=self.size_bytes, md5=self._md5.hexdigest())

    def discard(self) -> None:
        """Throw away what was written."""
        self._path.unlink(missing_ok=True)


class BlobStore:
    """A private directory for the bodies of one simulator."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="storage-simulator-"))
        self.close = weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)

    def writer(self) -> BlobWriter:
        """A new, empty body."""
        return BlobWriter(self._directory / uuid.uuid4().hex)

    def from_bytes(self, data: bytes) -> Blob:
        """A blob of these bytes."""
        writer = self.writer()
        with writer.appending() as append:
            append(data)
        return writer.finish()
