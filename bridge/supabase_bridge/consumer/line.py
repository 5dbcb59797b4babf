"""HTTP connections whose every exchange ends by a deadline, even one that trickles its head byte by byte."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from supabase_bridge.consumer.reading import Deadline
from supabase_bridge.errors import SettingsError


class Line:
    """A kept connection to one host, used by one thread at a time; connected on first use.

    The timeouts of an HTTP library bound one read each, so that a server which sends a byte now and then keeps it for
    ever. Here a timer shuts the socket down at the deadline. `httpx.HTTPTransport` alone is used: it follows no
    redirect, decompresses nothing, keeps no cookies, and does not log URLs, in which a signature may be.

    Args:
        url: Any URL of the host.

    Raises:
        SettingsError: certificates, or the proxy that the environment names, cannot be used.
    """

    def __init__(self, url: str) -> None:
        try:
            self._transport = httpx.HTTPTransport(verify=_tls(), proxy=_proxy_for(url))
        except OSError as error:
            raise SettingsError("SSL_CERT_FILE", f"certificates cannot be read: {error.strerror}") from error
        except (httpx.InvalidURL, ValueError, ImportError) as error:
            raise SettingsError("HTTPS_PROXY", "the proxy cannot be connected to") from error
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._exchange: object | None = None
        self.cut = False
        """Whether a deadline has ended an exchange; the line is of no use then."""

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str], *, deadline: Deadline) -> Iterator[httpx.Response]:
        """Ask for a URL; the response's head has come, its `stream` has the body as it was sent.

        Raises:
            httpx.HTTPError: the exchange failed; by the deadline where `cut` is true then.
        """
        seconds = max(deadline.remaining, 0.001)
        request = httpx.Request(
            "GET",
            url,
            # Compressed on the way, a few bytes could become any number of them.
            headers={"accept-encoding": "identity", "user-agent": "supabase-bridge", **headers},
            extensions={
                "timeout": dict.fromkeys(("connect", "read", "write", "pool"), seconds),
                "trace": self._note_socket,
            },
        )
        with self._ended_after(seconds):
            response = self._transport.handle_request(request)
            try:
                yield response
            finally:
                response.close()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    @contextmanager
    def _ended_after(self, seconds: float) -> Iterator[None]:
        exchange = object()
        timer = threading.Timer(seconds, self._cut_off, args=(exchange,))
        timer.daemon = True
        with self._lock:
            self._exchange = exchange
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._lock:
                self._exchange = None

    def _cut_off(self, exchange: object) -> None:
        with self._lock:
            if self._exchange is exchange:
                self.cut = True
                for connected in self._sockets:
                    _shut_down(connected)

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
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, url: str) -> Iterator[Line]:
        """A line to the host of a URL, kept for the next one unless the block fails."""
        host = urlsplit(url)[:2]
        with self._lock:
            idle = self._idle.setdefault(host, [])
            line = idle.pop() if idle else None
        line = line or Line(url)
        try:
            yield line
        except BaseException:
            line.close()
            raise
        with self._lock:
            self._idle.setdefault(host, []).append(line)

    def close(self) -> None:
        """Close the lines that nobody uses now."""
        with self._lock:
            idle = [line for lines in self._idle.values() for line in lines]
            self._idle.clear()
        for line in idle:
            line.close()


def _shut_down(connected: socket.socket) -> None:
    """Wake whoever reads from a socket. Not SSLSocket's own method, which takes TLS away under the reader."""
    with suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


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
