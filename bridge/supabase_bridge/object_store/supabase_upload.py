"""Sending one body to Supabase Storage in one request, hashed on its way and compared with what arrived."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic import AwareDatetime, BaseModel, NonNegativeInt

from supabase_bridge.errors import CorruptObjectError, ObjectNotFoundError, SettingsError
from supabase_bridge.object_store import NO_CACHE, Body, Digests, ObjectInfo, Progress, PutOptions
from supabase_bridge.object_store.digest import digests_of
from supabase_bridge.object_store.hashed_file import HashedFile, Meter, unreadable
from supabase_bridge.object_store.sealing import SEAL_NAME
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
) -> Digests:
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

    def send(http: httpx.Client) -> Digests:
        # Not by storage3: it wraps bodies into multipart forms, which takes a fifth longer, files 64 KiB at a time.
        url = transport.url("object", transport.bucket, key)
        if isinstance(body, bytes):
            described = user_metadata(transport, options, token, size_bytes=len(body))
            http.post(url, headers=_headers(options, described), content=body)
            meter.at(len(body))
            return digests_of(body)
        with hashed_file(body, meter, options) as file:
            described = user_metadata(transport, options, token, size_bytes=file.size_bytes)
            headers = {**_headers(options, described), "content-length": str(file.size_bytes)}
            http.post(url, headers=headers, content=file.pieces(0, file.size_bytes))
            return file.sent()

    def attempt() -> Digests:
        if body_size(body) <= SHARED_CONNECTION_LIMIT_BYTES:
            return send(transport.http())
        with transport.own_connection() as http:
            return send(http)

    sent = transport.run(request, attempt)
    if options.sha256 is not None:
        compare(transport, key, f"SHA-256 {options.sha256}", f"SHA-256 {sent.sha256}")
    return sent


def verify(transport: Transport, key: str, sent: Digests, stored: Stored) -> None:
    """Compare what Supabase says it stored with what was sent; where its ETag is no MD5 of it, read all of it back.

    Raises:
        CorruptObjectError: they differ.
    """
    compare(transport, key, f"{sent.size_bytes} bytes", f"{stored.info.size_bytes} bytes")
    if stored.info.etag == sent.md5:
        return
    # An ETag of another form (multipart uploads: "<md5>-<parts>"; encrypted buckets: anything) proves nothing.
    digest = hashlib.sha256()
    for piece in Download(transport, key, fresh=True).pieces():
        digest.update(piece)
    compare(transport, key, f"SHA-256 {sent.sha256}", f"SHA-256 {digest.hexdigest()}")


def stored_at(transport: Transport, key: str) -> Stored:
    """What Supabase says of an object.

    Raises:
        ObjectNotFoundError: there is none.
    """
    bucket = transport.storage().from_(transport.bucket)
    request = transport.request(f"looking at {key}", key)
    return transport.run(request, lambda: read_info(transport, key, bucket.info(transport.path(key))))


def found_at(transport: Transport, key: str) -> Stored | None:
    """What Supabase says of an object; None if there is none."""
    try:
        return stored_at(transport, key)
    except ObjectNotFoundError:
        return None


def read_info(transport: Transport, key: str, answer: object) -> Stored:
    """Parse the answer of the route `object/info`.

    Raises:
        ValueError: it has another form (pydantic's ValidationError is one).
    """
    facts = _Info.model_validate(answer)
    metadata = facts.metadata or {}
    token = metadata.get("upload")
    sha256 = _recorded_sha256(metadata)
    etag = plain_etag(facts.etag)
    sealed = False
    if sha256 is not None and etag is not None:
        digests = Digests(size_bytes=facts.size, md5=etag, sha256=sha256)
        sealed = transport.sealer.holds(metadata.get(SEAL_NAME), digests)
    info = ObjectInfo(
        key=key,
        size_bytes=facts.size,
        modified_at=facts.last_modified,
        etag=etag,
        sha256=sha256,
        sealed=sealed,
        version=facts.version,
    )
    return Stored(info=info, token=token if isinstance(token, str) else None)


def _recorded_sha256(metadata: Mapping[str, Any]) -> str | None:
    found = metadata.get("sha256")
    return found if isinstance(found, str) and _SHA256.fullmatch(found) else None


def plain_etag(etag: str | None) -> str | None:
    """An ETag without its quotes."""
    return etag.strip('"') if etag else None


class _Info(BaseModel):
    """The parts of the answer that matter here."""

    size: NonNegativeInt
    last_modified: AwareDatetime
    etag: str | None = None
    version: str | None = None
    metadata: dict[str, Any] | None = None


def max_age(options: PutOptions) -> str:
    """The cache directive where only a number of seconds has a way in: that number, or nothing for "no-cache"."""
    return cache_control(options).removeprefix(_MAX_AGE).partition(",")[0]


def hashed_file(path: Path, meter: Meter, options: PutOptions) -> HashedFile:
    """A file on its way out; what `options` knows of its digests is not computed again.

    Raises:
        LocalFileError: it cannot be opened.
    """
    known = options.sha256 if options.settled or options.md5 is not None else None
    return HashedFile(path, meter, md5=options.md5 if known is not None else None, sha256=known)


def user_metadata(transport: Transport, options: PutOptions, token: str, *, size_bytes: int) -> Mapping[str, str]:
    """What is kept beside the object: the caller's facts, its SHA-256, sealed if it can be, and the upload's token."""
    recorded = {} if options.sha256 is None else {"sha256": options.sha256}
    if options.md5 is not None and options.sha256 is not None:
        digests = Digests(size_bytes=size_bytes, md5=options.md5, sha256=options.sha256)
        recorded[SEAL_NAME] = transport.sealer.seal(digests)
    return {**options.metadata, **recorded, "upload": token}


def compare(transport: Transport, key: str, expected: str, actual: str) -> None:
    """Both must be the same.

    Raises:
        CorruptObjectError: they are not.
    """
    if expected != actual:
        raise CorruptObjectError(transport.name, key, expected, actual)


def cache_control(options: PutOptions) -> str:
    """The wanted directive, empty for "no-cache", which is what Supabase makes of an empty one."""
    wanted = options.cache_control
    if wanted != NO_CACHE and not wanted.startswith(_MAX_AGE):
        raise SettingsError("cache_control", f"Supabase stores {NO_CACHE!r} or '{_MAX_AGE}…', not {wanted!r}")
    return "" if wanted == NO_CACHE else wanted


def _headers(options: PutOptions, described: Mapping[str, str]) -> dict[str, str]:
    """What says how a body that is sent as it is shall be stored."""
    return {
        "content-type": options.content_type,
        "cache-control": cache_control(options) or NO_CACHE,
        "x-upsert": "true",
        "x-metadata": metadata_header(described),
    }


def metadata_header(described: Mapping[str, str]) -> str:
    """User metadata as a header carries it."""
    return base64.b64encode(json.dumps(described).encode()).decode()
