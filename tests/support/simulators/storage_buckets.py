"""The `/bucket` routes."""

from __future__ import annotations

from dataclasses import replace

from tests.support.simulators import storage_errors as errors
from tests.support.simulators.http_request import Request
from tests.support.simulators.http_response import Response, json_response
from tests.support.simulators.storage_rendering import bucket_row
from tests.support.simulators.storage_services import Json, Services, key_of, require_role
from tests.support.simulators.storage_state import Bucket
from tests.support.simulators.storage_tokens import Role


def route_bucket(services: Services, request: Request, segments: list[str]) -> Response:
    """Answer a request below `/bucket`; `segments` are what follows in the path."""
    privileged = require_role(request) is Role.SERVICE
    match (request.method, segments):
        case ("GET", []):
            rows = [bucket_row(bucket, with_type=True) for bucket in services.state.buckets()]
            return json_response(rows if privileged else [])
        case ("POST", []):
            return _create(services, request, privileged)
        case (_, [segment, *_]):
            name = key_of([segment])
            if not privileged:
                raise errors.no_such_bucket()
    match (request.method, segments):
        case ("GET", [_]):
            return json_response(bucket_row(services.state.bucket(name), with_type=False))
        case ("GET", [_, "lifecycle"]):
            if not (rules := services.state.bucket(name).rules):
                raise errors.no_lifecycle()
            return json_response({"rules": [dict(rule) for rule in rules]})
        case ("PUT", [_]):
            return _update(services, request, name)
        case ("DELETE", [_]):
            services.state.delete_bucket(name)
            return json_response({"message": "Successfully deleted"})
        case ("POST", [_, "empty"]):
            services.state.empty_bucket(name)
            return json_response({"message": "Empty bucket has been queued. Completion may take up to an hour."})
        case _:
            raise errors.no_such_route(request.method, request.path)


def _changed(bucket: Bucket, body: Json) -> Bucket:
    """Return the bucket with the settings of a body; other settings stay."""
    if "public" in body.fields:
        bucket = replace(bucket, public=body.flag("public"))
    if "file_size_limit" in body.fields:
        limit = None if body.fields["file_size_limit"] is None else body.integer("file_size_limit", least=0)
        bucket = replace(bucket, file_size_limit_bytes=limit)
    if "allowed_mime_types" in body.fields:
        types = None if body.fields["allowed_mime_types"] is None else tuple(body.texts("allowed_mime_types"))
        bucket = replace(bucket, allowed_mime_types=types)
    return bucket


def _create(services: Services, request: Request, privileged: bool) -> Response:
    if services.newer_build and not request.header("content-type"):
        raise errors.malformed("body must be object")
    body = Json(request)
    name = body.text("name")
    now = services.state.now()
    plain = Bucket(
        id=body.text("id", name),
        name=name,
        public=False,
        file_size_limit_bytes=None,
        allowed_mime_types=None,
        created_at=now,
        updated_at=now,
    )
    if not privileged:
        raise errors.row_level_security()
    services.state.create_bucket(_changed(plain, body))
    return json_response({"name": name})


def _update(services: Services, request: Request, name: str) -> Response:
    body = Json(request)
    services.state.update_bucket(name, lambda bucket: _changed(bucket, body))
    return json_response({"message": "Successfully updated"})
