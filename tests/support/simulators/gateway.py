"""The gateway in front of a hosted project's services: it exchanges API keys for the JWTs that the services read.

Source: https://supabase.com/docs/guides/api/api-keys, and the gateway of the self-hosted stack (docker/volumes/api in
supabase/supabase), which does the same.
"""

from __future__ import annotations

import re
import secrets
import threading
from dataclasses import replace

from tests.support.simulators.http_request import Request
from tests.support.simulators.http_response import Response, json_response
from tests.support.simulators.storage_tokens import ANON_KEY, SERVICE_KEY

_BROWSER = re.compile(r"Mozilla/|AppleWebKit/|Gecko/")


def _refuse(message: str) -> Response:
    return json_response({"message": message, "hint": "See Settings > API Keys of the project."}, status=401)


class Gateway:
    """The API keys of a project, and what the gateway makes of a request's headers. Thread-safe.

    Attributes:
        publishable_key: The publishable key of the name `default`.
        secret_key: The secret key of the name `default`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, str] = {}
        self._legacy_keys_are_disabled = False
        self.publishable_key = self._create("sb_publishable_", ANON_KEY)
        self.secret_key = self.create_secret_key()

    def create_secret_key(self) -> str:
        """Create one more secret key, as a project may have one for each component."""
        return self._create("sb_secret_", SERVICE_KEY)

    def delete_key(self, key: str) -> None:
        """Delete a secret or publishable key; requests with it are refused from now on."""
        with self._lock:
            del self._keys[key]

    def disable_legacy_keys(self) -> None:
        """Refuse the legacy keys `anon` and `service_role` from now on."""
        self._legacy_keys_are_disabled = True

    def pass_on(self, request: Request) -> Request | Response:
        """Return the request as the service behind the gateway gets it, or the refusal.

        A key of the new form is exchanged for a JWT of its role. `Authorization` may hold such a key only if `apikey`
        holds the same one. A JWT in `Authorization` is passed on, because it is the token of a user or a legacy key.
        """
        key = request.header("apikey")
        token = re.sub(r"^Bearer\s+", "", request.header("authorization"), flags=re.IGNORECASE).strip()
        if self._legacy_keys_are_disabled and {key, token} & {SERVICE_KEY, ANON_KEY}:
            return _refuse("Legacy API keys are disabled")
        if key.startswith("sb_"):
            with self._lock:
                exchanged = self._keys.get(key)
            if exchanged is None:
                return _refuse("Unregistered API key")
            if key.startswith("sb_secret_") and _BROWSER.search(request.header("user-agent")):
                return _refuse("Forbidden use of secret API key in browser")
            if token in ("", key):
                return replace(request, headers={**request.headers, "authorization": f"Bearer {exchanged}"})
        if token.startswith("sb_"):
            return _refuse("Invalid API key")
        return request

    def _create(self, prefix: str, exchanged: str) -> str:
        key = f"{prefix}{secrets.token_hex(11)}_{secrets.token_hex(4)}"
        with self._lock:
            self._keys[key] = exchanged
        return key
