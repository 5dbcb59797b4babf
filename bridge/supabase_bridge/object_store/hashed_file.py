"""A local file on its way out: its bytes from any offset, each of them hashed once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from supabase_bridge.errors import LocalFileError
from supabase_bridge.object_store import Digests, Progress
from supabase_bridge.object_store.background_hash import BackgroundHash
from supabase_bridge.object_store.digest import md5_of

_PIECE_BYTES = 256 * 1024
"""Large enough to send at full speed (measured), small enough to be nothing in memory."""

_INLINE_LIMIT_BYTES = 1024 * 1024
"""A file that is hashed sooner than a thread is started."""


class Meter:
    """Reports progress that never counts a byte twice."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._reported = 0

    def at(self, position: int) -> None:
        """So far has it come."""
        if self._progress is not None and position > self._reported:
            self._progress(position - self._reported)
            self._reported = position


class HashedFile:
    """An open file whose MD5 and SHA-256 come from the same reading that its upload needs; a context manager.

    A byte is hashed when it is first read, and not again when it has to be sent again. The hashing has a thread of its
    own, because hashlib and the network both let go of the interpreter: together they take as long as the slower one.
    What is known already is not computed again.

    Args:
        md5, sha256: The file's, where they are known and need not be computed.

    Attributes:
        size_bytes: The file's size when it was opened; what is added later is not sent.

    Raises:
        LocalFileError: it cannot be opened.
    """

    def __init__(self, path: Path, meter: Meter, *, md5: str | None = None, sha256: str | None = None) -> None:
        self._path = path
        self._meter = meter
        self._known_md5 = md5
        self._known_sha256 = sha256
        self._md5 = md5_of()
        self._sha256 = hashlib.sha256()
        wanted = ((md5, self._md5.update), (sha256, self._sha256.update))
        self._updates = [update for known, update in wanted if known is None]
        self._hashed_bytes = 0
        try:
            self._file = path.open("rb", buffering=0)
            self.size_bytes = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise unreadable(path, error) from error
        hashes_beside = self._updates and self.size_bytes > _INLINE_LIMIT_BYTES
        self._helper = BackgroundHash(*self._updates) if hashes_beside else None

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._helper is not None:
            self._helper.close()
        self._file.close()

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` to before `stop`; what lies before them and was never read is hashed first.

        Raises:
            LocalFileError: the file cannot be read, or has become shorter.
        """
        if self._updates and self._hashed_bytes < start:
            self._hash_up_to(start)
        position = start
        while position < stop:
            piece = self._read(position, min(_PIECE_BYTES, stop - position))
            if self._updates and position + len(piece) > self._hashed_bytes:
                self._hash(piece[max(0, self._hashed_bytes - position) :])
            position += len(piece)
            self._meter.at(position)
            yield piece

    def sent(self) -> Digests:
        """The digests of the whole file; what was not read yet is read now.

        Raises:
            LocalFileError: the file cannot be read, or has become shorter.
        """
        if self._updates:
            self._hash_up_to(self.size_bytes)
        if self._helper is not None:
            self._helper.finish()
        return Digests(
            size_bytes=self.size_bytes,
            md5=self._known_md5 or self._md5.hexdigest(),
            sha256=self._known_sha256 or self._sha256.hexdigest(),
        )

    def _hash_up_to(self, position: int) -> None:
        for _ in self.pieces(self._hashed_bytes, position):
            pass

    def _read(self, position: int, size: int) -> bytes:
        try:
            self._file.seek(position)
            piece = self._file.read(size)
        except OSError as error:
            raise unreadable(self._path, error) from error
        if not piece:
            raise LocalFileError(self._path, "it became shorter while it was being uploaded")
        return piece

    def _hash(self, data: bytes) -> None:
        self._hashed_bytes += len(data)
        if self._helper is not None:
            self._helper.update(data)
            return
        for update in self._updates:
            update(data)


def unreadable(path: Path, error: OSError) -> LocalFileError:
    """The system's complaint about a file that should be uploaded."""
    return LocalFileError(path, f"cannot be read: {error.strerror or error}")
