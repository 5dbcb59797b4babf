"""Kept HTTP connections, any of which a watch can cut off in the middle of an exchange."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from supabase_bridge.errors import SettingsError

_SHORTEST_LOOK_SECONDS = 0.02


class Line:
    """A kept connection to one host, used by one thread at a time; connected on first use.

    The timeouts of an HTTP library bound one read or write each, so that a server which sends a byte now and then keeps
    it for ever. Here a watch shuts the socket down when the time is over. `httpx.HTTPTransport` alone is used: it
    follows no redirect, decompresses nothing, keeps no cookies, and does not log URLs, in which a signature may be.

    Args:
        url: Any URL of the host.

    Attributes:
        cut: Whether a watch has ended an exchange; the line is of no use then.

    Raises:
        SettingsError: certificates, or the proxy that the environment names, cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.host = _host(url)
        try:
            self._transport = httpx.HTTPTransport(verify=_tls(), proxy=_proxy_for(url))
        except OSError as error:
            raise SettingsError("SSL_CERT_FILE", f"certificates cannot be read: {error.strerror}") from error
        except (httpx.InvalidURL, ValueError, ImportError) as error:
            raise SettingsError("HTTPS_PROXY", "the proxy cannot be connected to") from error
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self.cut = False

    def send(self, request: httpx.Request) -> httpx.Response:
        """The answer to a request; its head has come, its `stream` has the body as it was sent.

        Raises:
            httpx.HTTPError: the exchange failed; because a watch ended it where `cut` is true then.
        """
        traced = httpx.Request(
            request.method,
            request.url,
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "trace": self._note_socket},
        )
        return self._transport.handle_request(traced)

    @contextmanager
    def watched(self, left: Callable[[], float]) -> Iterator[None]:
        """Cut the line off when no time is left for the block.

        Args:
            left: Seconds that are left now; they may become more, and are asked for again when they should be over.
        """
        over = threading.Event()

        def watch() -> None:
            while not over.wait(max(left(), _SHORTEST_LOOK_SECONDS)):
                with self._lock:
                    if left() <= 0 and not over.is_set():
                        self.cut = True
                        for connected in self._sockets:
                            _shut_down(connected)
                        return

        threading.Thread(target=watch, name="line", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                over.set()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def _note_socket(self, event: str, facts: Mapping[str, object]) -> None:
        """Keep hold of the socket of each new connection; TLS wraps the first one in another."""
        if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        stream = facts.get("return_value")
        found = stream.get_extra_info("socket") if hasattr(stream, "get_extra_info") else None
        if isinstance(found, socket.socket):
            with self._lock:
                self._sockets = [*(self._sockets if event.endswith("start_tls.complete") else []), found]
                if self.cut:
                    _shut_down(found)


class Lines:
    """Kept lines, by host; each is lent to one thread at a time."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, str], list[Line]] = {}
        self._closed = False
        self._lock = threading.Lock()

    def take(self, url: str) -> Line:
        """A line to the host of a URL, for the caller alone until it is kept again, or closed."""
        with self._lock:
            idle = self._idle.get(_host(url))
            line = idle.pop() if idle else None
        return line or Line(url)

    def keep(self, line: Line) -> None:
        """Keep a line for another exchange; one that was cut is closed, and so is one that comes back too late."""
        with self._lock:
            if not (line.cut or self._closed):
                self._idle.setdefault(line.host, []).append(line)
                return
        line.close()

    @contextmanager
    def lend(self, url: str) -> Iterator[Line]:
        """A line to the host of a URL, kept for the next one unless the block fails."""
        line = self.take(url)
        try:
            yield line
        except BaseException:
            line.close()
            raise
        self.keep(line)

    def close(self) -> None:
        """Close the lines: those in use when they come back."""
        with self._lock:
            self._closed = True
            idle = [line for lines in self._idle.values() for line in lines]
            self._idle.clear()
        for line in idle:
            line.close()


def _shut_down(connected: socket.socket) -> None:
    """Wake whoever uses a socket. Not SSLSocket's own method, which takes TLS away under the reader."""
    with suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _host(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment has for a URL, as other HTTP clients read it."""
    parts = urlsplit(url)
    if parts.hostname is None or proxy_bypass(parts.hostname):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


@cache
def _tls() -> ssl.SSLContext:
    """Reading the certificate authorities takes longer than most requests, so it is done once."""
    return httpx.create_ssl_context()
