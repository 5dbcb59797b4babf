"""A multipart/form-data body with one file, streamed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.support.simulators.http_request import Body, ConnectionEndedError

_MAX_PART_HEAD_BYTES = 16 * 1024
_MAX_FIELD_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Form:
    """The parts of a form besides the file's bytes; `mimetype` is None if there was no file."""

    fields: dict[str, str] = field(default_factory=dict)
    mimetype: str | None = None


class _Scanner:
    """Finds delimiters in a stream, with at most one chunk in memory."""

    def __init__(self, body: Body, start: bytes) -> None:
        self._body = body
        self._buffer = bytearray(start)

    def until(self, mark: bytes) -> Iterator[bytes]:
        """Yield the bytes before the next mark in pieces, and consume the mark."""
        while (found := self._buffer.find(mark)) < 0:
            ready = max(0, len(self._buffer) - len(mark) + 1)
            if ready:
                yield bytes(self._buffer[:ready])
                del self._buffer[:ready]
            self._fill()
        if found:
            yield bytes(self._buffer[:found])
        del self._buffer[: found + len(mark)]

    def short(self, mark: bytes, limit: int) -> bytes:
        """Return all bytes before the next mark, `limit` at most."""
        collected = bytearray()
        for piece in self.until(mark):
            collected += piece
            if len(collected) > limit:
                raise ConnectionEndedError("a form part that is too long")
        return bytes(collected)

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        while len(self._buffer) < count:
            self._fill()
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _fill(self) -> None:
        piece = self._body.read()
        if not piece:
            raise ConnectionEndedError("a form without its closing boundary")
        self._buffer += piece


def boundary_of(content_type: str) -> bytes | None:
    """Return the boundary of a multipart/form-data content type; None for any other type."""
    if not content_type.lower().startswith("multipart/form-data"):
        return None
    match = re.search(r'boundary="?([^";]+)', content_type)
    return match.group(1).encode() if match else None


def read_form(body: Body, boundary: bytes, write: Callable[[bytes], None]) -> Form:
    """Read the whole form; the bytes of its file go to `write`, piece by piece."""
    mark = b"\r\n--" + boundary
    scanner = _Scanner(body, b"\r\n")
    scanner.short(mark, _MAX_PART_HEAD_BYTES)
    fields: dict[str, str] = {}
    mimetype: str | None = None
    while scanner.take(2) != b"--":
        head = scanner.short(b"\r\n\r\n", _MAX_PART_HEAD_BYTES).decode()
        name = re.search(r'[; ]name="([^"]*)"', head)
        if re.search(r'filename\*?="?', head):
            declared = re.search(r"(?im)^content-type:\s*(.+?)\s*$", head)
            mimetype = declared.group(1) if declared else "application/octet-stream"
            for piece in scanner.until(mark):
                write(piece)
        else:
            value = scanner.short(mark, _MAX_FIELD_BYTES).decode()
            fields[name.group(1) if name else ""] = value
    body.drain()
    return Form(fields=fields, mimetype=mimetype)
