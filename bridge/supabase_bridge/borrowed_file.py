"""A file that the process at the other end of a pipe has: its pieces travel as they are read."""

from __future__ import annotations

import io
import json
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE_BYTES = 256 * 1024


class BorrowedFile(io.RawIOBase):
    """The bytes of a file of the other process; every read is a question to it, which `lend` answers."""

    def __init__(self, pipe: Connection, size_bytes: int) -> None:
        super().__init__()
        self._pipe = pipe
        self._size_bytes = size_bytes
        self._position = 0

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
        wanted = max(0, min(len(view), _PIECE_BYTES, self._size_bytes - self._position))
        if not wanted:
            return 0
        self._pipe.send_bytes(json.dumps({"read": [self._position, wanted]}).encode())
        found = self._pipe.recv_bytes(_PIECE_BYTES)
        view[: len(found)] = found
        self._position += len(found)
        return len(found)


def borrow(pipe: Connection, size_bytes: int) -> BinaryIO:
    """A file of the other process's, to read at any place."""
    return io.BufferedReader(BorrowedFile(pipe, size_bytes), _PIECE_BYTES)


def lend(pipe: Connection, file: BinaryIO, question: list[int]) -> None:
    """Answer one `read` of a `BorrowedFile`; never more than a piece, whatever is asked for."""
    start, wanted = question
    file.seek(start)
    pipe.send_bytes(file.read(min(wanted, _PIECE_BYTES)))
