"""The routes that read one object."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from urllib.parse import quote

from tests.support.simulators import storage_errors as errors
from tests.support.simulators.http_request import Request
from tests.support.simulators.http_response import Response, json_response
from tests.support.simulators.storage_blobs import BlobRange
from tests.support.simulators.storage_rendering import etag, http_date, info
from tests.support.simulators.storage_services import Services, key_of, require_role
from tests.support.simulators.storage_state import StoredObject
from tests.support.simulators.storage_tokens import Role, role_of


def route_download(services: Services, request: Request, segments: list[str]) -> Response:
    """Answer a GET or HEAD below `/object`; `segments` are what follows in the path."""
    match segments:
        case ["info", "public", bucket, *key] | ["info", "authenticated", bucket, *key] | ["info", bucket, *key] if key:
            stored = _readable(services, request, key_of([bucket]), key_of(key), route=segments[1])
            return _info(stored)
        case ["sign", bucket, *key] if key and request.method == "GET":
            return _signed(services, request, key_of([bucket]), key_of(key))
        case ["public" | "authenticated" as route, bucket, *key] if key:
            return _body(request, _readable(services, request, key_of([bucket]), key_of(key), route=route))
        case [bucket, *key] if key:
            return _body(request, _readable(services, request, key_of([bucket]), key_of(key), route=""))
        case _:
            raise errors.no_such_route(request.method, request.path)


def _readable(services: Services, request: Request, bucket_name: str, key: str, *, route: str) -> StoredObject:
    """Return the object if the client may read it; a refusal looks the same for a missing object."""
    if route == "authenticated":
        require_role(request)
    role = role_of(request.header("authorization"))
    bucket = services.state.bucket(bucket_name)
    if not bucket.public and (route == "public" or role in (Role.MISSING, Role.GARBAGE)):
        raise errors.no_such_bucket()
    stored = services.state.get(bucket_name, key)
    if not bucket.public and role is Role.ANON and (not bucket.anon_reads or key.startswith("_tmp/")):
        raise errors.no_such_key()
    return stored


def _signed(services: Services, request: Request, bucket: str, key: str) -> Response:
    if "token" not in request.query:
        raise errors.malformed("querystring must have required property 'token'")
    payload = services.signer.verify(request.query["token"], f"{bucket}/{key}", scope="download")
    expires = http_date(datetime.fromtimestamp(payload["exp"], timezone.utc))
    return _body(request, services.state.get(bucket, key), expires=expires)


def _info(stored: StoredObject) -> Response:
    headers = {
        "etag": etag(stored),
        "last-modified": http_date(stored.updated_at),
        "cache-control": stored.cache_control,
    }
    return json_response(info(stored), headers=headers)


def _body(request: Request, stored: StoredObject, *, expires: str | None = None) -> Response:
    headers = {
        "content-type": "text/plain" if "text/html" in stored.mimetype else stored.mimetype,
        "accept-ranges": "bytes",
        "etag": etag(stored),
        "x-robots-tag": "none",
        "last-modified": http_date(stored.updated_at),
        **({"cache-control": stored.cache_control} if expires is None else {"expires": expires}),
        **_disposition(request),
    }
    whole = stored.blob.whole()
    if request.method == "GET" and request.header("if-none-match") == etag(stored):
        return Response(status=304, headers=headers)
    if request.method != "GET" or not request.header("range"):
        return Response(headers=headers, body=whole)
    part = _range(request.header("range"), whole)
    headers["content-range"] = f"bytes {part.start}-{part.start + part.length - 1}/{whole.length}"
    return Response(status=206, headers=headers, body=part)


def _range(header: str, whole: BlobRange) -> BlobRange:
    """Return the range of a header; several ranges are not simulated."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or match.group(1) == match.group(2) == "":
        raise errors.invalid_range()
    first, last = match.group(1), match.group(2)
    if not first:
        start, stop = max(0, whole.length - int(last)), whole.length
    else:
        start, stop = int(first), min(int(last) + 1, whole.length) if last else whole.length
    if start >= stop:
        raise errors.invalid_range()
    return whole.slice(start, stop)


def _disposition(request: Request) -> dict[str, str]:
    name = request.query.get("download")
    if name is None:
        return {}
    encoded = quote(name, safe="!'()*-._~")
    return {
        "content-disposition": f"attachment; filename={encoded}; filename*=UTF-8''{encoded}" if name else "attachment;"
    }
