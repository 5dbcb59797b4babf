"""The routes that receive an object in one request."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.simulators import storage_errors as errors
from tests.support.simulators.http_multipart import boundary_of, read_form
from tests.support.simulators.http_request import Request
from tests.support.simulators.http_response import Response, json_response
from tests.support.simulators.storage_services import Services, key_of, metadata_header, require_role, wants_upsert
from tests.support.simulators.storage_state import AssembledRelease, Bucket, check_key, check_path
from tests.support.simulators.storage_tokens import Role

GLOBAL_LIMIT_BYTES = 5 * 1024**3


@dataclass(frozen=True, kw_only=True)
class _Description:
    mimetype: str
    cache_control: str
    user_metadata: dict[str, Any]


def upload_object(services: Services, request: Request, segments: list[str]) -> Response:
    """POST or PUT `/object/<bucket>/<key>`: PUT always overwrites, POST only with `x-upsert: true`."""
    privileged = require_role(request) is Role.SERVICE
    upsert = request.method == "PUT" or wants_upsert(request)
    bucket, key = key_of(segments[:1]), key_of(segments[1:])
    return _store(services, request, bucket, key, upsert=upsert, privileged=privileged)


def upload_signed(services: Services, request: Request, segments: list[str]) -> Response:
    """PUT `/object/upload/sign/<bucket>/<key>?token=`: the token says whether it may overwrite."""
    bucket, key = key_of(segments[:1]), key_of(segments[1:])
    payload = services.signer.verify(request.query.get("token", ""), f"{bucket}/{key}", scope="upload")
    return _store(services, request, bucket, key, upsert=bool(payload.get("upsert")), privileged=True)


def size_limit_bytes(bucket: Bucket) -> int:
    """Return the size of the largest object that the bucket accepts."""
    return min(bucket.file_size_limit_bytes or GLOBAL_LIMIT_BYTES, GLOBAL_LIMIT_BYTES)


def check_mimetype(bucket: Bucket, mimetype: str) -> None:
    """Raise for a type that the bucket does not allow."""
    kind, _, subtype = mimetype.partition("/")
    allowed = bucket.allowed_mime_types
    if allowed and f"{kind}/*" not in allowed and f"{kind}/{subtype}" not in allowed:
        raise errors.mime_type_refused(mimetype)


def _store(
    services: Services, request: Request, bucket_name: str, key: str, *, upsert: bool, privileged: bool
) -> Response:
    """Check, receive the body, then write; like in the real server, the key is not locked meanwhile.

    So of concurrent uploads to one new key all may pass the check, and the last to finish wins.
    """
    bucket = services.state.bucket(bucket_name)
    limit = size_limit_bytes(bucket)
    boundary = boundary_of(request.header("content-type"))
    if boundary is None:
        check_mimetype(bucket, _raw_mimetype(request))
        if (request.body.unread_bytes or 0) > limit:
            raise errors.too_large()
    check_key(key)
    if not privileged:
        raise errors.row_level_security()
    if not upsert and services.state.exists(bucket_name, key):
        raise errors.key_exists()
    check_path(bucket_name, key)
    draft = _receive(services, request, bucket, key, boundary)
    stored = services.state.put(draft)
    return json_response({"Key": f"{bucket_name}/{key}", "Id": stored.id})


def _receive(
    services: Services, request: Request, bucket: Bucket, key: str, boundary: bytes | None
) -> AssembledRelease:
    writer = services.state.blobs.writer()
    try:
        with writer.appending() as write:
            append = services.upload_rate.limit(write)
            described = _take_raw(request, append) if boundary is None else _take_form(request, boundary, append)
        check_mimetype(bucket, described.mimetype)
        if writer.size_bytes > size_limit_bytes(bucket):
            raise errors.too_large()
    except BaseException:
        writer.discard()
        raise
    return AssembledRelease(
        bucket=bucket.id,
        key=key,
        blob=writer.finish(),
        mimetype=described.mimetype,
        cache_control=described.cache_control,
        user_metadata=described.user_metadata,
    )


def _raw_mimetype(request: Request) -> str:
    return request.header("content-type") or "application/octet-stream"


def _take_raw(request: Request, append: Callable[[bytes], None]) -> _Description:
    metadata = metadata_header(request)
    while piece := request.body.read():
        append(piece)
    return _Description(
        mimetype=_raw_mimetype(request),
        cache_control=request.header("cache-control") or "no-cache",
        user_metadata=metadata or {},
    )


def _take_form(request: Request, boundary: bytes, append: Callable[[bytes], None]) -> _Description:
    form = read_form(request.body, boundary, append)
    if form.mimetype is None:
        raise errors.malformed("No content provided")
    seconds = form.fields.get("cacheControl")
    try:
        metadata = json.loads(form.fields.get("metadata") or form.fields.get("userMetadata") or "{}")
    except ValueError:
        metadata = {}  # the real server ignores what it cannot parse
    return _Description(
        mimetype=form.fields.get("contentType") or form.mimetype,
        cache_control=f"max-age={seconds}" if seconds else "no-cache",
        user_metadata=metadata,
    )
