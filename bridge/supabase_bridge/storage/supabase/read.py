"""Read objects from Supabase Storage: whole, in ranges, in several ranges at once, resumed after interruptions.

The worker's store and the client library use the same reader. It imports httpx, not storage3, which takes 0.1 s more.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import httpx

from supabase_bridge.storage import errors
from supabase_bridge.storage.base import ObjectInfo
from supabase_bridge.storage.http import BUDGET, BoundedTransport
from supabase_bridge.storage.supabase.endpoint import Content, Endpoint, Target
from supabase_bridge.storage.supabase.responses import FAILURES, TRIES, Operation, RefusalError, classify, read_refusal
from supabase_bridge.storage.time_budget import TimeBudget

LARGE_BYTES = 16 * 1024 * 1024
"""A smaller object is always read by one request."""

PART_BYTES = 4 * 1024 * 1024
_PARTS_AT_ONCE = 8
_SAMPLE_BYTES = 2 * 1024 * 1024
_FAST_RATE = 50_000_000
"""Bytes per second. A connection that brings the sample at this rate brings the whole object."""

_CONTENT_RANGE = re.compile(r"bytes (?P<start>[0-9]{1,18})-[0-9]{1,18}/(?P<size>[0-9]{1,18})")
_LENGTH = re.compile(r"[0-9]{1,18}")
_ETAG = re.compile(r'(W/)?"[!#-~]{1,200}"')
_NOT_MODIFIED, _PARTIAL, _RANGE_NOT_SATISFIABLE = 304, 206, 416

_logger = logging.getLogger(__name__)


class HttpReader:
    """Reads the objects of one bucket over HTTP; thread-safe.

    Failures that may pass (broken connections, 5xx, 429) are retried, after TRIES attempts in a row without a new byte
    not any more. A time budget that is a deadline ends every read; another one limits the sum of its interruptions.
    No redirect is followed, so that a key is sent to the configured host only.

    Args:
        transport: Sends the requests; `close` closes it.
        pause: Waits between two attempts; replaced in tests, as `fast_rate` is.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        transport: BoundedTransport,
        pause: Callable[[float], None] = time.sleep,
        fast_rate: int = _FAST_RATE,
    ) -> None:
        self.endpoint = endpoint
        self.transport = transport
        self.pause = pause
        self._fast_rate = fast_rate

    @property
    def name(self) -> str:
        return self.endpoint.name

    @property
    def sees_part(self) -> bool:
        """Whether the endpoint's key sees only what policies allow."""
        return self.endpoint.sees_part

    def read(self, key: str, *, limit_bytes: int, known_etag: str | None, deadline: TimeBudget) -> Content | None:
        """Read a whole object past any cache; None if it still has the ETag `known_etag`.

        It starts again when the object is replaced meanwhile: a channel's manifest is overwritten at any time.

        Raises:
            ObjectNotFoundError, ObjectTooLargeError, DeadlineExceededError, StoreUnavailableError
        """
        for attempt in range(1, TRIES + 1):
            download = _Download(
                reader=self,
                key=key,
                budget=deadline,
                limit_bytes=limit_bytes,
                known_etag=known_etag,
                nonce=uuid.uuid4().hex,
            )
            try:
                data = b"".join(download.pieces())
                return None if download.is_unchanged else Content(data=data, etag=download.etag)
            except errors.StoreUnavailableError:
                if attempt == TRIES or not download.is_replaced:
                    raise
        raise AssertionError("unreachable")

    def stream(
        self, key: str, *, deadline: TimeBudget, size_bytes: int | None = None, fresh: bool = False
    ) -> Iterator[bytes]:
        """Return an object in pieces; the iterator ends only when all bytes have come.

        A connection brings at most its window per round trip, so that a distant server needs several. A large object
        that comes slowly is therefore read in parts, `_PARTS_AT_ONCE` at once, if the deadline is fixed. That takes
        the memory of these parts.

        Args:
            size_bytes: The recorded size; an object of another size is refused.
            fresh: Read past any cache.

        Raises:
            ObjectNotFoundError, CorruptObjectError, DeadlineExceededError
            StoreUnavailableError: the connection failed too often, or the object was replaced while it was read.
        """
        # A hosted project's CDN may serve an overwritten object for up to a minute.
        nonce = uuid.uuid4().hex if fresh else None
        download = _Download(reader=self, key=key, budget=deadline, expected_bytes=size_bytes, nonce=nonce)
        if deadline.is_deadline and size_bytes is not None and size_bytes >= LARGE_BYTES:
            return self._large(download, size_bytes)
        return download.pieces()

    def _large(self, download: _Download, size_bytes: int) -> Iterator[bytes]:
        """Yield a large object; after a sample that came slowly, the rest in parts."""
        with closing(download.pieces()) as pieces:
            yield next(pieces)
            waited, first = 0.0, download.offset
            while download.offset < _SAMPLE_BYTES:
                began = time.monotonic()
                piece = next(pieces)
                waited += time.monotonic() - began
                yield piece
            if not download.takes_ranges or download.offset - first >= waited * self._fast_rate:
                yield from pieces
                return
        yield from self._in_parts(download, size_bytes)

    def _in_parts(self, begun: _Download, size_bytes: int) -> Iterator[bytes]:
        """Yield what an interrupted download lacks, in order."""
        ahead, ended = deque[Future[bytes]](), threading.Event()
        with ThreadPoolExecutor(_PARTS_AT_ONCE, "part") as pool:
            try:
                for start in range(begun.offset, size_bytes, PART_BYTES):
                    stop = min(start + PART_BYTES, size_bytes)
                    part = replace(begun, offset=start, stop=stop, is_ranged=True, expected_bytes=None)
                    ahead.append(pool.submit(_whole, part, ended))
                    if len(ahead) == _PARTS_AT_ONCE:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                ended.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def read_part(self, info: ObjectInfo, *, start: int, size_bytes: int, deadline: TimeBudget) -> bytes:
        """Return `size_bytes` bytes of an object from `start`, fewer at its end.

        Raises:
            ObjectNotFoundError
            StoreUnavailableError: it was replaced since `info`.
        """
        stop = min(start + size_bytes, info.size_bytes)
        if stop <= start:
            return b""
        part = _Download(
            reader=self,
            key=info.key,
            budget=deadline,
            offset=start,
            stop=stop,
            is_ranged=True,
            size_bytes=info.size_bytes,
            etag=f'"{info.etag}"',
        )
        return b"".join(part.pieces())

    def close(self) -> None:
        """Close the connections."""
        self.transport.close()


@dataclass(kw_only=True)
class _Download:
    """One object, or a part of it, on its way in; used once.

    After an interruption it resumes with a range request (RFC 9110, section 14) if the ETag is still that of the first
    bytes, so it never joins two contents.

    Attributes:
        limit_bytes: A longer object is refused.
        expected_bytes: The recorded size; an object of another size is damaged.
        nonce: With one, no cache answers.
        offset: Where the next byte lies; `stop` is behind the last one, None for the object's end.
        etag: The object's ETag, if it can be sent back.
        takes_ranges: Whether the server said that it takes ranges of the object, and they can be compared by an ETag.
        is_unchanged: Whether the server answered that the object still has `known_etag`.
        is_replaced: Whether it failed because the object was replaced after the first bytes.
    """

    reader: HttpReader
    key: str
    budget: TimeBudget
    limit_bytes: int | None = None
    expected_bytes: int | None = None
    known_etag: str | None = None
    nonce: str | None = None
    offset: int = 0
    stop: int | None = None
    is_ranged: bool = False
    size_bytes: int | None = None
    etag: str | None = None
    takes_ranges: bool = False
    is_unchanged: bool = False
    is_replaced: bool = False

    @property
    def _request(self) -> Operation:
        to, operation = self.reader.endpoint, f"reading {self.key}"
        return Operation(store=to.name, bucket=to.bucket, operation=operation, key=self.key, role=to.role)

    def pieces(self) -> Generator[bytes, None, None]:
        tried = 0
        while True:
            if self.budget.is_deadline and self.budget.left() <= 0:
                raise self._late()
            before = self.offset
            target = self.reader.endpoint.target(self.key, nonce=self.nonce)
            try:
                yield from self._one_response(target)
                return
            except FAILURES as failure:
                refused = isinstance(failure, RefusalError) and failure.status == _RANGE_NOT_SATISFIABLE
                if refused and self.is_ranged:
                    raise self._replaced() from failure
                moved = self.offset > before
                tried = 1 if moved else tried + 1
                self._wait(failure, tried=tried, moved=moved)
            if self.offset and self.etag is None:
                raise self._replaced()
            self.is_ranged = self.is_ranged or self.offset > 0

    def _wait(self, failure: Exception, *, tried: int, moved: bool) -> None:
        """Pause before the next attempt, or raise the error of a failure that is final.

        Args:
            tried: Attempts in a row that transferred nothing.
            moved: Whether this attempt transferred bytes; then a stall is retried, too.
        """
        left, is_deadline = self.budget.left(), self.budget.is_deadline
        if is_deadline and left <= 0:
            raise self._late() from failure
        result = classify(failure, self._request)
        seconds = result.pause_seconds(tried=tried)
        again = result.again or (isinstance(failure, httpx.TimeoutException) and (moved or is_deadline))
        if tried >= TRIES or not again or left <= (seconds if is_deadline else 0):
            raise result.error from failure
        facts = {"key": self.key, "reason": str(result.error), "pause": seconds}
        _logger.info("Supabase Storage will be asked again", extra=facts)
        self.reader.pause(seconds)

    def _one_response(self, target: Target) -> Iterator[bytes]:
        # A compressed body of few bytes could expand to any size, and neither length nor range would count its bytes.
        headers = {"accept-encoding": "identity", "user-agent": "supabase-bridge", **target.headers}
        if self.is_ranged:
            headers["range"] = f"bytes={self.offset}-{'' if self.stop is None else self.stop - 1}"
        elif self.known_etag is not None:
            headers["if-none-match"] = self.known_etag
        extensions: dict[str, Any] = {BUDGET: self.budget} if self.budget.is_deadline else {}
        request = httpx.Request("GET", target.url, headers=headers, extensions=extensions)
        with closing(self.reader.transport.handle_request(request)) as response:
            if response.status_code == _NOT_MODIFIED and "if-none-match" in headers:
                self.is_unchanged = True
                return
            if not response.is_success:
                raise read_refusal(response, secret=target.secret)
            self._check_head(response)
            for piece in response.iter_raw():
                self.offset += len(piece)
                self._check_offset()
                self.budget.moved(len(piece))
                self.budget.pause()
                yield piece
                self.budget.resume()
        if self.expected_bytes not in (None, self.offset):
            raise self._other_size(str(self.offset))
        if (self.size_bytes if self.stop is None else self.stop) not in (None, self.offset):
            raise httpx.RemoteProtocolError("the response ended early")

    def _check_head(self, response: httpx.Response) -> None:
        """Compare a response's head with what was asked for, and with the first response."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise self._request.unexpected("a compressed body")
        text = response.headers.get("content-length", "")
        length = int(text) if _LENGTH.fullmatch(text) else None
        text = response.headers.get("etag", "")
        etag = text if _ETAG.fullmatch(text) else None
        if not self.is_ranged:
            if not (
                length is not None or self.expected_bytes or response.headers.get("transfer-encoding") == "chunked"
            ):
                raise self._request.unexpected("a body of unknown length")
            if self.expected_bytes is not None and length not in (None, self.expected_bytes):
                raise self._other_size(str(length))
            self.etag, self.size_bytes = etag, length
            self.takes_ranges = None not in (etag, length) and response.headers.get("accept-ranges") == "bytes"
            if self.limit_bytes is not None and (length or 0) > self.limit_bytes:
                raise errors.ObjectTooLargeError(self.reader.name, self.key, self.limit_bytes)
            return
        found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if etag is None or etag != self.etag or (found and self.size_bytes not in (None, int(found["size"]))):
            raise self._replaced()
        if response.status_code != _PARTIAL or not found or int(found["start"]) != self.offset:
            raise self._request.unexpected("another range than was asked for")
        self.size_bytes = int(found["size"])

    def _check_offset(self) -> None:
        if self.limit_bytes is not None and self.offset > self.limit_bytes:
            raise errors.ObjectTooLargeError(self.reader.name, self.key, self.limit_bytes)
        if self.expected_bytes is not None and self.offset > self.expected_bytes:
            raise self._other_size(f"more than {self.expected_bytes}")
        if self.stop is not None and self.offset > self.stop:
            raise self._request.unexpected("another range than was asked for")

    def _other_size(self, found: str) -> errors.CorruptObjectError:
        return errors.CorruptObjectError(self.reader.name, self.key, f"{self.expected_bytes} bytes", f"{found} bytes")

    def _replaced(self) -> errors.StoreUnavailableError:
        self.is_replaced = True
        return self._request.unavailable(f"the object changed while it was being read, after {self.offset} bytes")

    def _late(self) -> errors.DeadlineExceededError:
        return errors.DeadlineExceededError(self.reader.name, self._request.operation, self.budget.seconds)


def _whole(part: _Download, ended: threading.Event) -> bytes:
    """Return the bytes of a part; fewer once the event is set."""
    with closing(part.pieces()) as pieces:
        return b"".join(takewhile(lambda _: not ended.is_set(), pieces))


def plain_etag(etag: str | None) -> str | None:
    """An ETag without its quotes."""
    return etag.strip('"') if etag else None
