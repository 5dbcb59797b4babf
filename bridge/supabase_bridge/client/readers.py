"""The `Reader` protocol, and readers of a local directory, of a project and of signed URLs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

from supabase_bridge.core.errors import SettingsError
from supabase_bridge.storage.directory import DirectoryStore
from supabase_bridge.storage.errors import CorruptObjectError, DeadlineExceededError
from supabase_bridge.storage.supabase.endpoint import Content, ProjectEndpoint, SignedEndpoint
from supabase_bridge.storage.time_budget import TimeBudget


class Reader(Protocol):
    """Reads one bucket. Thread-safe. Every method ends by its deadline, even if the server is silent or slow.

    Every method may raise, besides the errors that it names: DeadlineExceededError, AccessDeniedError,
    StoreUnavailableError, UnexpectedResponseError, InvalidObjectKeyError, LocalFileError.
    """

    @property
    def name(self) -> str:
        """The bucket's name without any secret; equal buckets have equal names."""

    @property
    def sees_part(self) -> bool:
        """Whether a policy decides which objects this reader sees, so that an object may be hidden from it."""

    def read(self, key: str, *, limit_bytes: int, known_etag: str | None, deadline: TimeBudget) -> Content | None:
        """Read a small object; return None if it still has the ETag `known_etag`.

        Raises:
            ObjectNotFoundError: there is no object, or the key in use may not see it.
            ObjectTooLargeError: it is larger than `limit_bytes`; no more than that was read.
        """

    def stream(self, key: str, *, size_bytes: int, deadline: TimeBudget) -> Iterator[bytes]:
        """Yield an object in pieces, in constant memory; the iterator ends only after the last byte.

        Raises:
            ObjectNotFoundError: there is no object, or the key in use may not see it.
            CorruptObjectError: its size is not `size_bytes`; no more than that was read.
        """

    def close(self) -> None:
        """Close the connections; the reader is not used afterwards."""


class DirectoryReader:
    """Reads a bucket that is a directory; see `Reader` for the contract of each method."""

    def __init__(self, root: Path) -> None:
        self._store = DirectoryStore(root)

    @property
    def name(self) -> str:
        return self._store.name

    @property
    def sees_part(self) -> bool:
        return False

    def read(self, key: str, *, limit_bytes: int, known_etag: str | None, deadline: TimeBudget) -> Content | None:  # noqa: ARG002 - a local read needs no deadline
        data = self._store.read(key, limit_bytes=limit_bytes)
        etag = hashlib.sha256(data).hexdigest()
        return None if etag == known_etag else Content(data=data, etag=etag)

    def stream(self, key: str, *, size_bytes: int, deadline: TimeBudget) -> Iterator[bytes]:
        found = 0
        for piece in self._store.stream(key):
            if deadline.left() <= 0:
                raise DeadlineExceededError(self.name, f"reading {key}", deadline.seconds)
            found += len(piece)
            if found > size_bytes:
                break
            yield piece
        if found != size_bytes:
            raise CorruptObjectError(self.name, key, f"{size_bytes} bytes", f"{found} bytes or more")

    def close(self) -> None:
        """Do nothing: no file stays open."""


def open_reader(
    *,
    url: str | None,
    key: SecretStr | None,
    bucket: str,
    signed_urls: Callable[[str], str] | None,
    directory: Path | None,
) -> Reader:
    """Open the reader of a project's bucket, of signed URLs, or of a directory; see `Resolver` for the arguments.

    Raises:
        SettingsError: no place is named, or several.
    """
    if directory is not None and url is None and signed_urls is None:
        return DirectoryReader(directory)
    # Importing httpx takes 0.1 s, and a program that imports the client must not wait for it.
    from supabase_bridge.storage.http import BoundedTransport
    from supabase_bridge.storage.supabase.read import HttpReader

    # Every request of a client has a deadline of its own, in place of this one.
    transport = BoundedTransport(timedelta(minutes=1))
    if directory is None and signed_urls is not None and key is None:
        return HttpReader(SignedEndpoint(sign=signed_urls, bucket=bucket, place=url or ""), transport=transport)
    if directory is None and signed_urls is None and url is not None:
        return HttpReader(ProjectEndpoint(url=url, bucket=bucket, key=key), transport=transport)
    raise SettingsError("Resolver", "name one place to read from: url (with or without key), signed_urls, or directory")
