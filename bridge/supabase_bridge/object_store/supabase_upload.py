"""Sending one body to Supabase Storage in one request, hashed on its way and compared with what arrived."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import AwareDatetime, BaseModel, NonNegativeInt
from storage3.types import FileOptions

from supabase_bridge.errors import CorruptObjectError, ObjectNotFoundError, SettingsError
from supabase_bridge.object_store import NO_CACHE, Body, ObjectInfo, Progress, PutOptions
from supabase_bridge.object_store.hashed_file import HashedFile, Meter, Sent, md5_of, unreadable
from supabase_bridge.object_store.supabase_download import Download
from supabase_bridge.object_store.supabase_transport import Transport

SHARED_CONNECTION_LIMIT_BYTES = 64 * 1024
"""Larger bodies get a connection of their own; see `Transport.own_connection`."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_AGE = "max-age="


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
        raise unreadable(body, error) from error


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
    meter = Meter(progress)
    if isinstance(body, bytes) and options.sha256 is not None:
        compare(transport, key, f"SHA-256 {options.sha256}", f"SHA-256 {hashlib.sha256(body).hexdigest()}")

    def send(http: httpx.Client) -> Sent:
        if isinstance(body, bytes):
            bucket = transport.storage(http).from_(transport.bucket)
            bucket.upload(transport.path(key), body, _file_options(options, token))
            meter.at(len(body))
            return Sent(size_bytes=len(body), md5=md5_of(body).hexdigest(), sha256=hashlib.sha256(body).hexdigest())
        with HashedFile(body, meter) as file:
            # Not by storage3: it wraps files into multipart forms, 64 KiB at a time, which takes a fifth longer.
            headers = {**_headers(options, token), "content-length": str(file.size_bytes)}
            url = transport.url("object", transport.bucket, key)
            http.post(url, headers=headers, content=file.pieces(0, file.size_bytes))
            return file.sent()

    def attempt() -> Sent:
        if body_size(body) <= SHARED_CONNECTION_LIMIT_BYTES:
            return send(transport.http())
        with transport.own_connection() as http:
            return send(http)

    sent = transport.run(request, attempt)
    if options.sha256 is not None:
        compare(transport, key, f"SHA-256 {options.sha256}", f"SHA-256 {sent.sha256}")
    return sent


def verify(transport: Transport, key: str, sent: Sent, stored: Stored) -> None:
    """Compare what Supabase says it stored with what was sent; where its ETag is no MD5 of it, read all of it back.

    Raises:
        CorruptObjectError: they differ.
    """
    compare(transport, key, f"{sent.size_bytes} bytes", f"{stored.info.size_bytes} bytes")
    if stored.info.etag == sent.md5:
        return
    # An ETag of another form (multipart uploads: "<md5>-<parts>"; encrypted buckets: anything) proves nothing.
    digest = hashlib.sha256()
    for piece in Download(transport, key).pieces():
        digest.update(piece)
    compare(transport, key, f"SHA-256 {sent.sha256}", f"SHA-256 {digest.hexdigest()}")


def stored_at(transport: Transport, key: str) -> Stored:
    """What Supabase says of an object.

    Raises:
        ObjectNotFoundError: there is none.
    """
    bucket = transport.storage().from_(transport.bucket)
    request = transport.request(f"looking at {key}", key)
    return transport.run(request, lambda: read_info(key, bucket.info(transport.path(key))))


def found_at(transport: Transport, key: str) -> Stored | None:
    """What Supabase says of an object; None if there is none."""
    try:
        return stored_at(transport, key)
    except ObjectNotFoundError:
        return None


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


def max_age(options: PutOptions) -> str:
    """The cache directive where only a number of seconds has a way in: that number, or nothing for "no-cache"."""
    return _cache_control(options).removeprefix(_MAX_AGE).partition(",")[0]


def user_metadata(options: PutOptions, token: str) -> Mapping[str, str]:
    """What is kept beside the object: the caller's facts, its SHA-256, and the upload's token."""
    recorded = {} if options.sha256 is None else {"sha256": options.sha256}
    return {**options.metadata, **recorded, "upload": token}


def compare(transport: Transport, key: str, expected: str, actual: str) -> None:
    """Both must be the same.

    Raises:
        CorruptObjectError: they are not.
    """
    if expected != actual:
        raise CorruptObjectError(transport.name, key, expected, actual)


def _cache_control(options: PutOptions) -> str:
    """The wanted directive, empty for "no-cache", which is what Supabase makes of an empty one."""
    wanted = options.cache_control
    if wanted != NO_CACHE and not wanted.startswith(_MAX_AGE):
        raise SettingsError("cache_control", f"Supabase stores {NO_CACHE!r} or '{_MAX_AGE}…', not {wanted!r}")
    return "" if wanted == NO_CACHE else wanted


def _file_options(options: PutOptions, token: str) -> FileOptions:
    """What storage3 takes; of its cache-control Supabase makes "max-age=<value>"."""
    return {
        "content-type": options.content_type,
        "cache-control": _cache_control(options).removeprefix(_MAX_AGE),
        "upsert": "true",
        "metadata": dict(user_metadata(options, token)),
    }


def _headers(options: PutOptions, token: str) -> dict[str, str]:
    """The same for a body that is sent as it is."""
    return {
        "content-type": options.content_type,
        "cache-control": _cache_control(options) or NO_CACHE,
        "x-upsert": "true",
        "x-metadata": base64.b64encode(json.dumps(user_metadata(options, token)).encode()).decode(),
    }
