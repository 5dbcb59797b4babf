"""A bucket in memory; a test can delay or fail each operation."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from supabase_bridge.core.layout import TEMPORARY_PREFIX, check_object_key
from supabase_bridge.storage.base import Body, ObjectInfo, Progress, PutOptions
from supabase_bridge.storage.errors import (
    CorruptObjectError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StoreUnavailableError,
)


@dataclass(frozen=True, kw_only=True)
class _Stored:
    data: bytes
    info: ObjectInfo


class MemoryStore:
    """The object store in a dictionary; see `ObjectStore` for the contract of each method.

    Args:
        before: Called with the method's name and the key ahead of each operation on an object; what it raises comes out
            of the operation, which then has not happened.
        beside: The other buckets of the same place, by name.
    """

    def __init__(
        self,
        before: Callable[[str, str], None] = lambda *_: None,
        beside: Mapping[str, MemoryStore] | None = None,
    ) -> None:
        self._before = before
        self._beside = beside or {}
        self._objects: dict[str, _Stored] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return "memory"

    def ensure_bucket(self) -> None:
        """Do nothing: the bucket always exists."""

    def create(self, key: str, body: bytes, options: PutOptions) -> None:
        self._before("create", check_object_key(key))
        stored = self._stored(key, body, options)
        with self._lock:
            if key in self._objects:
                raise ObjectExistsError(self.name, key)
            self._objects[key] = stored

    def overwrite(self, key: str, body: Body, options: PutOptions, progress: Progress | None = None) -> ObjectInfo:
        self._before("overwrite", check_object_key(key))
        stored = self._stored(key, body, options)
        with self._lock:
            self._objects[key] = stored
        if progress is not None:
            progress(len(stored.data))
        return stored.info

    def read(self, key: str, *, limit_bytes: int) -> bytes:
        self._before("read", check_object_key(key))
        data = self._found(key).data
        if len(data) > limit_bytes:
            raise ObjectTooLargeError(self.name, key, limit_bytes)
        return data

    def stream(self, key: str, *, fresh: bool = False) -> Iterator[bytes]:  # noqa: ARG002 - no cache is on the way
        self._before("stream", check_object_key(key))
        yield self._found(key).data

    def read_part(self, info: ObjectInfo, *, start: int, size_bytes: int) -> bytes:
        self._before("read_part", check_object_key(info.key))
        return self._same(info).data[start : start + size_bytes]

    def stat(self, key: str) -> ObjectInfo:
        self._before("stat", check_object_key(key))
        return self._found(key).info

    def list(self, prefix: str, *, bucket_exists: bool = False) -> Iterator[ObjectInfo]:  # noqa: ARG002 - it does
        self._before("list", prefix)
        with self._lock:
            found = [self._objects[key].info for key in sorted(self._objects) if key.startswith(prefix)]
        hidden = not prefix.startswith(TEMPORARY_PREFIX)
        # A listing says nothing of a content's hash.
        yield from (replace(info, sha256=None) for info in found if not (hidden and _is_temporary(info.key)))

    def copy_in(self, bucket: str, info: ObjectInfo, key: str, options: PutOptions) -> ObjectInfo:
        self._before("copy_in", check_object_key(key))
        try:
            data = self._beside[bucket]._same(info).data
        except ObjectNotFoundError as error:
            raise StoreUnavailableError(self.name, f"copying {info.key}", "it was deleted meanwhile") from error
        stored = self._stored(key, data, options)
        with self._lock:
            if key in self._objects:
                raise ObjectExistsError(self.name, key)
            self._objects[key] = stored
        return stored.info

    def move(self, key: str, target: str) -> None:
        self._before("move", check_object_key(target))
        with self._lock:
            if key not in self._objects:
                raise ObjectNotFoundError(self.name, key)
            if target in self._objects:
                raise ObjectExistsError(self.name, target)
            stored = self._objects.pop(key)
            self._objects[target] = replace(stored, info=replace(stored.info, key=target, version=uuid.uuid4().hex))

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._before("delete", check_object_key(key))
            with self._lock:
                self._objects.pop(key, None)

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def _found(self, key: str) -> _Stored:
        with self._lock:
            if key not in self._objects:
                raise ObjectNotFoundError(self.name, key)
            return self._objects[key]

    def _same(self, info: ObjectInfo) -> _Stored:
        found = self._found(info.key)
        if found.info.version != info.version:
            raise StoreUnavailableError(self.name, f"reading {info.key}", "it was replaced meanwhile")
        return found

    def _stored(self, key: str, body: Body, options: PutOptions) -> _Stored:
        data = body if isinstance(body, bytes) else body.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if options.sha256 not in (None, found):
            raise CorruptObjectError(self.name, key, f"SHA-256 {options.sha256}", f"SHA-256 {found}")
        now = datetime.now(timezone.utc)
        return _Stored(
            data=data,
            info=ObjectInfo(
                key=key,
                size_bytes=len(data),
                modified_at=now,
                etag=hashlib.md5(data, usedforsecurity=False).hexdigest(),
                sha256=options.sha256,
                digest_authenticated=None not in (options.md5, options.sha256),
                version=uuid.uuid4().hex,
            ),
        )


def _is_temporary(key: str) -> bool:
    return key.startswith(TEMPORARY_PREFIX)
