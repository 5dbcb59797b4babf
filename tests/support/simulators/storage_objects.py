"""The routes that work on stored objects without carrying their bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.support.simulators import storage_errors as errors
from tests.support.simulators.http_request import Request
from tests.support.simulators.http_response import Response, json_response
from tests.support.simulators.storage_listing import MAX_PAGE, FolderQuery, PrefixQuery, list_folder, list_prefix
from tests.support.simulators.storage_rendering import full_row
from tests.support.simulators.storage_services import (
    Json,
    Services,
    key_of,
    metadata_header,
    require_role,
    wants_upsert,
)
from tests.support.simulators.storage_state import AssembledRelease, StoredObject, check_key
from tests.support.simulators.storage_tokens import Role

_UPLOAD_TOKEN_SECONDS = 2 * 60 * 60


def list_v1(services: Services, request: Request, bucket: str) -> Response:
    """POST `/object/list/<bucket>`."""
    privileged = require_role(request) is Role.SERVICE
    body = Json(request)
    order = body.fields.get("sortBy") or {}
    query = FolderQuery(
        prefix=body.text("prefix"),
        search=body.text("search", "") or "",
        limit=body.integer("limit", 100),
        offset=body.integer("offset", 0, least=0),
        column=str(order.get("column", "name")),
        descending=order.get("order") == "desc",
    )
    return json_response(list_folder(_visible(services, bucket, privileged=privileged), query))


def list_v2(services: Services, request: Request, bucket: str) -> Response:
    """POST `/object/list-v2/<bucket>`."""
    privileged = require_role(request) is Role.SERVICE
    body = Json(request)
    order = body.fields.get("sortBy") or {}
    if order.get("column", "name") != "name":
        raise errors.malformed("the simulator sorts list-v2 by name only")
    query = PrefixQuery(
        prefix=body.text("prefix", ""),
        limit=body.integer("limit", MAX_PAGE),
        cursor=body.text("cursor", "") or None,
        with_delimiter=body.flag("with_delimiter", False),
        order=order.get("order"),
    )
    return json_response(list_prefix(_visible(services, bucket, privileged=privileged), query))


def _visible(services: Services, bucket: str, *, privileged: bool) -> list[StoredObject]:
    """Return the objects that a listing shows: the policy for reading selects its rows too."""
    found = services.state.objects(bucket)
    if privileged:
        return found
    readable = any(item.id == bucket and item.anon_reads for item in services.state.buckets())
    return [stored for stored in found if readable and not stored.key.startswith("_tmp/")]


def copy(services: Services, request: Request) -> Response:
    """POST `/object/copy`."""
    privileged = require_role(request) is Role.SERVICE
    body = Json(request)
    bucket, key = body.text("bucketId"), body.text("destinationKey")
    destination = body.text("destinationBucket", bucket) or bucket
    check_key(key)
    source = services.state.get(bucket, body.text("sourceKey"))
    if not privileged:
        raise errors.no_such_key()
    if services.state.exists(destination, key) and not wants_upsert(request):
        raise errors.key_exists()
    draft = AssembledRelease(
        bucket=destination,
        key=key,
        blob=services.carried(source.blob, services.costs.copy_seconds_per_mb),
        mimetype=source.mimetype,
        cache_control=source.cache_control,
        user_metadata=source.user_metadata,
    )
    if not body.flag("copyMetadata", True):
        draft = _described_anew(draft, request, body.fields.get("metadata") or {})
    row = full_row(services.state.copy(draft, upsert=wants_upsert(request)))
    return json_response({"Key": f"{destination}/{key}", "Id": row["id"], **row})


def _described_anew(draft: AssembledRelease, request: Request, file_metadata: dict[str, Any]) -> AssembledRelease:
    return replace(
        draft,
        user_metadata=metadata_header(request),
        mimetype=file_metadata.get("mimetype", draft.mimetype),
        cache_control=file_metadata.get("cacheControl", draft.cache_control),
    )


def move(services: Services, request: Request) -> Response:
    """POST `/object/move`: the server's one atomic create-if-absent."""
    privileged = require_role(request) is Role.SERVICE
    body = Json(request)
    bucket, key = body.text("bucketId"), body.text("destinationKey")
    destination = body.text("destinationBucket", bucket) or bucket
    check_key(key)
    if not privileged:
        raise errors.no_such_key()
    # A key that is taken refuses the move before the server copies anything.
    source = (bucket, body.text("sourceKey"))
    blob = None if services.state.exists(destination, key) else services.state.get(*source).blob
    carried = None if blob is None else services.carried(blob, services.costs.move_seconds_per_mb)
    services.state.move(source, (destination, key), carried)
    return json_response({"message": "Successfully moved"})


def remove_many(services: Services, request: Request, bucket: str) -> Response:
    """DELETE `/object/<bucket>`: missing keys are silently left out of the answer."""
    privileged = require_role(request) is Role.SERVICE
    keys = Json(request).texts("prefixes")
    removed = services.state.remove(bucket, keys) if privileged else []
    return json_response([full_row(stored) for stored in removed])


def remove_one(services: Services, request: Request, bucket: str, key: str) -> Response:
    """DELETE `/object/<bucket>/<key>`."""
    privileged = require_role(request) is Role.SERVICE
    services.state.get(bucket, key)
    if not privileged:
        raise errors.access_denied("Access denied")
    if not services.state.remove(bucket, [key]):
        raise errors.no_such_key()
    return json_response({"message": "Successfully deleted"})


def _signed_url(services: Services, bucket: str, key: str, lifetime_seconds: int) -> str:
    token = services.signer.sign(f"{bucket}/{key}", scope="download", lifetime_seconds=lifetime_seconds)
    return f"/object/sign/{bucket}/{key}?token={token}"


def sign_one(services: Services, request: Request, bucket: str, key: str) -> Response:
    """POST `/object/sign/<bucket>/<key>`."""
    privileged = require_role(request) is Role.SERVICE
    lifetime_seconds = Json(request).integer("expiresIn")
    services.state.get(bucket, key)
    if not privileged:
        raise errors.no_such_key()
    return json_response({"signedURL": _signed_url(services, bucket, key, lifetime_seconds)})


def sign_many(services: Services, request: Request, bucket: str) -> Response:
    """POST `/object/sign/<bucket>`: one row per path asked for."""
    privileged = require_role(request) is Role.SERVICE
    body = Json(request)
    lifetime_seconds = body.integer("expiresIn")
    rows: list[dict[str, str | None]] = []
    for key in body.texts("paths"):
        if privileged and services.state.exists(bucket, key):
            url = _signed_url(services, bucket, key, lifetime_seconds)
            rows.append({"error": None, "path": key, "signedURL": url})
        else:
            error = "Either the object does not exist or you do not have access to it"
            rows.append({"error": error, "path": key, "signedURL": None})
    return json_response(rows)


def sign_upload(services: Services, request: Request, segments: list[str]) -> Response:
    """POST `/object/upload/sign/<bucket>/<key>`."""
    privileged = require_role(request) is Role.SERVICE
    bucket, key = key_of(segments[:1]), key_of(segments[1:])
    services.state.bucket(bucket)
    check_key(key)
    if not privileged:
        raise errors.row_level_security()
    if not wants_upsert(request) and services.state.exists(bucket, key):
        raise errors.key_exists()
    token = services.signer.sign(
        f"{bucket}/{key}", scope="upload", lifetime_seconds=_UPLOAD_TOKEN_SECONDS, upsert=wants_upsert(request)
    )
    return json_response({"url": f"/object/upload/sign/{bucket}/{key}?token={token}", "token": token})
