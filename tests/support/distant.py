"""A server that is far away: a proxy on 127.0.0.1 with the round-trip time and the window of a long connection.

A connection brings at most its window per round trip. The window begins with ten packets and doubles with each round
trip, as TCP's slow start does. It runs in a process of its own, so that it does not share a benchmark's interpreter.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

FIRST_WINDOW_BYTES = 14_600
_READ_BYTES = 256 * 1024
_ROOT = Path(__file__).parents[2]


@contextmanager
def distant(url: str, *, round_trip_ms: float, window_bytes: int) -> Iterator[str]:
    """Yield the URL of a proxy to a local server."""
    options = [f"--round-trip-ms={round_trip_ms}", f"--window={window_bytes}"]
    command = [sys.executable, "-m", "tests.support.distant", url, *options]
    with subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().decode().strip()
        finally:
            process.stdin.close()


class _Line:
    """One direction of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, round_trip: float, window: int):
        self._reader = reader
        self._writer = writer
        self._round_trip = round_trip
        self._largest = window
        self._window = min(FIRST_WINDOW_BYTES, window)
        self._unacknowledged = 0
        self._acknowledged = asyncio.Event()
        self._travelling: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Carry bytes until the sender ends, then let the receiver know."""
        delivery = asyncio.create_task(self._deliver())
        with suppress(ConnectionError):
            while data := await self._reader.read(min(_READ_BYTES, await self._room())):
                self._unacknowledged += len(data)
                self._send(data)
        self._send(b"")
        await delivery

    def _send(self, data: bytes) -> None:
        self._travelling.put_nowait((self._loop.time() + self._round_trip / 2, data))

    async def _room(self) -> int:
        while self._unacknowledged >= self._window:
            self._acknowledged.clear()
            await self._acknowledged.wait()
        return self._window - self._unacknowledged

    async def _deliver(self) -> None:
        with suppress(ConnectionError):
            while True:
                due, data = await self._travelling.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if not data:
                    break
                self._writer.write(data)
                await self._writer.drain()
                self._loop.call_later(self._round_trip / 2, self._acknowledge, len(data))
        self._writer.close()

    def _acknowledge(self, size_bytes: int) -> None:
        self._unacknowledged -= size_bytes
        self._window = min(self._largest, self._window + size_bytes)
        self._acknowledged.set()


async def _serve(url: str, round_trip: float, window: int) -> None:
    host, port = urlsplit(url).hostname, urlsplit(url).port

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(round_trip)  # of the handshake
        try:
            from_server, to_server = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        lines = [_Line(reader, to_server, round_trip, window), _Line(from_server, writer, round_trip, window)]
        with suppress(asyncio.CancelledError):  # at the end of the process
            await asyncio.gather(*(line.run() for line in lines))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.buffer.read)


def main() -> None:
    """Serve until standard input closes."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.distant", description=main.__doc__)
    parser.add_argument("url", help="the server, http://HOST:PORT")
    parser.add_argument("--round-trip-ms", type=float, required=True)
    parser.add_argument("--window", type=int, required=True, help="largest window of a connection, in bytes")
    options = parser.parse_args()
    asyncio.run(_serve(options.url, options.round_trip_ms / 1000, options.window))


if __name__ == "__main__":
    main()
