"""Reading objects over HTTP, each within its time, past failures that pass, and never through a redirect."""

from __future__ import annotations

import logging
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import urlsplit

import httpx

from supabase_bridge.consumer.addresses import Addresses
from supabase_bridge.consumer.line import get
from supabase_bridge.consumer.reading import Content, Deadline
from supabase_bridge.errors import (
    AccessDeniedError,
    BridgeError,
    BucketNotFoundError,
    CorruptObjectError,
    DeadlineExceededError,
    ObjectTooLargeError,
    ReadDeniedError,
    RedirectRefusedError,
    StoreUnavailableError,
    UnexpectedAnswerError,
)
from supabase_bridge.object_store.line import Lines

TRIES = 4
_PAUSES_SECONDS = (0.25, 0.75, 2.0)
_REFUSAL_LIMIT_BYTES = 64 * 1024
_CONTENT_RANGE = re.compile(r"bytes (?P<start>[0-9]{1,18})-[0-9]{1,18}/(?P<size>[0-9]{1,18})")
_LENGTH = re.compile(r"[0-9]{1,18}")
_ETAG = re.compile(r'(W/)?"[!#-~]{1,200}"')
_NOT_MODIFIED = 304
_PARTIAL = 206

_logger = logging.getLogger(__name__)
_random = random.SystemRandom()


@dataclass(frozen=True, kw_only=True)
class _Call:
    """What is being done, to which object, until when."""

    operation: str
    key: str
    deadline: Deadline


class _PassingError(Exception):
    """A failure that may pass; `error` is what to raise when it does not. It never leaves this module."""

    def __init__(self, error: BridgeError) -> None:
        super().__init__(str(error))
        self.error = error


class HttpReader:
    """Reads one bucket over HTTP; see `Reader` for what each method promises.

    Failures that pass (a broken connection, 5xx, 429) are tried again, TRIES times in a row without progress at most,
    and never past the deadline. No redirect is followed: a key goes to the host of the settings and nowhere else.

    Args:
        addresses: Where the objects are.
        pause: Waits between two tries; replaced in tests.
    """

    def __init__(self, addresses: Addresses, *, pause: Callable[[float], None] = time.sleep) -> None:
        self._addresses = addresses
        self._pause = pause
        self._lines = Lines()

    @property
    def name(self) -> str:
        return self._addresses.name

    def read(self, key: str, *, limit_bytes: int, known_etag: str | None, deadline: Deadline) -> Content | None:
        call = _Call(operation=f"reading {key}", key=key, deadline=deadline)
        failures = 0
        while True:
            try:
                return self._read_once(call, limit_bytes, known_etag)
            except _PassingError as trouble:
                failures += 1
                self._wait(call, trouble, failures=failures)

    def stream(self, key: str, *, size_bytes: int, deadline: Deadline) -> Iterator[bytes]:
        """As the protocol says. A connection that breaks is taken up where it broke (Range, RFC 9110 section 14),
        provided that the ETag is the one that the first bytes came with."""
        call = _Call(operation=f"reading {key}", key=key, deadline=deadline)
        offset, etag, failures = 0, None, 0
        while True:
            before = offset
            try:
                with self._get(call, {"range": f"bytes={offset}-"} if offset else {}, nonce=None) as response:
                    etag = self._check_part(call, response, offset=offset, etag=etag, size_bytes=size_bytes)
                    for piece in self._pieces(call, response):
                        offset += len(piece)
                        if offset > size_bytes:
                            raise self._other_size(key, size_bytes, f"more than {size_bytes}")
                        yield piece
                if offset < size_bytes:
                    raise self._other_size(key, size_bytes, str(offset))
                return
            except _PassingError as trouble:
                failures = 1 if offset > before else failures + 1
                self._wait(call, trouble, failures=failures)

    def close(self) -> None:
        self._lines.close()

    def _read_once(self, call: _Call, limit_bytes: int, known_etag: str | None) -> Content | None:
        headers = {} if known_etag is None else {"if-none-match": known_etag}
        with self._get(call, headers, nonce=uuid.uuid4().hex) as response:
            if response.status_code == _NOT_MODIFIED:
                return None
            if (_length(response) or 0) > limit_bytes:
                raise ObjectTooLargeError(self.name, call.key, limit_bytes)
            data = bytearray()
            for piece in self._pieces(call, response):
                data += piece
                if len(data) > limit_bytes:
                    raise ObjectTooLargeError(self.name, call.key, limit_bytes)
            return Content(data=bytes(data), etag=_etag(response))

    @contextmanager
    def _get(self, call: _Call, headers: Mapping[str, str], *, nonce: str | None) -> Iterator[httpx.Response]:
        """One exchange that succeeded so far; what fails later in it comes out as our error or as _PassingError."""
        address = self._addresses.of(call.key, nonce=nonce)
        if not call.deadline.remaining:
            raise self._late(call)
        with self._lines.lend(address.url) as line:
            try:
                with get(line, address.url, {**address.headers, **headers}, deadline=call.deadline) as response:
                    asked_if_modified = "if-none-match" in headers and response.status_code == _NOT_MODIFIED
                    if not (response.is_success or asked_if_modified):
                        self._refuse(call, response, secret=address.secret)
                    if response.headers.get("content-encoding", "identity") != "identity":
                        raise UnexpectedAnswerError(self.name, call.operation, "a compressed body, not asked for")
                    yield response
            except (httpx.HTTPError, httpx.StreamError, ValueError) as failure:
                if line.cut or not call.deadline.remaining:
                    raise self._late(call) from failure
                reason = f"the connection failed ({type(failure).__name__})"
                raise _PassingError(StoreUnavailableError(self.name, call.operation, reason)) from failure

    def _pieces(self, call: _Call, response: httpx.Response) -> Iterator[bytes]:
        """The body as it comes, no longer than the deadline allows, however steadily it trickles."""
        stream = response.stream
        if not isinstance(stream, httpx.SyncByteStream):
            raise TypeError("a response of a synchronous transport has another kind of stream")
        for piece in stream:
            if not call.deadline.remaining:
                raise self._late(call)
            yield piece

    def _refuse(self, call: _Call, response: httpx.Response, *, secret: str) -> NoReturn:
        """Raise what an answer that is no success means."""
        if 300 <= response.status_code < 400 and "location" in response.headers:
            raise RedirectRefusedError(self.name, call.operation, _host(response.headers["location"]))
        body = bytearray()
        for piece in self._pieces(call, response):
            body += piece
            if len(body) > _REFUSAL_LIMIT_BYTES:
                break
        # storage3, which these import, takes 0.1 s to load, and only a refusal needs it.
        from supabase_bridge.object_store.supabase_errors import RefusalError, Request, diagnose, read_answer

        answer = read_answer(response, bytes(body[:_REFUSAL_LIMIT_BYTES]), secret=secret)
        bucket = self._addresses.bucket
        asked = Request(store=self.name, bucket=bucket, operation=call.operation, key=call.key)
        trouble = diagnose(RefusalError(answer), asked)
        if trouble.again:
            raise _PassingError(trouble.error)
        if isinstance(trouble.error, AccessDeniedError):
            raise ReadDeniedError(self.name, call.operation, str(answer))
        if isinstance(trouble.error, BucketNotFoundError):
            # The server says the same of a bucket that is hidden: to a wrong key, or, where it is private, to none.
            hidden = f"no public bucket {bucket!r}, and no key is set" if self._addresses.public else str(answer)
            raise ReadDeniedError(self.name, call.operation, hidden)
        raise trouble.error

    def _check_part(
        self, call: _Call, response: httpx.Response, *, offset: int, etag: str | None, size_bytes: int
    ) -> str | None:
        """Hold a response to the recorded size, and a later one to the content of the first; return its ETag."""
        found = _etag(response)
        if not offset:
            length = _length(response)
            if length is not None and length != size_bytes:
                raise self._other_size(call.key, size_bytes, str(length))
            return found
        part = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if etag is None or found != etag:
            reason = f"the object changed while it was being read, after {offset} bytes"
            raise StoreUnavailableError(self.name, call.operation, reason)
        expected = (_PARTIAL, offset, size_bytes)
        if part is None or (response.status_code, int(part["start"]), int(part["size"])) != expected:
            raise UnexpectedAnswerError(self.name, call.operation, "another range than was asked for")
        return etag

    def _wait(self, call: _Call, trouble: _PassingError, *, failures: int) -> None:
        """Pause before another try; give up after TRIES in a row, or where the deadline leaves no time for one."""
        if failures >= TRIES:
            raise trouble.error from trouble
        seconds = _PAUSES_SECONDS[failures - 1] * _random.uniform(0.5, 1.0)
        if seconds >= call.deadline.remaining:
            raise trouble.error from trouble
        facts = {"key": call.key, "reason": str(trouble.error), "pause": seconds}
        _logger.info("Supabase Storage will be asked again", extra=facts)
        self._pause(seconds)

    def _late(self, call: _Call) -> DeadlineExceededError:
        return DeadlineExceededError(self.name, call.operation, call.deadline.seconds)

    def _other_size(self, key: str, size_bytes: int, found: str) -> CorruptObjectError:
        return CorruptObjectError(self.name, key, f"{size_bytes} bytes", f"{found} bytes")


def _length(response: httpx.Response) -> int | None:
    """How long the body is said to be."""
    text = response.headers.get("content-length", "")
    return int(text) if _LENGTH.fullmatch(text) else None


def _host(location: str) -> str:
    """The host that a redirect leads to; urlsplit refuses some texts."""
    try:
        return urlsplit(location).hostname or "nowhere"
    except ValueError:
        return "nowhere"


def _etag(response: httpx.Response) -> str | None:
    """The ETag (RFC 9110, section 8.8.3), where it is one that can be sent back."""
    text: str = response.headers.get("etag", "")
    return text if _ETAG.fullmatch(text) else None
