"""Compute SHA-256 and MD5 while bytes are read or written, in helper threads where the content is long."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from supabase_bridge.core.documents import FileRecord
from supabase_bridge.core.errors import LocalFileError, os_errors
from supabase_bridge.storage.base import Body, Digests, ObjectStore, ProgressReporter
from supabase_bridge.storage.errors import CorruptObjectError
from supabase_bridge.storage.local_files import pieces_of

_INLINE_LIMIT_BYTES = 1024 * 1024
"""Shorter content is hashed sooner than a thread starts."""

_BATCH_BYTES = 256 * 1024
"""Size of one task of a helper thread, and of one piece of an upload: large enough for full speed (measured)."""

_STEP_BYTES = 1024 * 1024
"""How much of a new file is hashed at a time; with smaller steps the two threads wait for each other (measured)."""


def md5_of(data: bytes = b"") -> Any:
    """Return an MD5 hash object; S3 and Supabase use MD5 for ETags, and nothing trusts it alone."""
    return hashlib.md5(data, usedforsecurity=False)


class Hasher:
    """Compute the size and the selected digests of pieces as they pass; a context manager.

    Content over 1 MB is hashed in helper threads, one for each digest: hashlib and sockets release the GIL, so that
    reading and sending continue meanwhile.
    """

    def __init__(self, *, sha256: bool = True, md5: bool = False) -> None:
        self.size_bytes = 0
        self._sha256 = hashlib.sha256() if sha256 else None
        self._md5 = md5_of() if md5 else None
        self._hashes = [each for each in (self._sha256, self._md5) if each is not None]
        self._threads: list[ThreadPoolExecutor] = []
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._queue: deque[list[Future[None]]] = deque()

    def __enter__(self) -> Hasher:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.shutdown()

    def update(self, piece: bytes) -> None:
        """Hash the next piece, which must not change afterwards; block while the queue is full."""
        self.size_bytes += len(piece)
        if self.size_bytes <= _INLINE_LIMIT_BYTES or not self._hashes:
            for each in self._hashes:
                each.update(piece)
            return
        self._batch.append(piece)
        self._batch_bytes += len(piece)
        if self._batch_bytes >= _BATCH_BYTES:
            self._submit()

    def through(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Hash each piece and yield it unchanged."""
        for piece in pieces:
            self.update(piece)
            yield piece

    def digests(self) -> Digests:
        """Return the size and the digests of everything so far; a digest that is not computed is empty."""
        if self._batch:
            self._submit()
        self._wait(at_most=0)
        md5, sha256 = ("" if each is None else each.hexdigest() for each in (self._md5, self._sha256))
        return Digests(size_bytes=self.size_bytes, md5=md5, sha256=sha256)

    def record(self) -> FileRecord:
        """Return the size and the SHA-256 of everything so far."""
        return FileRecord(size_bytes=self.size_bytes, sha256=self.digests().sha256)

    def _submit(self) -> None:
        # A longer queue costs memory and saves no time.
        self._wait(at_most=8)
        self._threads = self._threads or [ThreadPoolExecutor(1, "hashing") for _ in self._hashes]
        pairs = zip(self._threads, self._hashes, strict=True)
        self._queue.append([thread.submit(_feed, each, self._batch) for thread, each in pairs])
        self._batch, self._batch_bytes = [], 0

    def _wait(self, *, at_most: int) -> None:
        while len(self._queue) > at_most:
            for task in self._queue.popleft():
                task.result()


def _feed(computed: Any, batch: Sequence[bytes]) -> None:
    for piece in batch:
        computed.update(piece)


class HashingWriter:
    """Write a file, replacing its content, and hash what the file system returns for it; a context manager.

    A helper thread reads the new bytes back from the page cache and hashes them, so that the writer does not wait where
    there is a second core. Constant memory. Every method raises OSError.
    """

    def __init__(self, path: Path) -> None:
        self.size_bytes = 0
        self._digest = hashlib.sha256()
        self._hashed_bytes = self._submitted_bytes = 0
        self._buffer = memoryview(bytearray(_STEP_BYTES))
        with ExitStack() as stack:
            self._file = stack.enter_context(path.open("wb", buffering=0))
            self._written = stack.enter_context(path.open("rb", buffering=0))
            self._files = stack.pop_all()
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="hashing")

    def __enter__(self) -> HashingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._helper.shutdown(cancel_futures=True)
        self._files.close()

    def write(self, piece: bytes) -> None:
        """Write the next piece."""
        rest = memoryview(piece)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        self.size_bytes += len(piece)
        if self.size_bytes - self._submitted_bytes >= _STEP_BYTES:
            self._submitted_bytes = self.size_bytes
            self._helper.submit(self._hash_up_to, self.size_bytes)

    def record(self) -> FileRecord:
        """Return the size and the SHA-256 of the whole file; nothing can be written afterwards."""
        self._helper.shutdown()
        # Reads also what the helper failed to read, and so raises its error.
        self._hash_up_to(self.size_bytes)
        return FileRecord(size_bytes=self.size_bytes, sha256=self._digest.hexdigest())

    def _hash_up_to(self, position: int) -> None:
        while self._hashed_bytes < position:
            found = self._written.readinto(self._buffer[: min(_STEP_BYTES, position - self._hashed_bytes)])
            if not found:
                raise OSError(errno.EIO, "it became shorter while it was written")
            self._digest.update(self._buffer[:found])
            self._hashed_bytes += found


class HashingReader:
    """Read a file for its upload and hash each byte once, when it is first read; a context manager.

    Args:
        md5, sha256: The digests that are known and need not be computed.

    Attributes:
        size_bytes: The size when the file was opened; bytes that are appended later are not sent.

    Raises:
        LocalFileError: the file cannot be opened.
    """

    def __init__(
        self, path: Path, progress: ProgressReporter, *, md5: str | None = None, sha256: str | None = None
    ) -> None:
        self._path = path
        self._progress = progress
        self._known_md5 = md5
        self._known_sha256 = sha256
        self._is_known = md5 is not None and sha256 is not None
        self._hasher = Hasher(sha256=sha256 is None, md5=md5 is None)
        with os_errors(path):
            self._file = path.open("rb", buffering=0)
            self.size_bytes = os.fstat(self._file.fileno()).st_size

    def __enter__(self) -> HashingReader:
        return self

    def __exit__(self, *_: object) -> None:
        with self._hasher:
            self._file.close()

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to before `stop`, after hashing the unread bytes before `start`.

        Raises:
            LocalFileError: the file cannot be read, or has become shorter.
        """
        self._hash_up_to(start)
        position = start
        while position < stop:
            with os_errors(self._path):
                self._file.seek(position)
                piece = self._file.read(min(_BATCH_BYTES, stop - position))
            if not piece:
                raise LocalFileError(self._path, "it became shorter while it was being uploaded")
            if position + len(piece) > self._hasher.size_bytes:
                self._hasher.update(piece[max(0, self._hasher.size_bytes - position) :])
            position += len(piece)
            self._progress.at(position)
            yield piece

    def digests(self) -> Digests:
        """Return the digests of the whole file, after reading what was not read yet.

        Raises:
            LocalFileError: the file cannot be read, or has become shorter.
        """
        self._hash_up_to(self.size_bytes)
        found = self._hasher.digests()
        md5, sha256 = self._known_md5 or found.md5, self._known_sha256 or found.sha256
        return Digests(size_bytes=self.size_bytes, md5=md5, sha256=sha256)

    def _hash_up_to(self, position: int) -> None:
        if not self._is_known and self._hasher.size_bytes < position:
            for _ in self.pieces(self._hasher.size_bytes, position):
                pass


def hash_pieces(pieces: Iterable[bytes]) -> FileRecord:
    """Return the size and the SHA-256 of all pieces together."""
    with Hasher() as hasher:
        for piece in pieces:
            hasher.update(piece)
        return hasher.record()


def hash_file(path: Path) -> FileRecord:
    """Return the size and the SHA-256 of a local file; raises LocalFileError."""
    return hash_pieces(pieces_of(path))


def hash_body(body: Body) -> Digests:
    """Return the size, the MD5 and the SHA-256 of bytes, or of a local file; raises LocalFileError."""
    with Hasher(md5=True) as hasher:
        for piece in [body] if isinstance(body, bytes) else pieces_of(body):
            hasher.update(piece)
        return hasher.digests()


def hash_object(store: ObjectStore, key: str, *, size_bytes: int) -> str:
    """Read an object as it is now and return its SHA-256 in lower-case hex; a longer one is not read to its end.

    Raises:
        ObjectNotFoundError: there is no such object.
        CorruptObjectError: it is longer.
    """
    with Hasher() as hasher:
        for piece in store.stream(key, fresh=True):
            hasher.update(piece)
            if hasher.size_bytes > size_bytes:
                raise CorruptObjectError(store.name, key, f"{size_bytes} bytes", f"more than {size_bytes} bytes")
        return hasher.record().sha256


def write_hashed(path: Path, pieces: Iterable[bytes]) -> FileRecord:
    """Write pieces to a file, replacing its content, and return their record; raises LocalFileError.

    One thread writes and hashes: two large files of a release are written at once, so that both cores have work.
    """
    digest, size_bytes = hashlib.sha256(), 0
    with os_errors(path), path.open("wb") as output:
        for piece in pieces:
            digest.update(piece)
            output.write(piece)
            size_bytes += len(piece)
    return FileRecord(size_bytes=size_bytes, sha256=digest.hexdigest())
