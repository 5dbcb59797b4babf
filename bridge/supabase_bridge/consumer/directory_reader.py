"""Reading objects of the embedded store, a directory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from supabase_bridge.consumer.reading import Content, Deadline
from supabase_bridge.errors import CorruptObjectError, DeadlineExceededError
from supabase_bridge.object_store.directory import DirectoryStore


class DirectoryReader:
    """Reads a bucket that is a directory; see `Reader` for what each method promises."""

    def __init__(self, root: Path) -> None:
        self._store = DirectoryStore(root)

    @property
    def name(self) -> str:
        return self._store.name

    def read(self, key: str, *, limit_bytes: int, known_etag: str | None, deadline: Deadline) -> Content | None:  # noqa: ARG002 - a local read ends by itself
        data = self._store.read(key, limit_bytes=limit_bytes)
        etag = hashlib.sha256(data).hexdigest()
        return None if etag == known_etag else Content(data=data, etag=etag)

    def stream(self, key: str, *, size_bytes: int, deadline: Deadline) -> Iterator[bytes]:
        found = 0
        for piece in self._store.stream(key):
            if not deadline.remaining:
                raise DeadlineExceededError(self.name, f"reading {key}", deadline.seconds)
            found += len(piece)
            if found > size_bytes:
                break
            yield piece
        if found != size_bytes:
            raise CorruptObjectError(self.name, key, f"{size_bytes} bytes", f"{found} bytes or more")

    def close(self) -> None:
        """Nothing is held open."""
