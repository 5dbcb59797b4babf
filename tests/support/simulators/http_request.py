"""HTTP/1.1 requests, parsed from a socket; their bodies are streamed afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from urllib.parse import parse_qsl, unquote

CHUNK_BYTES = 256 * 1024
_MAX_LINE_BYTES = 64 * 1024
_MAX_HEADERS = 200


class ConnectionEndedError(Exception):
    """The connection cannot be used again: the client closed it, sent no HTTP, or a fault cut it."""


def _line(stream: BufferedReader) -> bytes:
    try:
        line = stream.readline(_MAX_LINE_BYTES)
    except OSError as error:
        raise ConnectionEndedError("reset while reading a line") from error
    if not line.endswith(b"\n"):
        raise ConnectionEndedError("closed in the middle of a line")
    return line.rstrip(b"\r\n")


class Body:
    """A request's body, read once, never past its end.

    Args:
        stream: The connection's incoming bytes.
        length: From Content-Length; None for a chunked body.
        announce: Called before the first byte is read ("100 Continue").
    """

    def __init__(self, stream: BufferedReader, *, length: int | None, announce: Callable[[], None]) -> None:
        self._stream = stream
        self._chunked = length is None
        self._remaining = length or 0
        self._ended = length == 0
        self._announce: Callable[[], None] | None = announce
        self.received_bytes = 0
        self.cut_after_bytes: int | None = None
        self.corrupt_at: int | None = None

    @property
    def unread_bytes(self) -> int | None:
        """The size of the unread rest; None if the request has no length."""
        if self._ended:
            return 0
        return None if self._chunked else self._remaining

    def read(self, limit: int = CHUNK_BYTES) -> bytes:
        """Return up to `limit` bytes as soon as there are some; nothing at the end.

        Raises:
            ConnectionEndedError: The body broke off, or the fault that cuts it struck.
        """
        if self._announce is not None and not self._ended:
            self._announce()
            self._announce = None
        if self._ended or (self._chunked and not self._in_chunk()):
            return b""
        data = self._spoilt(self._receive(min(limit, self._remaining, self._allowance())))
        self.received_bytes += len(data)
        self._remaining -= len(data)
        if self._remaining == 0:
            self._finish_piece()
        return data

    def read_all(self, limit: int) -> bytes:
        """Return the rest of the body, `limit` bytes at most."""
        pieces: list[bytes] = []
        while piece := self.read():
            pieces.append(piece)
            if sum(map(len, pieces)) > limit:
                raise ConnectionEndedError(f"a body of more than {limit} bytes where a small one belongs")
        return b"".join(pieces)

    def drain(self, limit: int | None = None) -> bool:
        """Discard the rest, or up to `limit` bytes of it; return True at the end."""
        stop = None if limit is None else self.received_bytes + limit
        while self.read():
            if stop is not None and self.received_bytes >= stop:
                break
        return self._ended

    def _allowance(self) -> int:
        if self.cut_after_bytes is None:
            return self._remaining
        left = self.cut_after_bytes - self.received_bytes
        if left <= 0:
            raise ConnectionEndedError(f"cut after {self.received_bytes} bytes of the body")
        return left

    def _spoilt(self, data: bytes) -> bytes:
        index = -1 if self.corrupt_at is None else self.corrupt_at - self.received_bytes
        if not 0 <= index < len(data):
            return data
        return data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]

    def _receive(self, limit: int) -> bytes:
        try:
            data = self._stream.read1(limit)
        except OSError as error:
            raise ConnectionEndedError("reset in the middle of a body") from error
        if not data:
            raise ConnectionEndedError("closed in the middle of a body")
        return data

    def _in_chunk(self) -> bool:
        if self._remaining:
            return True
        try:
            self._remaining = int(_line(self._stream).split(b";")[0], 16)
        except ValueError as error:
            raise ConnectionEndedError("a chunk without a size") from error
        if self._remaining == 0:
            while _line(self._stream):
                pass
            self._ended = True
        return not self._ended

    def _finish_piece(self) -> None:
        if self._chunked:
            _line(self._stream)
        else:
            self._ended = True


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request: its head, and a body to stream. Header names are lower case.

    Attributes:
        started: When its head was read, by the monotonic clock.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: Body
    keep_alive: bool
    started: float = field(default_factory=time.monotonic)

    @property
    def raw_path(self) -> str:
        """The path as sent, percent-encoded, without the query."""
        return self.target.partition("?")[0]

    @property
    def path(self) -> str:
        """The path, percent-decoded, without the query."""
        return unquote(self.raw_path)

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters; the last of a name counts."""
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    def header(self, name: str) -> str:
        """A header's value, or the empty string."""
        return self.headers.get(name, "")


def _headers(stream: BufferedReader) -> dict[str, str]:
    headers: dict[str, str] = {}
    while line := _line(stream):
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or len(headers) >= _MAX_HEADERS:
            raise ConnectionEndedError("headers that are none")
        key = name.strip().lower()
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    return headers


def _body_length(headers: Mapping[str, str]) -> int | None:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return None
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        raise ConnectionEndedError("a Content-Length that is no number")
    return int(length)


def read_request(stream: BufferedReader, send: Callable[[bytes], None]) -> Request:
    """Wait for the next request on a connection.

    "100 Continue" goes out when somebody starts to read the body, so a client that asked for it knows that the request
    passed the checks made on its head.

    Raises:
        ConnectionEndedError: There is none to come.
    """
    first = _line(stream) or _line(stream)
    parts = first.decode("latin-1").split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise ConnectionEndedError("not an HTTP/1.x request")
    headers = _headers(stream)
    expects = headers.get("expect", "").lower() == "100-continue"

    def announce() -> None:
        if expects:
            send(b"HTTP/1.1 100 Continue\r\n\r\n")

    return Request(
        method=parts[0],
        target=parts[1],
        headers=headers,
        body=Body(stream, length=_body_length(headers), announce=announce),
        keep_alive=parts[2] == "HTTP/1.1" and headers.get("connection", "").lower() != "close",
    )
