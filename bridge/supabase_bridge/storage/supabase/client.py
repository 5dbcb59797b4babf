"""Connect to Supabase Storage with an API key, retry with backoff, and authenticate recorded digests."""

from __future__ import annotations

import copy
import hashlib
import hmac
import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar
from urllib.parse import quote

import httpx
from pydantic import SecretStr
from storage3 import SyncStorageClient
from storage3.utils import StorageException

from supabase_bridge.storage.base import Digests
from supabase_bridge.storage.errors import AccessDeniedError, Role
from supabase_bridge.storage.http import MINIMUM_RATE, BoundedTransport
from supabase_bridge.storage.supabase.endpoint import Target, key_headers, key_target
from supabase_bridge.storage.supabase.read import HttpReader
from supabase_bridge.storage.supabase.responses import FAILURES, TRIES, Failure, Operation, classify, read_refusal
from supabase_bridge.storage.time_budget import TimeBudget

T = TypeVar("T")

_logger = logging.getLogger(__name__)

SEAL_NAME = "seal"
"""Name of the MAC in an object's user metadata."""


class DigestAuthenticator:
    """Authenticate that a size, an MD5 and a SHA-256 belong to the same bytes: HMAC-SHA-256 (RFC 2104) with the key.

    Any writer of a bucket can write any metadata, but the ETag is the server's. A valid MAC over an object's size and
    ETag therefore proves that its content has this SHA-256. The MAC does not reveal the key.

    Args:
        key: A secret for this purpose alone, not an API key. None: no MAC is made, and none is valid.
    """

    def __init__(self, key: SecretStr | None) -> None:
        self._key = key

    def mac(self, digests: Digests) -> str | None:
        """Return the MAC in lower-case hex; None without a key."""
        if self._key is None:
            return None
        purpose = "supabase-bridge: these digests are of the same bytes"
        message = f"{purpose}\n{digests.size_bytes}\n{digests.md5}\n{digests.sha256}"
        return hmac.new(self._key.get_secret_value().encode(), message.encode(), hashlib.sha256).hexdigest()

    def verify(self, mac: object, digests: Digests) -> bool:
        """Return True if this is the MAC of these digests."""
        own = self.mac(digests)
        return own is not None and isinstance(mac, str) and mac.isascii() and hmac.compare_digest(mac, own)


class Transport:
    """An authenticated client for one bucket of a Supabase project, and an `Endpoint`; it connects on first use.

    Thread-safe.
    """

    def __init__(
        self,
        *,
        url: str,
        key: SecretStr,
        bucket: str,
        timeout: timedelta,
        pause: Callable[[float], None],
        writes: bool = True,
        digest_key: SecretStr | None = None,
    ) -> None:
        self.bucket = bucket
        self.role = Role.WRITER if writes else Role.READER
        self.sees_part = not writes
        self.authenticator = DigestAuthenticator(digest_key)
        self._place = f"Supabase {url.partition('://')[2].rpartition('@')[2].partition('/')[0]}"
        self._url = f"{url.rstrip('/')}/storage/v1/"
        self._key = key
        self._timeout = timeout
        self._pause = pause
        self._lock = threading.Lock()
        self._bounded = BoundedTransport(timeout)
        self._pooled: httpx.Client | None = None

    @property
    def name(self) -> str:
        """Project and bucket, for messages."""
        return f"{self._place} bucket {self.bucket}"

    def beside(self, bucket: str) -> Transport:
        """Return a client for another bucket of the project over the same connections; only this one is closed."""
        self.http()
        other = copy.copy(self)
        other.bucket = bucket
        return other

    def request(self, operation: str, key: str | None = None, *, size_bytes: int | None = None) -> Operation:
        """Describe a request for messages and errors."""
        return Operation(
            store=self.name, bucket=self.bucket, operation=operation, key=key, role=self.role, size_bytes=size_bytes
        )

    def http(self) -> httpx.Client:
        """Return the pooled HTTP client, with the key in its headers, for requests that storage3 cannot make."""
        with self._lock:
            if self._pooled is None:
                self._pooled = self._connect(self._bounded)
            return self._pooled

    def storage(self) -> SyncStorageClient:
        """Return storage3 over the pooled HTTP client."""
        return SyncStorageClient(self._url, headers={}, http_client=self.http())

    def own_connection(self) -> httpx.Client:
        """Return an HTTP client with a connection of its own, which ends with the client's block.

        A server that refuses an upload of more than about 100 kB leaves the rest of its body unread. The next request
        on that connection would then time out.
        """
        return self._connect(BoundedTransport(self._timeout))

    def reader(self) -> HttpReader:
        """Return a reader of the bucket over the pooled connections."""
        return HttpReader(self, transport=self._bounded, pause=self._pause)

    def target(self, key: str, *, nonce: str | None) -> Target:
        """Return the route that reads an object, with the key in its headers."""
        return key_target(self.url("object", self.bucket, key), self._checked_key(), nonce=nonce)

    def url(self, *segments: str) -> str:
        """Return the URL of a route with percent-encoded segments."""
        return self._url + "/".join(quote(segment, safe="/") for segment in segments)

    def path(self, key: str) -> str:
        """Encode a key for storage3, which parses keys as URLs: a bare '?' or ':' would end or divide them."""
        return quote(key, safe="/")

    def run(self, request: Operation, call: Callable[[], T]) -> T:
        """Run an idempotent call and retry it after failures that pass.

        Raises:
            BridgeError: the failure of the last attempt, by its meaning.
        """
        tried = 0
        while True:
            try:
                return call()
            except (*FAILURES, StorageException) as failure:
                tried += 1
                result = classify(failure, request)
                if not result.again or tried >= TRIES:
                    raise result.error from failure
            self.wait(request, result, tried=tried)

    def wait(self, request: Operation, failure: Failure, *, tried: int) -> None:
        """Wait before the next attempt; see `Failure.pause_seconds`."""
        seconds = failure.pause_seconds(tried=tried)
        facts = {"operation": request.operation, "key": request.key, "reason": str(failure.error), "pause": seconds}
        _logger.info("A request to Supabase Storage is retried", extra=facts)
        self._pause(seconds)

    def budget(self) -> TimeBudget:
        """Return the time budget of a resumed transfer: TRIES timeouts, and the time that its bytes need."""
        return TimeBudget(TRIES * self._timeout, minimum_rate=MINIMUM_RATE)

    def close(self) -> None:
        """Close the pooled connections."""
        self._bounded.close()

    def _checked_key(self) -> str:
        key = self._key.get_secret_value()
        if not (key.isascii() and key.isprintable() and key and " " not in key):
            # httpx would refuse it too, but with the key in its message.
            raise AccessDeniedError(self.name, "connecting", "the key contains invalid characters")
        return key

    def _connect(self, transport: BoundedTransport) -> httpx.Client:
        key = self._checked_key()
        return httpx.Client(
            # Compressed, an error response of a few bytes could expand to any size.
            headers={**key_headers(key), "accept-encoding": "identity"},
            transport=transport,
            follow_redirects=False,
            event_hooks={"response": [self._check]},
        )

    def _check(self, response: httpx.Response) -> None:
        """Raise the error of a response that is no success, before storage3 drops its `code`."""
        if not response.is_success:
            raise read_refusal(response, secret=self._key.get_secret_value())
