"""A file that is read at any place, a piece at a time, from wherever its bytes are."""

from __future__ import annotations

import io
from abc import abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PIECE_BYTES = 256 * 1024
"""What one question brings at least: the structure of a model is a few kilobytes here and there."""


class RangedFile(io.RawIOBase):
    """Seeks and reads over `_read_at`, which each kind answers its own way."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self._size_bytes = size_bytes
        self._position = 0

    @abstractmethod
    def _read_at(self, start: int, size_bytes: int) -> bytes:
        """At most `size_bytes` from `start` on; none only after the end."""

    def buffered(self) -> io.BufferedReader:
        """The same to read like a local file opened for reading."""
        return io.BufferedReader(self, PIECE_BYTES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        if start + offset < 0:
            raise ValueError("a position before the first byte")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        found = self._read_at(self._position, len(view))
        view[: len(found)] = found
        self._position += len(found)
        return len(found)
