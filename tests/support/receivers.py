"""A receiver of announcements on a real socket, which can hang, refuse and answer whatever a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HANG_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Received:
    """One request, as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def message(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the receiver does with a request.

    Attributes:
        hangs: It answers nothing, until it is closed.
        drops: It closes the connection without an answer.
        takes: Whether it counts the message as received.
    """

    status: int = 204
    headers: Mapping[str, str] = field(default_factory=dict)
    hangs: bool = False
    drops: bool = False

    @property
    def takes(self) -> bool:
        return 200 <= self.status < 300 and not self.hangs and not self.drops


class Receiver:
    """Records every request.

    Attributes:
        requests: All requests; `taken` those that it accepted.
        choose: Returns the answer to the request with this number, from 0; called by one thread at a time.
    """

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.taken: list[Received] = []
        self.choose: Callable[[int], Answer] = lambda _: Answer()
        self.closed = threading.Event()
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = receiver._record(Received(path=self.path, headers=headers, body=body, at=time.time()))
                if answer.hangs:
                    receiver.closed.wait(HANG_SECONDS)
                if answer.hangs or answer.drops:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A sender may give up."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def close(self) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _record(self, request: Received) -> Answer:
        with self._lock:
            answer = self.choose(len(self.requests))
            self.requests.append(request)
            if answer.takes:
                self.taken.append(request)
            return answer


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver for the length of a block."""
    receiver = Receiver()
    try:
        yield receiver
    finally:
        with suppress(OSError):
            receiver.close()
