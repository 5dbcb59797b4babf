"""A file that the process at the other end of a pipe has: its pieces travel as they are read."""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from typing import BinaryIO

from supabase_bridge.ranged_file import PIECE_BYTES, RangedFile


class BorrowedFile(RangedFile):
    """The bytes of a file of the other process; every read is a question to it, which `lend` answers."""

    def __init__(self, pipe: Connection, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self._pipe = pipe

    def _read_at(self, start: int, size_bytes: int) -> bytes:
        wanted = min(size_bytes, PIECE_BYTES, self._size_bytes - start)
        if wanted <= 0:
            return b""
        self._pipe.send_bytes(json.dumps({"read": [start, wanted]}).encode())
        return self._pipe.recv_bytes(PIECE_BYTES)


def borrow(pipe: Connection, size_bytes: int) -> BinaryIO:
    """A file of the other process's, to read at any place."""
    return BorrowedFile(pipe, size_bytes).buffered()


def lend(pipe: Connection, file: BinaryIO, question: list[int]) -> None:
    """Answer one `read` of a `BorrowedFile`; never more than a piece, whatever is asked for."""
    start, wanted = question
    file.seek(start)
    pipe.send_bytes(file.read(min(wanted, PIECE_BYTES)))
