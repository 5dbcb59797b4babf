"""An object as a file that can be read at any place, so that only what is looked at travels."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from supabase_bridge.object_store import ObjectInfo, ObjectStore

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PIECE_BYTES = 256 * 1024
"""What one request brings at least: the structure of a model is a few kilobytes here and there."""


class ObjectReader(io.RawIOBase):
    """The bytes of an object as `stat` described it; every read is a request.

    Reading raises what `ObjectStore.read_part` does: an object that was replaced meanwhile is never pieced together
    from two contents.
    """

    def __init__(self, store: ObjectStore, info: ObjectInfo) -> None:
        super().__init__()
        self._store = store
        self._info = info
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size_bytes}[whence]
        if start + offset < 0:
            raise ValueError("a position before the first byte")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        found = self._store.read_part(self._info, start=self._position, size_bytes=len(view))
        view[: len(found)] = found
        self._position += len(found)
        return len(found)


def open_object(store: ObjectStore, info: ObjectInfo) -> io.BufferedReader:
    """An object to read like a local file opened for reading."""
    return io.BufferedReader(ObjectReader(store, info), PIECE_BYTES)
