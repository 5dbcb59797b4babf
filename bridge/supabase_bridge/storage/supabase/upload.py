"""Upload one body to Supabase Storage in one request, and compare what the server stored with what was sent."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, NonNegativeInt

from supabase_bridge.core.errors import SettingsError, os_errors
from supabase_bridge.storage.base import NO_CACHE, Body, Digests, ObjectInfo, Progress, ProgressReporter, PutOptions
from supabase_bridge.storage.errors import CorruptObjectError, ObjectNotFoundError
from supabase_bridge.storage.hashing import HashingReader, hash_body, hash_pieces
from supabase_bridge.storage.supabase.client import SEAL_NAME, Transport
from supabase_bridge.storage.supabase.read import plain_etag

SHARED_CONNECTION_LIMIT_BYTES = 64 * 1024
"""Larger bodies get a connection of their own; see `Transport.own_connection`."""

_MAX_AGE = "max-age="


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An object as Supabase describes it, and the token of its upload (None: it was not uploaded by the bridge)."""

    info: ObjectInfo
    token: str | None


def body_size(body: Body) -> int:
    """Return the size in bytes; raises LocalFileError."""
    if isinstance(body, bytes):
        return len(body)
    with os_errors(body):
        return body.stat().st_size


def upload(
    transport: Transport, key: str, body: Body, options: PutOptions, *, token: str, progress: Progress | None
) -> Digests:
    """Store `body` under `key`, replacing what is there, in constant memory; failures that pass are retried.

    Args:
        token: Kept in the object's user metadata to recognise this upload.
        progress: Called once for each byte, also where the body is sent twice.

    Raises:
        LocalFileError: the file cannot be read.
        CorruptObjectError: the bytes do not have the SHA-256 of `options`.
    """
    size_bytes = body_size(body)
    request = transport.request(f"uploading {key}", key, size_bytes=size_bytes)
    # Not by storage3: it wraps bodies into multipart forms, which takes a fifth longer, and reads 64 KiB at a time.
    url = transport.url("object", transport.bucket, key)
    reporter = ProgressReporter(progress)
    is_small = size_bytes <= SHARED_CONNECTION_LIMIT_BYTES

    def send() -> Digests:
        with nullcontext(transport.http()) if is_small else transport.own_connection() as http:
            if isinstance(body, bytes):
                digests = hash_body(body)
                check_sha256(transport, key, options, digests)
                http.post(url, headers=_headers(transport, options, token, len(body)), content=body)
                reporter.at(len(body))
                return digests
            with open_body(body, reporter, options) as file:
                headers = _headers(transport, options, token, file.size_bytes)
                headers["content-length"] = str(file.size_bytes)
                http.post(url, headers=headers, content=file.pieces(0, file.size_bytes))
                return file.digests()

    sent = transport.run(request, send)
    check_sha256(transport, key, options, sent)
    return sent


def check_sha256(transport: Transport, key: str, options: PutOptions, sent: Digests) -> None:
    """Check that a body has the SHA-256 of `options`, if there is one; raises CorruptObjectError."""
    if options.sha256 is not None:
        _compare(transport, key, f"SHA-256 {options.sha256}", f"SHA-256 {sent.sha256}")


def verify(transport: Transport, key: str, sent: Digests, stored: Stored) -> None:
    """Compare the stored object with what was sent; raises CorruptObjectError."""
    _compare(transport, key, f"{sent.size_bytes} bytes", f"{stored.info.size_bytes} bytes")
    if stored.info.etag == sent.md5:
        return
    # An ETag of another form (multipart uploads: "<md5>-<parts>"; encrypted buckets: anything) proves nothing, so the
    # object is read back.
    found = hash_pieces(transport.reader().stream(key, deadline=transport.budget(), fresh=True))
    _compare(transport, key, f"SHA-256 {sent.sha256}", f"SHA-256 {found.sha256}")


def _compare(transport: Transport, key: str, expected: str, actual: str) -> None:
    if expected != actual:
        raise CorruptObjectError(transport.name, key, expected, actual)


def stored_at(transport: Transport, key: str) -> Stored:
    """Return what Supabase knows of an object; raises ObjectNotFoundError."""
    bucket = transport.storage().from_(transport.bucket)
    request = transport.request(f"looking at {key}", key)
    return transport.run(request, lambda: read_info(transport, key, bucket.info(transport.path(key))))


def found_at(transport: Transport, key: str) -> Stored | None:
    """Return what Supabase knows of an object; None if there is none."""
    try:
        return stored_at(transport, key)
    except ObjectNotFoundError:
        return None


class _Info(BaseModel):
    """The members that are used of a response of the route `object/info`."""

    size: NonNegativeInt
    last_modified: AwareDatetime
    etag: str | None = None
    version: str | None = None
    metadata: dict[str, Any] | None = None


def read_info(transport: Transport, key: str, response: object) -> Stored:
    """Parse a response of the route `object/info`; raises ValueError if it has another form."""
    facts = _Info.model_validate(response)
    metadata = facts.metadata or {}
    token, sha256 = metadata.get("upload"), metadata.get("sha256")
    sha256 = sha256 if isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) else None
    etag = plain_etag(facts.etag)
    authenticated = False
    if sha256 is not None and etag is not None:
        digests = Digests(size_bytes=facts.size, md5=etag, sha256=sha256)
        authenticated = transport.authenticator.verify(metadata.get(SEAL_NAME), digests)
    info = ObjectInfo(
        key=key,
        size_bytes=facts.size,
        modified_at=facts.last_modified,
        etag=etag,
        sha256=sha256,
        digest_authenticated=authenticated,
        version=facts.version,
    )
    return Stored(info=info, token=token if isinstance(token, str) else None)


def open_body(path: Path, reporter: ProgressReporter, options: PutOptions) -> HashingReader:
    """Open a file for its upload; digests that `options` vouches for are not computed again; raises LocalFileError."""
    known = options.sha256 if options.settled or options.md5 is not None else None
    return HashingReader(path, reporter, md5=options.md5 if known is not None else None, sha256=known)


def user_metadata(transport: Transport, options: PutOptions, token: str, *, size_bytes: int) -> Mapping[str, str]:
    """Return the metadata to store beside the object: the caller's, the SHA-256 with its MAC, the upload's token."""
    recorded = {} if options.sha256 is None else {"sha256": options.sha256}
    if options.md5 is not None and options.sha256 is not None:
        digests = Digests(size_bytes=size_bytes, md5=options.md5, sha256=options.sha256)
        if (mac := transport.authenticator.mac(digests)) is not None:
            recorded[SEAL_NAME] = mac
    return {**options.metadata, **recorded, "upload": token}


def cache_control(options: PutOptions) -> str:
    """Return the cache directive; empty for "no-cache", which Supabase makes of an empty directive."""
    wanted = options.cache_control
    if wanted != NO_CACHE and not wanted.startswith(_MAX_AGE):
        raise SettingsError("cache_control", f"Supabase stores {NO_CACHE!r} or '{_MAX_AGE}…', not {wanted!r}")
    return "" if wanted == NO_CACHE else wanted


def max_age(options: PutOptions) -> str:
    """Return the cache directive as a number of seconds, for a route that accepts no other; empty for "no-cache"."""
    return cache_control(options).removeprefix(_MAX_AGE).partition(",")[0]


def metadata_header(transport: Transport, options: PutOptions, token: str, *, size_bytes: int) -> str:
    """Encode `user_metadata` for a request header."""
    metadata = user_metadata(transport, options, token, size_bytes=size_bytes)
    return base64.b64encode(json.dumps(metadata).encode()).decode()


def _headers(transport: Transport, options: PutOptions, token: str, size_bytes: int) -> dict[str, str]:
    return {
        "content-type": options.content_type,
        "cache-control": cache_control(options) or NO_CACHE,
        "x-upsert": "true",
        "x-metadata": metadata_header(transport, options, token, size_bytes=size_bytes),
    }
