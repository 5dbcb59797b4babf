"""The `ObjectStore` protocol: one bucket, with the operations that releases need.

`create` never replaces an object, `overwrite` always does. Both are atomic: a reader sees a whole object, old or new,
or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeAlias

from supabase_bridge.storage.errors import ObjectNotFoundError

Body: TypeAlias = bytes | Path
"""The content of an upload: small bytes in memory, or a file that is streamed from its path."""

Progress: TypeAlias = Callable[[int], None]
"""Called with the number of bytes moved since the last call."""

FILES_AT_ONCE = 8
"""Small files need more time for their requests than for their bytes; two large ones fill any connection."""


class ProgressReporter:
    """Report progress without counting a byte twice, also where bytes are sent again."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._reported = 0

    def at(self, position: int) -> None:
        """Report that the transfer has reached `position`."""
        if self._progress is not None and position > self._reported:
            self._progress(position - self._reported)
            self._reported = position


def for_each(names: Iterable[str], act: Callable[[str], None], *, at_once: int = FILES_AT_ONCE) -> None:
    """Do something with each of several objects, at most `at_once` at a time.

    Raises:
        The error of the first one that failed, in their order. None begins after a failure, and all have ended.
    """
    with ThreadPoolExecutor(at_once, thread_name_prefix="file") as pool:
        begun = [pool.submit(act, name) for name in names]
        wait(begun, return_when=FIRST_EXCEPTION)
        for future in begun:
            future.cancel()
    for future in begun:
        if not future.cancelled():
            future.result()


NO_CACHE = "no-cache"
IMMUTABLE = "max-age=31536000, immutable"
JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"
TEXT_TYPE = "text/plain; charset=utf-8"
YAML_TYPE = "application/yaml"
MARKDOWN_TYPE = "text/markdown; charset=utf-8"
_DOCUMENT_TYPES = {"json": JSON_TYPE, "md": MARKDOWN_TYPE, "txt": TEXT_TYPE}


def document_type(name: str) -> str:
    """Return the media type of a release's document, by the end of its name."""
    return _DOCUMENT_TYPES.get(name.rpartition(".")[2], YAML_TYPE)


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """An object as its store describes it, without reading it.

    Attributes:
        sha256: Lower-case hex of the content, recorded at its upload. None in a listing, and for an object that another
            program wrote. A record is no proof: only reading the object is.
        digest_authenticated: True if a writer with this store's key recorded `sha256` for this size and ETag.
        version: Changes with every write and never repeats; None if the store has no versions.
    """

    key: str
    size_bytes: int
    modified_at: datetime
    etag: str | None = None
    sha256: str | None = None
    digest_authenticated: bool = False
    version: str | None = None


@dataclass(frozen=True, kw_only=True)
class Digests:
    """The size, MD5 and SHA-256 (lower-case hex) of the same bytes."""

    size_bytes: int
    md5: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PutOptions:
    """How to store an object: media type, cache directive, metadata, and the known digests of its body.

    Attributes:
        sha256: Digest of the body, recorded with the object. Bytes with another digest are never sent; a file with
            another one is an error when it has been sent, so that only the holder of a claim writes files.
        settled: True if no other process can write to the body, so that its `sha256` is not computed again.
        md5: Digest of the body from the same pass as `sha256`. The upload does not hash the body again, the stored
            object is compared with this digest, and the record gets a MAC (see `ObjectInfo.digest_authenticated`).
        compared: False if the stored object need not be verified: its readers compare it, or refuse a damaged one.
    """

    content_type: str = BINARY_TYPE
    cache_control: str = IMMUTABLE
    sha256: str | None = None
    settled: bool = False
    md5: str | None = None
    compared: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)


class ObjectStore(Protocol):
    """One bucket; thread-safe. `layout.check_object_key` defines valid keys.

    Every method may also raise AccessDeniedError, BucketNotFoundError, StoreUnavailableError,
    InvalidObjectKeyError, UnexpectedResponseError, LocalFileError.
    """

    @property
    def name(self) -> str:
        """Location and bucket for messages, without any secret."""
        ...

    def ensure_bucket(self) -> None:
        """Create a private bucket if it does not exist."""
        ...

    def create(self, key: str, body: bytes, options: PutOptions) -> None:
        """Store a small `body` under `key` if, and only if, nothing is there; exactly one of concurrent calls succeeds.

        A server copies the bytes; so files are written by their claim's holder, with `overwrite`.

        Raises:
            ObjectExistsError: an object is there; it is untouched.
            ObjectTooLargeError: the bucket refuses objects of this size.
        """
        ...

    def overwrite(
        self, key: str, body: Body, options: PutOptions, progress: Progress | None = None
    ) -> ObjectInfo | None:
        """Store `body` under `key`, replacing what is there; the last of several concurrent calls wins as a whole.

        Returns:
            The stored object, which was compared with the body; None: it was not compared, or was replaced since.

        Raises:
            ObjectTooLargeError: the bucket refuses objects of this size.
        """
        ...

    def read(self, key: str, *, limit_bytes: int) -> bytes:
        """Return the whole current object, bypassing caches; it must not be larger than `limit_bytes`.

        Raises:
            ObjectNotFoundError: there is none.
            ObjectTooLargeError: it is larger.
        """
        ...

    def stream(self, key: str, *, fresh: bool = False) -> Iterator[bytes]:
        """Yield the object in pieces, in constant memory; the iterator ends only after the last byte.

        Args:
            fresh: Bypass caches; not needed for an object that is never overwritten.

        Raises:
            ObjectNotFoundError: there is none.
        """
        ...

    def read_part(self, info: ObjectInfo, *, start: int, size_bytes: int) -> bytes:
        """Return at most `size_bytes` of an object from `start` on; fewer only at its end.

        Args:
            info: The object as `stat` described it.

        Raises:
            ObjectNotFoundError: there is none.
            StoreUnavailableError: it was replaced since.
        """
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Describe one object; raises ObjectNotFoundError."""
        ...

    def list(self, prefix: str, *, bucket_exists: bool = False) -> Iterator[ObjectInfo]:
        """Yield all objects whose key begins with `prefix` (literal, case-sensitive), in the order of their bytes.

        Objects under `layout.TEMPORARY_PREFIX` are listed only if `prefix` begins with it.

        Args:
            bucket_exists: The caller has just used the bucket, so that the store need not look for it where nothing is
                listed.
        """
        ...

    def copy_in(self, bucket: str, info: ObjectInfo, key: str, options: PutOptions) -> ObjectInfo | None:
        """Copy an object of another bucket of the same project to `key`, unless an object is there.

        For the holder of a claim on the folder of `key`: Supabase Storage refuses a copy to a key that is taken when it
        begins, not when it ends. Where the store can copy by itself, the content does not pass through this process.
        The copy is compared with `options` afterwards; one that differs stays.

        Args:
            bucket: The bucket of the source.
            info: The source as `stat` described it there, with its version.
            options: With `sha256` and `md5` of this version of the source.

        Returns:
            The copy; see `overwrite`.

        Raises:
            ObjectExistsError: an object is at `key`; it is untouched.
            StoreUnavailableError: the source was deleted or replaced since.
            CorruptObjectError: the copy has other digests.
        """
        ...

    def move(self, key: str, target: str) -> None:
        """Rename an object, if and only if nothing is at `target`; exactly one of concurrent calls succeeds.

        Of calls with one source as well as of calls with one target. A server copies the bytes of what it moves: move
        small objects only. After StoreUnavailableError the outcome is unknown: read `target`.

        Raises:
            ObjectNotFoundError: there is no such object; perhaps another call, or this one unnoticed, has moved it.
            ObjectExistsError: an object is at `target`; both are untouched.
        """
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; missing ones are ignored."""
        ...

    def close(self) -> None:
        """Close the connections; the store cannot be used afterwards."""
        ...


def exists(store: ObjectStore, key: str) -> bool:
    """Return whether there is an object, by one request for its metadata."""
    try:
        store.stat(key)
    except ObjectNotFoundError:
        return False
    return True
