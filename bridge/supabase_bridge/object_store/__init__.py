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
        sealed: Whether who recorded `sha256` held this store's key, and computed it of bytes of this size and ETag.
        version: Another one after every write, never to come back; None where the store has none.
    """

    key: str
    size_bytes: int
    modified_at: datetime
    etag: str | None = None
    sha256: str | None = None
    sealed: bool = False
    version: str | None = None


@dataclass(frozen=True, kw_only=True)
class Digests:
    """The size, MD5 and SHA-256 (lower-case hex) of the same bytes."""

    size_bytes: int
    md5: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PutOptions:
    """How an object is stored: its media type, what caches may do, and metadata kept beside it.

    Attributes:
        sha256: The body's, recorded beside the object; a body with another one is never published.
        settled: Nobody else can write to the body any more, so its `sha256` is not computed again on its way.
        md5: The body's, computed from the same reading as `sha256`: it is not hashed on its way, what arrives is held
            against this, and the record is sealed (see `ObjectInfo.sealed`).
        compared: False for what its readers can compare, and anybody may overwrite: what arrived is not looked at.
    """

    content_type: str = BINARY_TYPE
    cache_control: str = IMMUTABLE
    sha256: str | None = None
    settled: bool = False
    md5: str | None = None
    compared: bool = True
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

    def stream(self, key: str, *, fresh: bool = False) -> Iterator[bytes]:
        """The object in pieces, in constant memory; the iterator ends only when every byte has come.

        Args:
            fresh: As it is now, past any cache; needless for what nobody overwrites.

        Raises:
            ObjectNotFoundError: there is none.
        """
        ...

    def read_part(self, info: ObjectInfo, *, start: int, size_bytes: int) -> bytes:
        """The bytes of an object from `start`, at most `size_bytes` of them, fewer only at its end.

        Args:
            info: The object as `stat` described it.

        Raises:
            ObjectNotFoundError: there is none.
            StoreUnavailableError: it was replaced since.
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

    def copy_in(self, bucket: str, info: ObjectInfo, key: str, options: PutOptions) -> None:
        """Store under `key`, if and only if nothing is there, what lies in another bucket of the same place.

        Of any number of concurrent calls, and of calls of `create`, one succeeds. No byte passes through us where the
        store can copy itself; what came is compared with `options` before it is seen under its key.

        Args:
            bucket: Where the source is.
            info: The source as `stat` described it there, its version included.
            options: With `sha256` and `md5`, those of the source in this version.

        Raises:
            ObjectExistsError: an object is at `key`; it is untouched.
            StoreUnavailableError: the source was deleted or replaced since.
            CorruptObjectError: the copy has other digests.
        """
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; keys that do not exist are passed over."""
        ...

    def close(self) -> None:
        """Give back connections; the store is not used afterwards."""
        ...
