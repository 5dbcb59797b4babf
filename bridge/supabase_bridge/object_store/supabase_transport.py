"""Talking to Supabase Storage: connections, retries, and refusals turned into errors with names."""

from __future__ import annotations

import copy
import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar
from urllib.parse import quote

import httpx
from storage3 import SyncStorageClient

from supabase_bridge.errors import AccessDeniedError
from supabase_bridge.object_store.bounded_transport import BoundedTransport
from supabase_bridge.object_store.patience import Patience
from supabase_bridge.object_store.sealing import Sealer
from supabase_bridge.object_store.supabase_errors import (
    FAILURES,
    RefusalError,
    Request,
    Trouble,
    diagnose,
    read_answer,
)
from supabase_bridge.secret import Secret

T = TypeVar("T")

TRIES = 4
_FIRST_PAUSE_SECONDS = 0.25
_PAUSE_FACTOR = 3
_PAUSE_CAP_SECONDS = 2.0
_REFUSAL_LIMIT_BYTES = 64 * 1024

_logger = logging.getLogger(__name__)
_random = random.SystemRandom()


class Transport:
    """The way to one Supabase project on behalf of one bucket; thread-safe, and connected on first use."""

    def __init__(
        self, *, url: str, key: Secret, bucket: str, timeout: timedelta, pause: Callable[[float], None]
    ) -> None:
        self.bucket = bucket
        self.sealer = Sealer(key)
        self._place = f"Supabase {url.partition('://')[2].rpartition('@')[2].partition('/')[0]}"
        self._url = f"{url.rstrip('/')}/storage/v1/"
        self._key = key
        self._timeout = timeout
        self._pause = pause
        self._lock = threading.Lock()
        self._pooled: httpx.Client | None = None

    @property
    def name(self) -> str:
        """The project and the bucket, for people."""
        return f"{self._place} bucket {self.bucket}"

    def beside(self, bucket: str) -> Transport:
        """The way to another bucket of the project, over the same connections; only this one is closed."""
        self.http()
        other = copy.copy(self)
        other.bucket = bucket
        return other

    def request(self, operation: str, key: str | None = None) -> Request:
        """What is about to be asked, in words."""
        return Request(store=self.name, bucket=self.bucket, operation=operation, key=key)

    def http(self) -> httpx.Client:
        """The pooled client, with the key in its headers; for what storage3 has no way to say."""
        with self._lock:
            if self._pooled is None:
                self._pooled = self._connect()
            return self._pooled

    def storage(self, http: httpx.Client | None = None) -> SyncStorageClient:
        """storage3 over a client; the pooled one by default."""
        return SyncStorageClient(self._url, headers={}, http_client=http or self.http())

    @contextmanager
    def own_connection(self) -> Iterator[httpx.Client]:
        """A client whose connection is used for nothing else and closed at the end.

        A server that refuses an upload of more than about 100 kB leaves the rest of its body unread; the next request
        on that connection then waits until it times out.
        """
        with self._connect() as client:
            yield client

    def url(self, *segments: str) -> str:
        """The URL of a route, its segments percent-encoded."""
        return self._url + "/".join(quote(segment, safe="/") for segment in segments)

    def path(self, key: str) -> str:
        """A key as storage3 takes it: it parses keys as URLs, in which a bare '?' or ':' would end or divide them."""
        return quote(key, safe="/")

    def run(self, request: Request, call: Callable[[], T], *, tries: int = TRIES) -> T:
        """What `call` returns, tried again after failures that pass; only for calls that may happen twice.

        Raises:
            BridgeError: the last try's failure, by its meaning.
        """
        tried = 0
        while True:
            try:
                return call()
            except FAILURES as failure:
                tried += 1
                trouble = diagnose(failure, request)
                if not trouble.again or tried >= tries:
                    raise trouble.error from failure
            self.wait(request, trouble, tried=tried)

    def wait(self, request: Request, trouble: Trouble, *, tried: int) -> None:
        """Pause before another try: exponential, with jitter, at least what the server asked for, and capped."""
        seconds = _FIRST_PAUSE_SECONDS * _PAUSE_FACTOR ** (tried - 1) * _random.uniform(0.5, 1.0)
        if trouble.retry_after is not None:
            seconds = max(seconds, trouble.retry_after.total_seconds())
        seconds = min(seconds, _PAUSE_CAP_SECONDS)
        facts = {"operation": request.operation, "key": request.key, "reason": str(trouble.error), "pause": seconds}
        _logger.info("Supabase Storage will be asked again", extra=facts)
        self._pause(seconds)

    def patience(self) -> Patience:
        """With what is taken up again and again: as long as TRIES silent answers, and what its bytes need."""
        return Patience(TRIES * self._timeout)

    def close(self) -> None:
        """Close the pooled connections."""
        with self._lock:
            if self._pooled is not None:
                self._pooled.close()

    def _connect(self) -> httpx.Client:
        key = self._key.reveal()
        if not (key.isascii() and key.isprintable() and key and " " not in key):
            # The HTTP library would refuse it too, and print it while doing so.
            raise AccessDeniedError(self.name, "connecting", "the key has characters that no key has")
        return httpx.Client(
            headers={"apikey": key, "authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(self._timeout.total_seconds()),
            transport=BoundedTransport(self._timeout),
            follow_redirects=False,
            event_hooks={"response": [self._check]},
        )

    def _check(self, response: httpx.Response) -> None:
        """Stop at every answer that is no success, before storage3 loses its `code`."""
        if response.is_success:
            return
        body = b""
        for piece in response.iter_bytes():
            body += piece
            if len(body) > _REFUSAL_LIMIT_BYTES:
                break
        raise RefusalError(read_answer(response, body, secret=self._key.reveal()))
