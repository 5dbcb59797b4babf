"""Sending one body to Supabase Storage, hashed on its way and compared with what arrived."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, NonNegativeInt
from storage3 import SyncStorageClient
from storage3.types import FileOptions

from supabase_bridge.errors import CorruptObjectError, LocalFileError, SettingsError
from supabase_bridge.object_store import NO_CACHE, Body, ObjectInfo, Progress, PutOptions
from supabase_bridge.object_store.supabase_download import Download
from supabase_bridge.object_store.supabase_transport import Transport

SHARED_CONNECTION_LIMIT_BYTES = 64 * 1024
"""Larger bodies get a connection of their own; see `Transport.own_connection`."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_AGE = "max-age="


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What went over the wire."""

    size_bytes: int
    md5: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What Supabase says of an object, and the token of the upload that made it (None: not one of ours)."""

    info: ObjectInfo
    token: str | None


def body_size(body: Body) -> int:
    """The size in bytes.

    Raises:
        LocalFileError: the file cannot be read.
    """
    if isinstance(body, bytes):
        return len(body)
    try:
        return body.stat().st_size
    except OSError as error:
        raise _local(body, error) from error


def upload(
    transport: Transport, key: str, body: Body, options: PutOptions, *, token: str, progress: Progress | None
) -> Sent:
    """Store `body` under `key`, whatever is there, in constant memory; tried again where that can help.

    Args:
        token: Kept in the object's user metadata, to know it again.
        progress: Called once for each byte, also where the body had to be sent twice.

    Raises:
        LocalFileError: the file cannot be read.
        CorruptObjectError: the bytes do not have the SHA-256 of `options`.
    """
    request = transport.request(f"uploading {key}", key)
    fields = _file_options(options, token)
    meter = _Meter(progress)
    if isinstance(body, bytes) and options.sha256 is not None:
        _compare(transport, key, f"SHA-256 {options.sha256}", f"SHA-256 {hashlib.sha256(body).hexdigest()}")

    def send(storage: SyncStorageClient) -> Sent:
        bucket = storage.from_(transport.bucket)
        if isinstance(body, bytes):
            bucket.upload(transport.path(key), body, fields)
            meter.at(len(body))
            return Sent(size_bytes=len(body), md5=_md5(body).hexdigest(), sha256=hashlib.sha256(body).hexdigest())
        with _HashedFile(body, meter) as file:
            bucket.upload(transport.path(key), file, fields)
            return file.sent()

    def attempt() -> Sent:
        if body_size(body) <= SHARED_CONNECTION_LIMIT_BYTES:
            return send(transport.storage())
        with transport.own_connection() as storage:
            return send(storage)

    sent = transport.run(request, attempt)
    if options.sha256 is not None:
        _compare(transport, key, f"SHA-256 {options.sha256}", f"SHA-256 {sent.sha256}")
    return sent


def verify(transport: Transport, key: str, sent: Sent, stored: Stored) -> None:
    """Compare what Supabase says it stored with what was sent; where its ETag is no MD5 of it, read all of it back.

    Raises:
        CorruptObjectError: they differ.
    """
    _compare(transport, key, f"{sent.size_bytes} bytes", f"{stored.info.size_bytes} bytes")
    if stored.info.etag == sent.md5:
        return
    # An ETag of another form (multipart uploads: "<md5>-<parts>"; encrypted buckets: anything) proves nothing.
    digest = hashlib.sha256()
    for piece in Download(transport, key).pieces():
        digest.update(piece)
    _compare(transport, key, f"SHA-256 {sent.sha256}", f"SHA-256 {digest.hexdigest()}")


def read_info(key: str, answer: object) -> Stored:
    """Parse the answer of the route `object/info`.

    Raises:
        ValueError: it has another form (pydantic's ValidationError is one).
    """
    facts = _Info.model_validate(answer)
    metadata = facts.metadata or {}
    sha256, token = metadata.get("sha256"), metadata.get("upload")
    info = ObjectInfo(
        key=key,
        size_bytes=facts.size,
        modified_at=facts.last_modified,
        etag=plain_etag(facts.etag),
        sha256=sha256 if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else None,
    )
    return Stored(info=info, token=token if isinstance(token, str) else None)


def plain_etag(etag: str | None) -> str | None:
    """An ETag without its quotes."""
    return etag.strip('"') if etag else None


class _Info(BaseModel):
    """The parts of the answer that matter here."""

    size: NonNegativeInt
    last_modified: AwareDatetime
    etag: str | None = None
    metadata: dict[str, Any] | None = None


def _file_options(options: PutOptions, token: str) -> FileOptions:
    """What storage3 takes.

    Of its cache-control Supabase makes "max-age=<value>", and "no-cache" if it is empty; others have no way in.
    """
    wanted = options.cache_control
    if wanted != NO_CACHE and not wanted.startswith(_MAX_AGE):
        raise SettingsError("cache_control", f"Supabase stores {NO_CACHE!r} or '{_MAX_AGE}…', not {wanted!r}")
    recorded = {} if options.sha256 is None else {"sha256": options.sha256}
    return {
        "content-type": options.content_type,
        "cache-control": "" if wanted == NO_CACHE else wanted.removeprefix(_MAX_AGE),
        "upsert": "true",
        "metadata": {**options.metadata, **recorded, "upload": token},
    }


def _compare(transport: Transport, key: str, expected: str, actual: str) -> None:
    if expected != actual:
        raise CorruptObjectError(transport.name, key, expected, actual)


def _md5(data: bytes = b"") -> Any:
    """MD5 is what S3 and Supabase use for ETags; nothing is trusted to it."""
    return hashlib.md5(data, usedforsecurity=False)


def _local(path: Path, error: OSError) -> LocalFileError:
    return LocalFileError(path, f"cannot be read: {error.strerror or error}")


class _Meter:
    """Reports progress that never counts a byte twice."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._reported = 0

    def at(self, position: int) -> None:
        if self._progress is not None and position > self._reported:
            self._progress(position - self._reported)
            self._reported = position


class _HashedFile(FileIO):
    """A file that is hashed as it is read, once, from its beginning."""

    def __init__(self, path: Path, meter: _Meter) -> None:
        try:
            super().__init__(path, "rb")
        except OSError as error:
            raise _local(path, error) from error
        self._path = path
        self._meter = meter
        self._md5 = _md5()
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            data = super().read(size) or b""
        except OSError as error:
            raise _local(self._path, error) from error
        self._md5.update(data)
        self._sha256.update(data)
        self._size_bytes += len(data)
        self._meter.at(self._size_bytes)
        return data

    def sent(self) -> Sent:
        """What was read."""
        return Sent(size_bytes=self._size_bytes, md5=self._md5.hexdigest(), sha256=self._sha256.hexdigest())
