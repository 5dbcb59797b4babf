"""Digests of objects, of local files and of bytes as they come, in constant memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from supabase_bridge.documents import FileRecord
from supabase_bridge.errors import CorruptObjectError
from supabase_bridge.object_store import Body, Digests, ObjectStore
from supabase_bridge.object_store.background_hash import BackgroundHash
from supabase_bridge.object_store.hashed_output import HashedOutput
from supabase_bridge.object_store.local_files import local_error, pieces_of

_INLINE_LIMIT_BYTES = 1024 * 1024
"""What is hashed sooner than a thread is started."""

_MD5 = re.compile("[0-9a-f]{32}")


def md5_of(data: bytes = b"") -> Any:
    """MD5 is what S3 and Supabase use for ETags; nothing is trusted to it alone."""
    return hashlib.md5(data, usedforsecurity=False)


def is_md5(etag: str | None) -> bool:
    """Whether an ETag may be the MD5 of its object: that of a multipart upload has another form."""
    return etag is not None and _MD5.fullmatch(etag) is not None


class Digesting:
    """The size, SHA-256 and MD5 of pieces as they come; a context manager.

    Long content is hashed in threads of their own, one for each hash: hashlib lets go of the interpreter, so that what
    reads or sends the pieces goes on meanwhile.

    Args:
        md5: Whether MD5 is wanted too.
    """

    def __init__(self, *, md5: bool = True) -> None:
        self.size_bytes = 0
        self._sha256 = hashlib.sha256()
        self._md5 = md5_of()
        self._updates = (self._sha256.update, self._md5.update) if md5 else (self._sha256.update,)
        self._helpers: list[BackgroundHash] = []

    def __enter__(self) -> Digesting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for helper in self._helpers:
            helper.close()

    def update(self, piece: bytes) -> None:
        """Take the next piece."""
        self.size_bytes += len(piece)
        if not self._helpers and self.size_bytes > _INLINE_LIMIT_BYTES:
            self._helpers = [BackgroundHash(update) for update in self._updates]
        for update in [helper.update for helper in self._helpers] or self._updates:
            update(piece)

    def record(self) -> FileRecord:
        """Size and SHA-256 of everything so far."""
        self._finish()
        return FileRecord(size_bytes=self.size_bytes, sha256=self._sha256.hexdigest())

    def digests(self) -> Digests:
        """The same, and MD5."""
        self._finish()
        return Digests(size_bytes=self.size_bytes, md5=self._md5.hexdigest(), sha256=self._sha256.hexdigest())

    def _finish(self) -> None:
        for helper in self._helpers:
            helper.finish()


def sha256_of(store: ObjectStore, key: str, *, size_bytes: int) -> str:
    """Lower-case hex of an object's content as it is now, found by reading all of it.

    Args:
        size_bytes: How many bytes it should have; a body that goes on is read no further.

    Raises:
        ObjectNotFoundError: there is no such object.
        CorruptObjectError: it has more bytes.
    """
    digest, read_bytes = hashlib.sha256(), 0
    for piece in store.stream(key, fresh=True):
        read_bytes += len(piece)
        if read_bytes > size_bytes:
            raise CorruptObjectError(store.name, key, f"{size_bytes} bytes", f"more than {size_bytes} bytes")
        digest.update(piece)
    return digest.hexdigest()


def digests_of(body: Body) -> Digests:
    """Those of bytes, or of a local file in one reading.

    Raises:
        LocalFileError: the file cannot be read.
    """
    with Digesting() as digesting:
        for piece in [body] if isinstance(body, bytes) else pieces_of(body):
            digesting.update(piece)
        return digesting.digests()


def write_hashed(path: Path, pieces: Iterable[bytes]) -> FileRecord:
    """Write pieces to a new file, over what is there, hashed as they come.

    Raises:
        LocalFileError: it cannot be written.
    """
    try:
        with HashedOutput(path) as output:
            for piece in pieces:
                output.write(piece)
            return output.record()
    except OSError as error:
        raise local_error(path, error) from error


def file_record(path: Path) -> FileRecord:
    """The size and SHA-256 of a local file.

    Raises:
        LocalFileError: it cannot be read.
    """
    with Digesting(md5=False) as digesting:
        for piece in pieces_of(path):
            digesting.update(piece)
        return digesting.record()
