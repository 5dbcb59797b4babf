"""A threaded HTTP/1.1 server on the loopback interface, with injected faults."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader
from typing import cast

from tests.support.simulators.faults import (
    Action,
    CorruptRequest,
    CutAfterHandling,
    CutBeforeHandling,
    CutRequestAfter,
    CutResponseAfter,
    Delay,
    FaultPlan,
    Hang,
    Respond,
)
from tests.support.simulators.http_request import ConnectionEndedError, Request, read_request
from tests.support.simulators.http_response import Response, send_response

WEDGING_BODY_BYTES = 100_000


@dataclass(frozen=True, kw_only=True)
class Site:
    """The application behind the server.

    Args:
        handle: Answers a request; it raises ConnectionEndedError only.
        faults: It is asked once for each request.
        record: Called with each request and the status of its response, before the response; status 0: none.
        wedges: Whether the connection hangs after this response, because the request has an unread body.
    """

    handle: Callable[[Request], Response]
    faults: FaultPlan
    record: Callable[[Request, int], None]
    wedges: Callable[[Request, Response], bool]


def _wait_until_closed(connection: socket.socket) -> None:
    """Return when the client closes or the server shuts the socket down; read nothing."""
    poller = select.poll()
    poller.register(connection, getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR)
    poller.poll()


class _Exchanger:
    """The requests of one connection, one after the other."""

    def __init__(self, connection: socket.socket, site: Site, stopping: threading.Event) -> None:
        self._connection = connection
        self._site = site
        self._stopping = stopping

    def run(self) -> None:
        with self._connection, contextlib.suppress(ConnectionEndedError, OSError):
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with cast(BufferedReader, self._connection.makefile("rb", buffering=64 * 1024)) as stream:
                while not self._stopping.is_set():
                    self._exchange(read_request(stream, self._connection.sendall))

    def _exchange(self, request: Request) -> None:
        action = self._site.faults.strike(request.method, request.path)
        match action:
            case Respond():
                request.body.drain()
                response = Response(status=action.status, headers=action.headers, body=action.body)
                self._answer(request, response, None)
            case CutBeforeHandling():
                self._give_up(request)
            case Hang():
                self._site.record(request, 0)
                _wait_until_closed(self._connection)
                raise ConnectionEndedError("a fault let it hang")
            case _:
                self._handle(request, action)

    def _handle(self, request: Request, action: Action | None) -> None:
        if isinstance(action, Delay):
            (action.over or self._stopping).wait(action.seconds)
        if isinstance(action, CutRequestAfter):
            request.body.cut_after_bytes = action.bytes
        if isinstance(action, CorruptRequest):
            request.body.corrupt_at = action.offset
        try:
            response = self._site.handle(request)
            if isinstance(action, CutRequestAfter):
                request.body.drain()
        except ConnectionEndedError:
            self._site.record(request, 0)
            raise
        if isinstance(action, (CutAfterHandling, CutRequestAfter)):
            self._give_up(request)
        self._answer(request, response, action)

    def _give_up(self, request: Request) -> None:
        self._site.record(request, 0)
        raise ConnectionEndedError("a fault cut it")

    def _answer(self, request: Request, response: Response, action: Action | None) -> None:
        self._site.record(request, response.status)
        head_only = request.method == "HEAD"
        send_response(self._connection, response, head_only=head_only, keep_alive=request.keep_alive, action=action)
        if isinstance(action, CutResponseAfter):
            raise ConnectionEndedError("a fault cut the response")
        if self._site.wedges(request, response) and not self._small_rest(request):
            _wait_until_closed(self._connection)
            raise ConnectionEndedError("wedged by a refused upload")
        request.body.drain()
        if not request.keep_alive:
            raise ConnectionEndedError("the client asked to close")

    def _small_rest(self, request: Request) -> bool:
        unread = request.body.unread_bytes
        if unread is None:
            return request.body.drain(WEDGING_BODY_BYTES)
        return unread <= WEDGING_BODY_BYTES


class HttpServer:
    """Accepts connections on 127.0.0.1 from its creation until `stop`, each on a thread of its own.

    Args:
        site: What to serve.
        port: The port to bind; 0 for a free one.
    """

    def __init__(self, site: Site, port: int) -> None:
        self._site = site
        self._stopping = threading.Event()
        self._open: dict[threading.Thread, socket.socket] = {}
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name=f"simulator-{self.port}", daemon=True)
        self._acceptor.start()

    def stop(self) -> None:
        """Close the listening socket and all connections; return when no thread of the server is left."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        self._acceptor.join()
        with self._lock:
            connections = dict(self._open)
        for connection in connections.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in connections:
            thread.join()

    def _accept(self) -> None:
        with self._listener:
            while True:
                connection, _ = self._listener.accept()
                if self._stopping.is_set():
                    connection.close()
                    return
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                with self._lock:
                    self._open[thread] = connection
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            _Exchanger(connection, self._site, self._stopping).run()
        finally:
            with self._lock:
                self._open.pop(threading.current_thread(), None)
