"""An object as a file that can be read at any place, so that only what is looked at travels."""

from __future__ import annotations

import io

from supabase_bridge.object_store import ObjectInfo, ObjectStore
from supabase_bridge.ranged_file import RangedFile


class ObjectReader(RangedFile):
    """The bytes of an object as `stat` described it; every read is a request.

    Reading raises what `ObjectStore.read_part` does: an object that was replaced meanwhile is never pieced together
    from two contents.
    """

    def __init__(self, store: ObjectStore, info: ObjectInfo) -> None:
        super().__init__(info.size_bytes)
        self._store = store
        self._info = info

    def _read_at(self, start: int, size_bytes: int) -> bytes:
        return self._store.read_part(self._info, start=start, size_bytes=size_bytes)


def open_object(store: ObjectStore, info: ObjectInfo) -> io.BufferedReader:
    """An object to read like a local file opened for reading."""
    return ObjectReader(store, info).buffered()
