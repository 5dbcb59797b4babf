"""A hostile HTTP server: each connection gets the bytes that a test scripts."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

Script: TypeAlias = "Callable[[Conversation], None]"


@dataclass
class Conversation:
    """One request whose head was read, and its socket.

    Attributes:
        head: The request's head as it came.
        stopping: Set when the test is over.
    """

    head: bytes
    connection: socket.socket
    stopping: threading.Event

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def trickle(self, data: bytes, *, every_seconds: float = 0.02) -> None:
        """Send one byte now and then."""
        for byte in data:
            self.send(bytes([byte]))
            if self.stopping.wait(every_seconds):
                return

    def endlessly(self, data: bytes) -> None:
        """Send the same bytes repeatedly, as fast as the client reads them."""
        while not self.stopping.is_set():
            self.send(data)

    def hang(self) -> None:
        """Send nothing until the test ends."""
        self.stopping.wait(60)


@dataclass
class HostileServer:
    """The server's address, and the heads of its requests."""

    url: str
    heads: list[bytes] = field(default_factory=list)


@contextmanager
def hostile(script: Script, *, tls: ssl.SSLContext | None = None) -> Iterator[HostileServer]:
    """Run a script for each request, over TLS where there is a context; a connection is closed when its script ends."""
    stopping = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0), backlog=32)
    scheme = "http" if tls is None else "https"
    server = HostileServer(url=f"{scheme}://127.0.0.1:{listener.getsockname()[1]}")
    threads: list[threading.Thread] = []
    connections: list[socket.socket] = []

    def serve(accepted: socket.socket) -> None:
        # The client leaves when it has had enough: that is what is tested.
        with accepted, contextlib.suppress(OSError), _secured(accepted, tls) as connection:
            head = b""
            while b"\r\n\r\n" not in head:
                piece = connection.recv(65536)
                if not piece:
                    return
                head += piece
            server.heads.append(head)
            script(Conversation(head=head, connection=connection, stopping=stopping))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if stopping.is_set():
                connection.close()
                return
            connections.append(connection)
            thread = threading.Thread(target=serve, args=(connection,), daemon=True)
            threads.append(thread)
            thread.start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield server
    finally:
        stopping.set()
        with contextlib.suppress(OSError):
            socket.create_connection(listener.getsockname(), timeout=5).close()
        acceptor.join()
        listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def _secured(connection: socket.socket, tls: ssl.SSLContext | None) -> socket.socket:
    return connection if tls is None else tls.wrap_socket(connection, server_side=True)


def answer(body: bytes, *, status: str = "200 OK", headers: str = "", length: int | None = None) -> bytes:
    """A response with a Content-Length, the true one unless another is given.

    It says that the connection ends, as it does with the script: who is not told may ask again on it, and find it
    broken.
    """
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {size}\r\n{headers}\r\n".encode() + body
