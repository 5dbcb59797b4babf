"""Object stores: one bucket behind one protocol.

The vocabulary is that of object stores at large: `create` never replaces, `overwrite` always does, both are atomic: a
reader sees an object whole, old or new, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeAlias

Body: TypeAlias = bytes | Path
"""What is uploaded: small bytes in memory, or a file that is streamed from its path."""

Progress: TypeAlias = Callable[[int], None]
"""Called with the number of bytes moved since the last call."""

NO_CACHE = "no-cache"
IMMUTABLE = "max-age=31536000, immutable"
JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"
TEXT_TYPE = "text/plain; charset=utf-8"
YAML_TYPE = "application/yaml"
MARKDOWN_TYPE = "text/markdown; charset=utf-8"


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """What a store says of an object without reading it.

    Attributes:
        sha256: Lower-case hex of the content as recorded when it was written, or None where the store does not know it
            (a listing, an object somebody else wrote). A record, not a proof: only reading proves.
    """

    key: str
    size_bytes: int
    modified_at: datetime
    etag: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class PutOptions:
    """How an object is stored: its media type, what caches may do, and metadata kept beside it."""

    content_type: str = BINARY_TYPE
    cache_control: str = IMMUTABLE
    sha256: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


class ObjectStore(Protocol):
    """One bucket. Thread-safe. Keys are those of `layout.check_object_key`.

    Every method may raise, besides what it names: AccessDeniedError, BucketNotFoundError, StoreUnavailableError,
    InvalidObjectKeyError, UnexpectedAnswerError, LocalFileError.
    """

    @property
    def name(self) -> str:
        """What a person calls this store: its place and bucket, without any secret."""
        ...

    def ensure_bucket(self) -> None:
        """Create the bucket, private, if it does not exist."""
        ...

    def create(self, key: str, body: Body, options: PutOptions, progress: Progress | None = None) -> None:
        """Store `body` under `key` if, and only if, nothing is there; of any number of concurrent calls one succeeds.

        Raises:
            ObjectExistsError: an object is there; it is untouched.
            ObjectTooLargeError: the bucket does not take objects of this size.
        """
        ...

    def overwrite(self, key: str, body: Body, options: PutOptions, progress: Progress | None = None) -> None:
        """Store `body` under `key`, whatever is there; the last of several concurrent calls wins, whole.

        Raises:
            ObjectTooLargeError: the bucket does not take objects of this size.
        """
        ...

    def read(self, key: str, *, limit_bytes: int) -> bytes:
        """The whole object as it is now, past any cache; it must not be larger than `limit_bytes`.

        Raises:
            ObjectNotFoundError: there is none.
            ObjectTooLargeError: it is larger.
        """
        ...

    def stream(self, key: str) -> Iterator[bytes]:
        """The object in pieces, in constant memory; the iterator ends only when every byte has come.

        Raises:
            ObjectNotFoundError: there is none.
        """
        ...

    def stat(self, key: str) -> ObjectInfo:
        """What is known of one object.

        Raises:
            ObjectNotFoundError: there is none.
        """
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose key begins with `prefix`, literally and case-sensitively, in the order of their bytes.

        Objects under `layout.TEMPORARY_PREFIX` are listed only where `prefix` begins with it.
        """
        ...

    def copy(self, source: str, destination: str) -> None:
        """Copy an object with its metadata, over whatever is at `destination`, without its bytes passing through us.

        Raises:
            ObjectNotFoundError: there is no source.
        """
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; keys that do not exist are passed over."""
        ...

    def close(self) -> None:
        """Give back connections; the store is not used afterwards."""
        ...
