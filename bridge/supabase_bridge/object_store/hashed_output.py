"""A file that is hashed while it is written, by a thread that reads it back right behind the writer."""

from __future__ import annotations

import errno
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from supabase_bridge.documents import FileRecord
from supabase_bridge.object_store.local_files import write_all

_STEP_BYTES = 1024 * 1024
"""What is hashed at a time; smaller steps make the two threads wait for each other (measured)."""


class HashedOutput:
    """Writes a file, over what is there; its record is that of the bytes which the system gives back. Constant memory.

    The reading and the hashing let go of the interpreter, and what was just written is in the system's cache: it costs
    the writer nothing where there is a second core. A context manager.

    Raises (every method):
        OSError: the file cannot be written, or read back.
    """

    def __init__(self, path: Path) -> None:
        self.size_bytes = 0
        self._digest = hashlib.sha256()
        self._hashed_bytes = self._begun_bytes = 0
        self._buffer = memoryview(bytearray(_STEP_BYTES))
        self._file = path.open("wb", buffering=0)
        try:
            self._written = path.open("rb", buffering=0)
        except OSError:
            self._file.close()
            raise
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="hashing")

    def __enter__(self) -> HashedOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._helper.shutdown(cancel_futures=True)
        self._written.close()
        self._file.close()

    def write(self, piece: bytes) -> None:
        """Write the next piece."""
        write_all(self._file, piece)
        self.size_bytes += len(piece)
        if self.size_bytes - self._begun_bytes >= _STEP_BYTES:
            self._begun_bytes = self.size_bytes
            self._helper.submit(self._hash_up_to, self.size_bytes)

    def record(self) -> FileRecord:
        """Size and SHA-256 of everything written; nothing can be written afterwards."""
        self._helper.shutdown()
        # Also what the helper could not read: here its error is heard.
        self._hash_up_to(self.size_bytes)
        return FileRecord(size_bytes=self.size_bytes, sha256=self._digest.hexdigest())

    def _hash_up_to(self, position: int) -> None:
        while self._hashed_bytes < position:
            found = self._written.readinto(self._buffer[: min(_STEP_BYTES, position - self._hashed_bytes)])
            if not found:
                raise OSError(errno.EIO, "it became shorter while it was written")
            self._digest.update(self._buffer[:found])
            self._hashed_bytes += found
