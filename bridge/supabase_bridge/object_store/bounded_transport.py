"""HTTP exchanges that end in bounded time, however little the server moves at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import httpx

from supabase_bridge.object_store.line import Line, Lines
from supabase_bridge.object_store.patience import MINIMUM_RATE, Patience


class SlowAnswerError(httpx.ReadTimeout):
    """An answer's body came slower than the minimum rate; it never leaves this package."""


class SlowUploadError(httpx.WriteTimeout):
    """A request's body was taken slower than the minimum rate; it never leaves this package."""


class BoundedTransport(httpx.BaseTransport):
    """What an `httpx.Client` sends its requests by, so that none of them keeps it for ever; thread-safe.

    A request, an answer's head and its body have `timeout` each, and as much as their bytes need at the minimum rate;
    what stays below that rate is given up after about `timeout`. The time that the caller takes, for the next piece of
    a body that it sends or with one that came, does not count. Looking up a host's name is not bounded: the system's
    resolver does that.

    Args:
        minimum_rate: Bytes in a second.
    """

    def __init__(self, timeout: timedelta, *, minimum_rate: int = MINIMUM_RATE) -> None:
        self._timeout = timeout
        self._minimum_rate = minimum_rate
        self._lines = Lines()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The answer, its head there and its body to come.

        Raises:
            httpx.TimeoutException: it took too long.
            SettingsError: certificates, or the proxy that the environment names, cannot be used.
        """
        patience = Patience(self._timeout, minimum_rate=self._minimum_rate)
        return _Exchange(self._lines, request, patience, minimum_rate=self._minimum_rate).answer()

    def close(self) -> None:
        """Close the connections; those in use when their answers are closed."""
        self._lines.close()


class _Exchange:
    """One request and its answer, and the line that is theirs until the answer is closed."""

    def __init__(self, lines: Lines, request: httpx.Request, patience: Patience, *, minimum_rate: int) -> None:
        self._lines = lines
        self._request = request
        self._patience = patience
        self._rate = f"less than {minimum_rate:,} bytes in a second"

    def answer(self) -> httpx.Response:
        line = self._lines.take(str(self._request.url))
        body = _Sent(self._request.stream, self._patience)
        request = httpx.Request(
            self._request.method,
            self._request.url,
            headers=self._request.headers,
            stream=body,
            extensions=self._request.extensions,
        )
        with ExitStack() as watching:
            watching.callback(self._lines.keep, line)
            watching.enter_context(line.watched(self._patience.left))
            with _no_later(line, lambda: self._late_head(body)):
                response = line.send(request)
            watching.callback(response.close)
            self._patience.renew()
            late = SlowAnswerError(f"the answer came too slowly, {self._rate}")
            stream = _Coming(response.stream, line, self._patience, late, watching.pop_all())
        return httpx.Response(
            response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
        )

    def _late_head(self, body: _Sent) -> httpx.TimeoutException:
        if body.whole:
            return httpx.ReadTimeout("no answer in time")
        return SlowUploadError(f"the body was taken too slowly, {self._rate}")


class _Sent(httpx.SyncByteStream):
    """A request's body on its way out; `whole` once all of it was taken."""

    def __init__(self, stream: httpx.SyncByteStream | httpx.AsyncByteStream, patience: Patience) -> None:
        self._stream = _synchronous(stream)
        self._patience = patience
        self.whole = False

    def __iter__(self) -> Iterator[bytes]:
        pieces = iter(self._stream)
        while True:
            self._patience.rest()
            piece = next(pieces, None)
            if piece is None:
                break
            self._patience.lend(len(piece))
            yield piece
        self._patience.renew()
        self.whole = True


class _Coming(httpx.SyncByteStream):
    """An answer's body on its way in; closing it gives the line back."""

    def __init__(
        self,
        stream: httpx.SyncByteStream | httpx.AsyncByteStream,
        line: Line,
        patience: Patience,
        late: SlowAnswerError,
        watching: ExitStack,
    ) -> None:
        self._stream = _synchronous(stream)
        self._line = line
        self._patience = patience
        self._late = late
        self._watching = watching

    def __iter__(self) -> Iterator[bytes]:
        with _no_later(self._line, lambda: self._late):
            for piece in self._stream:
                self._patience.moved(len(piece))
                self._patience.rest()
                yield piece
                self._patience.resume()
        if self._line.cut:
            # A body that only the end of its connection ends looks whole.
            raise self._late

    def close(self) -> None:
        self._watching.close()


@contextmanager
def _no_later(line: Line, late: Callable[[], httpx.TimeoutException]) -> Iterator[None]:
    """Call the failure of an exchange that a watch has ended by its name."""
    try:
        yield
    except httpx.HTTPError as failure:
        if line.cut:
            raise late() from failure
        raise


def _synchronous(stream: httpx.SyncByteStream | httpx.AsyncByteStream) -> httpx.SyncByteStream:
    if not isinstance(stream, httpx.SyncByteStream):
        raise TypeError("a synchronous client has another kind of stream")
    return stream
