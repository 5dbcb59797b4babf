"""An httpx transport with a total timeout and a minimum transfer rate for each exchange."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import cache, partial
from typing import cast
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from supabase_bridge.core.errors import SettingsError
from supabase_bridge.storage.time_budget import TimeBudget

MINIMUM_RATE = 10_000
"""Bytes per second. A transfer that stays below this rate for as long as the timeout is aborted."""

_READ_BYTES = 512 * 1024
"""How much is taken from a socket at once. With httpcore's 64 KB a pull of 100 MB took a quarter longer (measured)."""

BUDGET = "supabase_bridge.budget"
"""The request extension that holds the `TimeBudget` of one exchange, in place of the transport's own."""


class BoundedTransport(httpx.BaseTransport):
    """An httpx transport whose exchanges end in bounded time; thread-safe.

    The request body, the response head and the response body have `timeout` each, and the time that their bytes need
    at the minimum rate. The time that the caller needs to produce or to use a piece of a body does not count. A request
    with its own `TimeBudget` (extension `BUDGET`) has that one instead. Resolving a host name is not bounded, because
    the system's resolver does it. Every timeout's message is a reason for a person.

    Args:
        minimum_rate: Bytes per second.
        check_peer: Called with a URL's host and with the address that was connected to, before the first byte is sent;
            an exception closes the connection. It is not called for a connection to a proxy.
    """

    def __init__(
        self,
        timeout: timedelta,
        *,
        minimum_rate: int = MINIMUM_RATE,
        check_peer: Callable[[str, str], None] | None = None,
    ) -> None:
        self._timeout = timeout
        self._minimum_rate = minimum_rate
        self._check_peer = check_peer
        self._idle: dict[tuple[str, bytes], list[_Connection]] = {}
        self._closed = False
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return the response, whose body is read later.

        Raises:
            httpx.TimeoutException: the time was over.
            SettingsError: certificates, or the proxy that the environment names, cannot be used.
        """
        budget = request.extensions.get(BUDGET) or TimeBudget(self._timeout, minimum_rate=self._minimum_rate)
        slowly = f"too slowly, less than {self._minimum_rate:,} bytes in a second"
        connection = self._acquire(request.url)
        body = _RequestBody(cast("httpx.SyncByteStream", request.stream), budget)
        # These limit connecting, which the watchdog cannot interrupt.
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), max(budget.left(), 0.001))
        extensions = {**request.extensions, "timeout": timeouts, "trace": connection.note_socket}
        sent = httpx.Request(request.method, request.url, headers=request.headers, stream=body, extensions=extensions)

        def late_head() -> httpx.TimeoutException:
            if body.is_sent:
                return httpx.ReadTimeout("no answer in time")
            return httpx.WriteTimeout(f"the body was taken {slowly}")

        with ExitStack() as cleanup:
            cleanup.callback(self._release, connection)
            cleanup.enter_context(connection.deadline_watchdog(budget))
            with connection.as_timeout(late_head):
                response = connection.transport.handle_request(sent)
            cleanup.callback(response.close)
            budget.reset()
            late = httpx.ReadTimeout(f"the answer came {slowly}")
            stream = _ResponseBody(response, connection, budget, late, cleanup.pop_all())
        return httpx.Response(
            response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
        )

    def close(self) -> None:
        """Close the connections: idle ones now, those in use with their responses."""
        with self._lock:
            self._closed = True
            idle = [connection for connections in self._idle.values() for connection in connections]
            self._idle.clear()
        for connection in idle:
            connection.transport.close()

    def _acquire(self, url: httpx.URL) -> _Connection:
        """Return a connection to the host of a URL, for the caller alone until it is released."""
        with self._lock:
            idle = self._idle.get((url.scheme, url.netloc))
            connection = idle.pop() if idle else None
        return connection or _Connection(url, self._check_peer)

    def _release(self, connection: _Connection) -> None:
        """Keep a connection for another exchange; close it if it timed out or the transport is closed."""
        with self._lock:
            if not (connection.timed_out or self._closed):
                self._idle.setdefault(connection.host, []).append(connection)
                return
        connection.transport.close()


class _Connection:
    """A kept-alive connection to one host for one thread at a time; it connects on first use.

    The timeouts of an HTTP library apply to one read or write, so a server that sends single bytes can hold a request
    for ever. A watchdog therefore shuts the socket down when the time is over. `httpx.HTTPTransport` is used directly:
    it follows no redirect, decompresses nothing, keeps no cookies, and does not log URLs, which may hold signatures.

    Attributes:
        timed_out: Whether the watchdog shut the connection down.
    """

    def __init__(self, url: httpx.URL, check_peer: Callable[[str, str], None] | None) -> None:
        self.host = (url.scheme, url.netloc)
        proxy = _proxy_for(url)
        self._check_peer = None if check_peer is None or proxy else partial(check_peer, url.host)
        try:
            self.transport = httpx.HTTPTransport(verify=_tls(), proxy=proxy)
        except OSError as error:
            raise SettingsError("SSL_CERT_FILE", f"certificates cannot be read: {error.strerror}") from error
        except (httpx.InvalidURL, ValueError, ImportError) as error:
            raise SettingsError("HTTPS_PROXY", "the proxy cannot be connected to") from error
        self.timed_out = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    @contextmanager
    def deadline_watchdog(self, budget: TimeBudget) -> Iterator[None]:
        """Shut the connection down when no time is left for the block."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(max(budget.left(), 0.02)):
                with self._lock:
                    if budget.left() <= 0 and not done.is_set():
                        self.timed_out = True
                        for connected in self._sockets:
                            _shut_down(connected)
                        return

        threading.Thread(target=watch, name="deadline-watchdog", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                done.set()

    @contextmanager
    def as_timeout(self, late: Callable[[], httpx.TimeoutException]) -> Iterator[None]:
        """Raise the timeout in place of the connection error that the watchdog caused."""
        try:
            yield
        except httpx.HTTPError as failure:
            if self.timed_out:
                raise late() from failure
            if isinstance(failure, httpx.TimeoutException):
                raise type(failure)("no answer in time") from failure
            raise

    def note_socket(self, event: str, facts: Mapping[str, object]) -> None:
        """Remember the socket of each new connection, and read it in large pieces; TLS wraps it in another one."""
        stream = facts.get("return_value")
        is_new = event.endswith(("connect_tcp.complete", "start_tls.complete"))
        if not is_new or not isinstance(stream, httpcore.NetworkStream):
            return
        found = stream.get_extra_info("socket")
        if isinstance(found, socket.socket):
            vars(stream)["read"] = partial(_read_more, stream.read)
            self._refuse_peer(found)
            with self._lock:
                self._sockets = [*(self._sockets if event.endswith("start_tls.complete") else []), found]
                if self.timed_out:
                    _shut_down(found)

    def _refuse_peer(self, connected: socket.socket) -> None:
        """Close a new connection to an address that the caller refuses."""
        if self._check_peer is not None:
            try:
                self._check_peer(connected.getpeername()[0])
            except BaseException:
                connected.close()
                raise


class _RequestBody(httpx.SyncByteStream):
    """A request body that charges the server's time to a budget; `is_sent` when the server has read all of it."""

    def __init__(self, stream: httpx.SyncByteStream, budget: TimeBudget) -> None:
        self._stream = stream
        self._budget = budget
        self.is_sent = False

    def __iter__(self) -> Iterator[bytes]:
        self._budget.pause()
        for piece in self._stream:
            self._budget.extend(len(piece))
            yield piece
            self._budget.pause()
        self._budget.reset()
        self.is_sent = True


class _ResponseBody(httpx.SyncByteStream):
    """A response body that charges the server's time to a budget; `close` releases the connection."""

    def __init__(
        self,
        response: httpx.Response,
        connection: _Connection,
        budget: TimeBudget,
        late: httpx.ReadTimeout,
        cleanup: ExitStack,
    ) -> None:
        self._response = response
        self._connection = connection
        self._budget = budget
        self._late = late
        self._cleanup = cleanup

    def __iter__(self) -> Iterator[bytes]:
        with self._connection.as_timeout(lambda: self._late):
            for piece in self._response.iter_raw():
                self._budget.moved(len(piece))
                if self._connection.timed_out:
                    break
                self._budget.pause()
                yield piece
                self._budget.resume()
        if self._connection.timed_out:
            # A body without a length ends with its connection, so a shut-down one would look complete.
            raise self._late

    def close(self) -> None:
        self._cleanup.close()


def _read_more(read: Callable[[int, float | None], bytes], max_bytes: int, timeout: float | None = None) -> bytes:
    return read(max(max_bytes, _READ_BYTES), timeout)


def _shut_down(connected: socket.socket) -> None:
    """Wake the thread that uses a socket. `SSLSocket.shutdown` would remove TLS while that thread reads."""
    with suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _proxy_for(url: httpx.URL) -> str | None:
    """The proxy that the environment sets for a URL, read as other HTTP clients read it."""
    if not url.host or proxy_bypass(url.host):
        return None
    proxies = getproxies()
    return proxies.get(url.scheme) or proxies.get("all")


@cache
def _tls() -> ssl.SSLContext:
    """The TLS context, built once: reading the certificate authorities takes longer than most requests."""
    return httpx.create_ssl_context()
