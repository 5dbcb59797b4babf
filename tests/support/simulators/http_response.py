"""HTTP/1.1 responses, sent from memory or straight from a file."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias

from tests.support.simulators.faults import Action, CorruptResponse, CutResponseAfter
from tests.support.simulators.storage_blobs import BlobRange

Payload: TypeAlias = "bytes | BlobRange"
_WITH_THE_HEAD_BYTES = 64 * 1024
_BODILESS = (204, 304)


@dataclass(frozen=True, kw_only=True)
class Response:
    """A response. HEAD gets only the head, with the length of the body."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Payload = b""


def json_response(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON body, in the server's compact spelling."""
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return Response(
        status=status, headers={"content-type": "application/json; charset=utf-8", **(headers or {})}, body=body
    )


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _head(response: Response, keep_alive: bool) -> bytes:
    lines = [f"HTTP/1.1 {response.status} {_reason(response.status)}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    if response.status != 204:
        lines.append(f"content-length: {0 if response.status == 304 else len(response.body)}")
    lines.append("connection: keep-alive" if keep_alive else "connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _slice(payload: Payload, start: int, stop: int) -> Payload:
    return payload[start:stop] if isinstance(payload, bytes) else payload.slice(start, stop)


def _in_memory(payload: Payload) -> bytes:
    return payload if isinstance(payload, bytes) else payload.read()


def _pieces(payload: Payload, action: Action | None) -> list[Payload]:
    match action:
        case CutResponseAfter(bytes=count):
            return [_slice(payload, 0, count)]
        case CorruptResponse(offset=offset) if 0 <= offset < len(payload):
            flipped = bytes([_in_memory(_slice(payload, offset, offset + 1))[0] ^ 1])
            return [_slice(payload, 0, offset), flipped, _slice(payload, offset + 1, len(payload))]
        case _:
            return [payload]


def send_response(
    connection: socket.socket, response: Response, *, head_only: bool, keep_alive: bool, action: Action | None
) -> None:
    """Send a response with the fault of the action; the caller closes a cut connection."""
    pending = _head(response, keep_alive)
    bodiless = head_only or response.status in _BODILESS
    for piece in [] if bodiless else _pieces(response.body, action):
        if isinstance(piece, bytes) or len(piece) <= _WITH_THE_HEAD_BYTES:
            pending += _in_memory(piece)
            continue
        connection.sendall(pending)
        pending = b""
        with piece.blob.open() as file:
            connection.sendfile(file, piece.start, piece.length)
    if pending:
        connection.sendall(pending)
