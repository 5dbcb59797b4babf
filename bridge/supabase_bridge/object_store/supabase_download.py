"""Reading one object from Supabase Storage, from the first byte to the last, through interruptions."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

import httpx

from supabase_bridge.errors import ObjectTooLargeError, StoreUnavailableError, UnexpectedAnswerError
from supabase_bridge.object_store import ObjectInfo
from supabase_bridge.object_store.supabase_errors import FAILURES, RefusalError, diagnose
from supabase_bridge.object_store.supabase_transport import TRIES, Transport

_CONTENT_RANGE = re.compile(r"bytes (?P<start>[0-9]{1,18})-[0-9]{1,18}/(?P<size>[0-9]{1,18})")
_RANGE_NOT_SATISFIABLE = 416


class Download:
    """One object on its way in; used once.

    A connection that breaks is taken up where it broke (Range, RFC 9110 section 14), provided that the ETag is the one
    the first bytes came with: an overwritten object is never patched together from two contents. TRIES attempts in a
    row without a byte are the end of it, and so are breaks and stalls that take longer than `Transport.patience`.

    Args:
        fresh: Ask past caches, as storage-js does with its option of the same effect, `cacheNonce`.
    """

    def __init__(self, transport: Transport, key: str, *, limit_bytes: int | None = None, fresh: bool = False) -> None:
        self._etag: str | None = None
        self._transport = transport
        self._key = key
        self._limit_bytes = limit_bytes
        # A hosted project's CDN may serve an overwritten object for up to a minute; no cache knows a new nonce.
        self._params = {"cacheNonce": uuid.uuid4().hex} if fresh else {}
        self._request = transport.request(f"reading {key}", key)
        self._size_bytes: int | None = None
        self._offset = 0
        self._patience = transport.patience()

    def pieces(self) -> Iterator[bytes]:
        """The bytes as they come; the iterator ends only when all have come.

        Raises:
            ObjectNotFoundError: there is no such object.
            ObjectTooLargeError: it is larger than `limit_bytes`.
            StoreUnavailableError: the connection broke too often, or was too slow, or the object was replaced while it
                was read.
        """
        failures = 0
        while True:
            before = self._offset
            try:
                yield from self._one_response()
                return
            except FAILURES as failure:
                if before and isinstance(failure, RefusalError) and failure.answer.status == _RANGE_NOT_SATISFIABLE:
                    raise self._changed() from failure
                progressed = self._offset > before
                failures = 1 if progressed else failures + 1
                trouble = diagnose(failure, self._request)
                stalled = progressed and isinstance(failure, httpx.TimeoutException)
                exhausted = failures >= TRIES or self._patience.left() <= 0
                if exhausted or not (trouble.again or stalled):
                    raise trouble.error from failure
            self._transport.wait(self._request, trouble, tried=failures)

    def _one_response(self) -> Iterator[bytes]:
        # Compressed on the way, neither Content-Length nor Range would count the object's own bytes.
        headers = {"accept-encoding": "identity"}
        if self._offset:
            headers["range"] = f"bytes={self._offset}-"
        url = self._transport.url("object", self._transport.bucket, self._key)
        with self._transport.http().stream("GET", url, headers=headers, params=self._params) as response:
            self._accept(response)
            for piece in response.iter_raw():
                self._offset += len(piece)
                self._check_limit(self._offset)
                self._patience.moved(len(piece))
                self._patience.rest()
                yield piece
                self._patience.resume()
            if self._size_bytes not in (None, self._offset):
                raise httpx.RemoteProtocolError("the response ended early")

    def _accept(self, response: httpx.Response) -> None:
        """Note what the first response says of the object; hold every later one to it."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise self._unexpected("a compressed body")
        etag, size = response.headers.get("etag"), response.headers.get("content-length")
        if not self._offset:
            if size is None and response.headers.get("transfer-encoding") != "chunked":
                raise self._unexpected("a body of unknown length")
            self._etag, self._size_bytes = etag, None if size is None else int(size)
            self._check_limit(self._size_bytes or 0)
            return
        found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if etag is None or etag != self._etag or (found and self._size_bytes not in (None, int(found["size"]))):
            raise self._changed()
        if response.status_code != httpx.codes.PARTIAL_CONTENT or not found or int(found["start"]) != self._offset:
            raise self._unexpected("another range than was asked for")
        self._size_bytes = int(found["size"])

    def _check_limit(self, size_bytes: int) -> None:
        if self._limit_bytes is not None and size_bytes > self._limit_bytes:
            raise ObjectTooLargeError(self._transport.name, self._key, self._limit_bytes)

    def _unexpected(self, answer: str) -> UnexpectedAnswerError:
        return UnexpectedAnswerError(self._transport.name, self._request.operation, answer)

    def _changed(self) -> StoreUnavailableError:
        reason = f"the object changed while it was being read, after {self._offset} bytes"
        return StoreUnavailableError(self._transport.name, self._request.operation, reason)


def read_part(transport: Transport, info: ObjectInfo, *, start: int, size_bytes: int) -> bytes:
    """What `ObjectStore.read_part` promises."""
    size_bytes = min(size_bytes, info.size_bytes - start)
    if size_bytes <= 0:
        return b""
    request = transport.request(f"reading {info.key}", info.key)
    url = transport.url("object", transport.bucket, info.key)
    headers = {"accept-encoding": "identity", "range": f"bytes={start}-{start + size_bytes - 1}"}

    def ask() -> httpx.Response:
        return transport.http().get(url, headers=headers)

    response = transport.run(request, ask)
    if info.etag is None or response.headers.get("etag", "").strip('"') != info.etag:
        raise StoreUnavailableError(transport.name, request.operation, "the object was replaced meanwhile")
    found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if found is None or int(found["start"]) != start or len(response.content) != size_bytes:
        raise UnexpectedAnswerError(transport.name, request.operation, "another range than was asked for")
    return response.content
