"""Services that the routes of the simulated Storage share."""

from __future__ import annotations

import base64
import binascii
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import unquote

from tests.support.simulators import storage_errors as errors
from tests.support.simulators.http_request import Request
from tests.support.simulators.storage_blobs import Blob
from tests.support.simulators.storage_state import StorageState
from tests.support.simulators.storage_tokens import Role, UrlSigner, role_of

_MAX_JSON_BYTES = 8 * 1024 * 1024
_UNSPECIFIED: Any = object()


@dataclass(frozen=True, kw_only=True)
class ServerCosts:
    """What a server needs for an object's bytes; `move` copies and hashes as `copy` does.

    Attributes:
        move_seconds_per_mb, copy_seconds_per_mb: The time for 1,000,000 bytes; 0: the bytes are shared, not copied.
        upload_seconds_per_mb: The least time for 1,000,000 bytes of a body; uploads at the same time share this rate.
    """

    move_seconds_per_mb: float = 0.0
    copy_seconds_per_mb: float = 0.0
    upload_seconds_per_mb: float = 0.0


REAL_COSTS = ServerCosts(
    move_seconds_per_mb=0.690 / 54, copy_seconds_per_mb=0.780 / 54, upload_seconds_per_mb=1.022 / 108
)
"""Measured on a real server with a file backend: 54 MB take 650 to 730 ms to move, 720 to 840 ms to copy; two uploads
of 54 MB take 1,022 ms one after the other, and as long at once."""


class UploadRate:
    """Takes the bodies of all uploads at the rate of one server."""

    def __init__(self, seconds_per_mb: float) -> None:
        self._seconds_per_byte = seconds_per_mb / 1e6
        self._free_at = 0.0
        self._lock = threading.Lock()

    def limit(self, append: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """Return a function that appends a piece, and takes its time."""
        if not self._seconds_per_byte:
            return append

        def take(piece: bytes) -> None:
            with self._lock:
                self._free_at = max(self._free_at, time.monotonic()) + len(piece) * self._seconds_per_byte
                end = self._free_at
            append(piece)
            time.sleep(max(0.0, end - time.monotonic()))

        return take


@dataclass(frozen=True, kw_only=True)
class Services:
    """The state behind the routes."""

    state: StorageState
    signer: UrlSigner
    newer_build: bool = False
    costs: ServerCosts = field(default_factory=ServerCosts)

    @cached_property
    def upload_rate(self) -> UploadRate:
        """The rate that all uploads share."""
        return UploadRate(self.costs.upload_seconds_per_mb)

    def carried(self, blob: Blob, seconds_per_mb: float) -> Blob:
        """Return the blob itself where that is free, else a copy that is hashed and takes its time."""
        if not seconds_per_mb:
            return blob
        end = time.monotonic() + seconds_per_mb * blob.size_bytes / 1e6
        copied = self.state.blobs.copied(blob)
        time.sleep(max(0.0, end - time.monotonic()))
        return copied


def key_of(segments: list[str]) -> str:
    """Return the object key of percent-encoded path segments."""
    return unquote("/".join(segments))


def require_role(request: Request) -> Role:
    """Return SERVICE or ANON; raise for a request without a header or with an invalid one."""
    if "authorization" not in request.headers:
        raise errors.malformed("headers must have required property 'authorization'")
    return require_token(request)


def require_token(request: Request) -> Role:
    """Return the role on routes that do not require the header: without it, the token is invalid."""
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
        """Return a string."""
        value: str = self._get(name, str, "string", default)
        return value

    def flag(self, name: str, default: bool = _UNSPECIFIED) -> bool:
        """Return a boolean."""
        value: bool = self._get(name, bool, "boolean", default)
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of strings."""
        values: list[Any] = self._get(name, list, "array", _UNSPECIFIED)
        if not all(isinstance(value, str) for value in values):
            raise errors.malformed(f"body/{name}/0 must be string")
        return values

    def integer(self, name: str, default: int = _UNSPECIFIED, *, least: int = 1) -> int:
        """Return an integer, which may be sent as a string (`expiresIn` of storage3)."""
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
    """Return the header `x-metadata`: base64 of a JSON object."""
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
    """Return whether an existing object may be replaced; only "true" means yes."""
    return request.header("x-upsert") == "true"
