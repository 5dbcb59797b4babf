"""Authorization: the project's keys and signed URLs."""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from tests.support.simulators import storage_errors as errors

_SECRET = b"the secret of a simulator is none"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _signature(signed: str) -> str:
    return _base64url(hmac.new(_SECRET, signed.encode(), hashlib.sha256).digest())


def _sign(payload: dict[str, Any]) -> str:
    header = {"alg": "HS256", "typ": "JWT"}
    signed = ".".join(_base64url(json.dumps(part, separators=(",", ":")).encode()) for part in (header, payload))
    return f"{signed}.{_signature(signed)}"


SERVICE_KEY = _sign({"role": "service_role", "iss": "supabase-simulator"})
DIGEST_KEY = "a random secret of the tests, used for digests alone"
"""The bridge's own secret, which the server does not have."""
ANON_KEY = _sign({"role": "anon", "iss": "supabase-simulator"})


class Role(enum.Enum):
    """The role of the Authorization header; `gateway.Gateway` reads `apikey` before."""

    SERVICE = "service_role"
    ANON = "anon"
    GARBAGE = "garbage"
    MISSING = "missing"


def role_of(authorization: str) -> Role:
    """Return the role of an Authorization header."""
    token = re.sub(r"^Bearer\s+", "", authorization, flags=re.IGNORECASE).strip()
    if not token:
        return Role.MISSING
    return {SERVICE_KEY: Role.SERVICE, ANON_KEY: Role.ANON}.get(token, Role.GARBAGE)


class UrlSigner:
    """Tokens for signed URLs.

    Args:
        clock: The time of day, aware.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock

    def sign(self, url: str, *, scope: str, lifetime_seconds: int, upsert: bool | None = None) -> str:
        """Make a token for one object (`bucket/key`) and one purpose."""
        now = int(self._clock().timestamp())
        more = {} if upsert is None else {"upsert": upsert}
        return _sign({**more, "url": url, "scope": scope, "iat": now, "exp": now + lifetime_seconds})

    def verify(self, token: str, url: str, *, scope: str) -> dict[str, Any]:
        """Return the payload of a token that is genuine, valid, and for this object and purpose."""
        signed, _, signature = token.rpartition(".")
        if token.count(".") != 2:
            raise errors.invalid_jwt("Invalid Compact JWS")
        if not hmac.compare_digest(signature.encode(), _signature(signed).encode()):
            raise errors.invalid_jwt("signature verification failed")
        try:
            payload: dict[str, Any] = json.loads(base64.urlsafe_b64decode(signed.split(".")[1] + "=="))
        except (binascii.Error, ValueError) as error:
            raise errors.invalid_jwt("Invalid Compact JWS") from error
        if payload.get("exp", 0) <= self._clock().timestamp():
            raise errors.invalid_jwt('"exp" claim timestamp check failed')
        if payload.get("scope") != scope:
            raise errors.invalid_signature(f"Token is not scoped for {scope}")
        if payload.get("url") != url:
            raise errors.invalid_signature()
        return payload
