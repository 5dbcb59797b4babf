"""Find the route of Supabase Storage that answers a request."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.simulators import storage_errors as errors
from tests.support.simulators import storage_objects as objects
from tests.support.simulators.gateway import Gateway
from tests.support.simulators.http_request import Request
from tests.support.simulators.http_response import Response, json_response
from tests.support.simulators.storage_buckets import route_bucket
from tests.support.simulators.storage_downloads import route_download
from tests.support.simulators.storage_errors import StorageError
from tests.support.simulators.storage_outages import Outage
from tests.support.simulators.storage_services import Services, key_of
from tests.support.simulators.storage_tus import TusUploads
from tests.support.simulators.storage_uploads import upload_object, upload_signed

PREFIX = ["", "storage", "v1"]
REST_PREFIX = ["", "rest", "v1"]


def is_plain_upload(request: Request) -> bool:
    """Return whether the request uploads an object to `/object/` in one request."""
    segments = request.raw_path.split("/")
    operations = {"list", "list-v2", "copy", "move", "sign"}
    is_object = segments[3:4] == ["object"] and operations.isdisjoint(segments[4:5])
    return is_object and request.method in ("POST", "PUT")


class StorageApi:
    """Storage's HTTP API over a state, behind the project's gateway.

    Attributes:
        outage: The outage of the project at present.
        rest: Answers the requests below `/rest/v1`, which Storage does not have.
    """

    def __init__(self, services: Services, gateway: Gateway) -> None:
        self._services = services
        self._gateway = gateway
        self.outage = Outage.NONE
        self.rest: Callable[[Request], Response] | None = None
        self.uploads = TusUploads(services)

    def handle(self, request: Request) -> Response:
        """Answer any request."""
        segments = request.raw_path.split("/")
        to_rest = self.rest if segments[:3] == REST_PREFIX else None
        if to_rest is None and segments[:3] != PREFIX:
            return json_response({"message": "no Route matched with those values"}, status=404)
        passed_on = self._gateway.pass_on(request)
        if isinstance(passed_on, Response):
            return passed_on
        if to_rest is not None:
            return to_rest(passed_on)
        if (refusal := self.outage.refusal(request)) is not None:
            return refusal
        request = passed_on
        try:
            match segments[3:]:
                case ["bucket", *rest]:
                    return route_bucket(self._services, request, rest)
                case ["object", *rest]:
                    return self._object(request, rest)
                case ["upload", "resumable", *rest]:
                    return self.uploads.route(request, rest)
                case _:
                    raise errors.no_such_route(request.method, request.path)
        except StorageError as error:
            return json_response(error.as_json(), status=error.http_status)

    def _object(self, request: Request, segments: list[str]) -> Response:
        match request.method:
            case "GET" | "HEAD":
                return route_download(self._services, request, segments)
            case "POST":
                return self._post(request, segments)
            case "PUT":
                return self._put(request, segments)
            case "DELETE":
                return self._delete(request, segments)
            case _:
                raise errors.no_such_route(request.method, request.path)

    def _post(self, request: Request, segments: list[str]) -> Response:
        match segments:
            case ["list", bucket]:
                return objects.list_v1(self._services, request, key_of([bucket]))
            case ["list-v2", bucket]:
                return objects.list_v2(self._services, request, key_of([bucket]))
            case ["copy"]:
                return objects.copy(self._services, request)
            case ["move"]:
                return objects.move(self._services, request)
            case ["sign", bucket]:
                return objects.sign_many(self._services, request, key_of([bucket]))
            case ["sign", bucket, *key]:
                return objects.sign_one(self._services, request, key_of([bucket]), key_of(key))
            case ["upload", "sign", _, _, *_]:
                return objects.sign_upload(self._services, request, segments[2:])
            case [_, _, *_]:
                return upload_object(self._services, request, segments)
            case _:
                raise errors.no_such_route(request.method, request.path)

    def _put(self, request: Request, segments: list[str]) -> Response:
        match segments:
            case ["upload", "sign", _, _, *_]:
                return upload_signed(self._services, request, segments[2:])
            case [_, _, *_]:
                return upload_object(self._services, request, segments)
            case _:
                raise errors.no_such_route(request.method, request.path)

    def _delete(self, request: Request, segments: list[str]) -> Response:
        match segments:
            case [bucket]:
                return objects.remove_many(self._services, request, key_of([bucket]))
            case [bucket, *key]:
                return objects.remove_one(self._services, request, key_of([bucket]), key_of(key))
            case _:
                raise errors.no_such_route(request.method, request.path)
