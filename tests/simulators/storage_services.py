"""What every route of the simulated Storage works with."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from tests.simulators import storage_errors as errors
from tests.simulators.http_request import Request
from tests.simulators.storage_state import StorageState
from tests.simulators.storage_tokens import Role, UrlSigner, role_of

_MAX_JSON_BYTES = 8 * 1024 * 1024
_UNSPECIFIED: Any = object()


@dataclass(frozen=True, kw_only=True)
class Services:
    """The state behind the routes."""

    state: StorageState
    signer: UrlSigner


def key_of(segments: list[str]) -> str:
    """The object key these percent-encoded path segments spell."""
    return unquote("/".join(segments))


def require_role(request: Request) -> Role:
    """SERVICE or ANON; raises for a request without a header or with garbage in it."""
    if "authorization" not in request.headers:
        raise errors.malformed("headers must have required property 'authorization'")
    return require_token(request)


def require_token(request: Request) -> Role:
    """The same for routes that have no opinion on headers: without one, the token is as good as garbage."""
    role = role_of(request.header("authorization"))
    if role in (Role.MISSING, Role.GARBAGE):
        raise errors.garbage_token()
    return role


class Json:
    """A request's JSON body, an object, read field by field."""

    def __init__(self, request: Request) -> None:
        raw = request.body.read_all(_MAX_JSON_BYTES)
        try:
            value = json.loads(raw or b"{}")
        except ValueError as error:
            raise errors.malformed("Body is not valid JSON but content-type is set to 'application/json'") from error
        if not isinstance(value, dict):
            raise errors.malformed("body must be object")
        self.fields: dict[str, Any] = value

    def text(self, name: str, default: str = _UNSPECIFIED) -> str:
        """A string."""
        value: str = self._get(name, str, "string", default)
        return value

    def flag(self, name: str, default: bool = _UNSPECIFIED) -> bool:
        """A boolean."""
        value: bool = self._get(name, bool, "boolean", default)
        return value

    def texts(self, name: str) -> list[str]:
        """A list of strings."""
        values: list[Any] = self._get(name, list, "array", _UNSPECIFIED)
        if not all(isinstance(value, str) for value in values):
            raise errors.malformed(f"body/{name}/0 must be string")
        return values

    def integer(self, name: str, default: int = _UNSPECIFIED, *, least: int = 1) -> int:
        """An integer, which may come as a string (storage3 sends `expiresIn` so)."""
        value = self.fields.get(name, default)
        if value is _UNSPECIFIED:
            raise errors.malformed(f"body must have required property '{name}'")
        try:
            number = int(value)
        except (TypeError, ValueError) as error:
            raise errors.malformed(f"body/{name} must be integer") from error
        if number < least:
            raise errors.malformed(f"body/{name} must be >= {least}")
        return number

    def _get(self, name: str, kind: type, spelled: str, default: Any) -> Any:
        value = self.fields.get(name, default)
        if value is _UNSPECIFIED:
            raise errors.malformed(f"body must have required property '{name}'")
        if value is not default and not isinstance(value, kind):
            raise errors.malformed(f"body/{name} must be {spelled}")
        return value


def metadata_header(request: Request) -> dict[str, Any] | None:
    """The `x-metadata` header: base64 of a JSON object."""
    raw = request.header("x-metadata")
    if not raw:
        return None
    try:
        value = json.loads(base64.b64decode(raw))
    except (binascii.Error, ValueError) as error:
        raise errors.invalid_parameter("Invalid Parameter x-metadata") from error
    if not isinstance(value, dict):
        raise errors.invalid_parameter("Invalid Parameter x-metadata")
    return value


def wants_upsert(request: Request) -> bool:
    """Whether an existing object may be replaced; anything but "true" means no."""
    return request.header("x-upsert") == "true"
