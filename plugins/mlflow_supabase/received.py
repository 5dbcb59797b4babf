"""An artifact that arrives piece by piece: in memory while it is small, in a file from then on."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from supabase_bridge.errors import LocalFileError
from supabase_bridge.object_store import Body

IN_MEMORY_BYTES = 256 * 1024
"""What is larger does not lie in memory whole."""


class Received:
    """The pieces so far; what was put into a file is deleted at the end of the block.

    Most artifacts are small, and writing a temporary file only to read it again takes as long as their upload.
    """

    def __init__(self) -> None:
        self._pieces = bytearray()
        self._path: Path | None = None
        self._file: BinaryIO | None = None
        self._open = ExitStack()

    def __enter__(self) -> Received:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def in_memory(self) -> bool:
        return self._file is None

    def add(self, piece: bytes) -> None:
        """Take the next piece.

        Raises:
            LocalFileError: the temporary file cannot be written.
        """
        try:
            if self._file is not None:
                self._file.write(piece)
                return
            self._pieces += piece
            if len(self._pieces) > IN_MEMORY_BYTES:
                self._path = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="supabase-")), "artifact")
                self._file = self._open.enter_context(self._path.open("xb"))
                self._file.write(self._pieces)
                self._pieces.clear()
        except OSError as error:
            raise LocalFileError(self._path or Path(tempfile.gettempdir()), str(error.strerror or error)) from error

    def body(self) -> Body:
        """All of it, for an upload within the block."""
        if self._file is None or self._path is None:
            return bytes(self._pieces)
        try:
            self._file.flush()
        except OSError as error:
            raise LocalFileError(self._path, str(error.strerror or error)) from error
        return self._path
