"""The buckets and objects of a simulated Supabase Storage, in this process."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from tests.support.simulators import storage_errors as errors
from tests.support.simulators.storage_blobs import Blob, BlobStore

_VALID_KEY = re.compile(r"[A-Za-z0-9_/!.*'() &$=@;:+,?-]+")
_MAX_SEGMENT_BYTES = 255


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A bucket.

    Attributes:
        anon_reads: A policy lets the anon key read all but unfinished uploads (`_tmp/`).
        versioning: Whether old versions of objects are kept: ENABLED, SUSPENDED, DISABLED; None: the server knows none.
        rules: The rules of its lifecycle policy.
    """

    id: str
    name: str
    public: bool
    file_size_limit_bytes: int | None
    allowed_mime_types: tuple[str, ...] | None
    created_at: datetime
    updated_at: datetime
    anon_reads: bool = False
    versioning: str | None = None
    rules: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class AssembledRelease:
    """An object to be written."""

    bucket: str
    key: str
    blob: Blob
    mimetype: str
    cache_control: str
    user_metadata: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class StoredObject(AssembledRelease):
    """An object as stored; `version` is new with every write, `id` and `created_at` are not."""

    id: str
    version: str
    created_at: datetime
    updated_at: datetime


def check_key(key: str) -> None:
    """Raise unless the server accepts such a key (`check_path` finds dot segments later)."""
    if not _VALID_KEY.fullmatch(key) or any(len(part.encode()) > _MAX_SEGMENT_BYTES for part in key.split("/")):
        raise errors.invalid_key(key)


def check_path(bucket: str, key: str) -> None:
    """Raise for a key with `.` or `..` segments, with the texts of the file backend."""
    if {".", ".."} & set(key.split("/")):
        raise errors.invalid_key(f"stub/stub/{bucket}/{key}/{uuid.uuid4()}", " contains dot path segment")


class StorageState:
    """Buckets and objects; every method is atomic.

    Args:
        blobs: Where bodies are kept.
        clock: The time of day, aware.
    """

    def __init__(self, blobs: BlobStore, clock: Callable[[], datetime]) -> None:
        self.blobs = blobs
        self.now = clock
        self._buckets: dict[str, Bucket] = {}
        self._objects: dict[str, dict[str, StoredObject]] = {}
        self._lock = threading.RLock()

    def create_bucket(self, bucket: Bucket) -> None:
        """Create a bucket; of concurrent creators of one name exactly one succeeds."""
        with self._lock:
            if bucket.id in self._buckets:
                raise errors.bucket_exists()
            self._buckets[bucket.id] = bucket
            self._objects[bucket.id] = {}

    def bucket(self, name: str) -> Bucket:
        """Return the bucket, or raise NoSuchBucket."""
        with self._lock:
            if name not in self._buckets:
                raise errors.no_such_bucket()
            return self._buckets[name]

    def buckets(self) -> list[Bucket]:
        """Return all buckets, the oldest first."""
        with self._lock:
            return list(self._buckets.values())

    def update_bucket(self, name: str, change: Callable[[Bucket], Bucket]) -> None:
        """Replace a bucket's settings."""
        with self._lock:
            self._buckets[name] = replace(change(self.bucket(name)), updated_at=self.now())

    def empty_bucket(self, name: str) -> None:
        """Remove all its objects, at once (the real server queues it)."""
        with self._lock:
            self.bucket(name)
            self._objects[name] = {}

    def delete_bucket(self, name: str) -> None:
        """Remove an empty bucket."""
        with self._lock:
            self.bucket(name)
            if self._objects[name]:
                raise errors.bucket_not_empty()
            del self._buckets[name], self._objects[name]

    def objects(self, bucket: str) -> list[StoredObject]:
        """Return the bucket's objects in code point order of keys; none for a missing bucket."""
        with self._lock:
            return sorted(self._objects.get(bucket, {}).values(), key=lambda stored: stored.key)

    def get(self, bucket: str, key: str) -> StoredObject:
        """Return the object, or raise NoSuchKey."""
        check_key(key)
        with self._lock:
            stored = self._objects.get(bucket, {}).get(key)
        if stored is None:
            raise errors.no_such_key()
        return stored

    def exists(self, bucket: str, key: str) -> bool:
        """Return whether the object exists now."""
        with self._lock:
            return key in self._objects.get(bucket, {})

    def put(self, draft: AssembledRelease) -> StoredObject:
        """Write an object over an existing one."""
        with self._lock:
            if draft.bucket not in self._buckets:
                raise errors.no_related_resource()
            now = self.now()
            old = self._objects[draft.bucket].get(draft.key)
            stored = StoredObject(
                bucket=draft.bucket,
                key=draft.key,
                blob=draft.blob,
                mimetype=draft.mimetype,
                cache_control=draft.cache_control,
                user_metadata=draft.user_metadata,
                id=old.id if old else str(uuid.uuid4()),
                version=str(uuid.uuid4()),
                created_at=old.created_at if old else now,
                updated_at=now,
            )
            self._objects[draft.bucket][draft.key] = stored
            return stored

    def copy(self, draft: AssembledRelease, *, upsert: bool) -> StoredObject:
        """Write it as a copy: without `upsert` the key must be free."""
        with self._lock:
            if not upsert and self.exists(draft.bucket, draft.key):
                raise errors.key_exists()
            return self.put(draft)

    def move(self, source: tuple[str, str], destination: tuple[str, str], blob: Blob | None = None) -> None:
        """Rename (bucket, key) to a free (bucket, key); of concurrent movers onto one exactly one succeeds.

        Args:
            blob: The copy of the bytes that the server made for it.
        """
        (from_bucket, from_key), (to_bucket, to_key) = source, destination
        with self._lock:
            stored = self.get(from_bucket, from_key)
            if source == destination:
                return
            if to_bucket not in self._buckets:
                raise errors.no_related_resource()
            if to_key in self._objects[to_bucket]:
                raise errors.resource_exists()
            del self._objects[from_bucket][from_key]
            self._objects[to_bucket][to_key] = replace(
                stored,
                blob=blob or stored.blob,
                bucket=to_bucket,
                key=to_key,
                version=str(uuid.uuid4()),
                updated_at=self.now(),
            )

    def remove(self, bucket: str, keys: Iterable[str]) -> list[StoredObject]:
        """Remove keys and return the removed objects; of concurrent removers only one gets each."""
        with self._lock:
            held = self._objects.get(bucket, {})
            return [held.pop(key) for key in dict.fromkeys(keys) if key in held]
