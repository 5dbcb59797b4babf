"""A Supabase project for tests with Realtime beside a simulated Storage: broadcasts on topics, nothing else of it.

It speaks both versions of the protocol: Python's client sends objects (1.0.0), JavaScript's sends arrays and, for
broadcasts, binary frames (2.0.0). Source: the clients' own serializers.
"""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import closing, suppress
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from typing_extensions import Self
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.support.simulators.storage import StorageSimulator

_BROADCAST_PUSH = 3


class RealtimeProject:
    """A project whose URL has Storage and Realtime, for the length of a block.

    Args:
        storage: The running simulator behind the same URL.
        port: The port to listen on; 0 for a free one.

    Attributes:
        refuses_hints: Answer each broadcast over HTTP with 401.
        refuses_joins: Answer each subscription with an error.
        bodies: The bodies of the broadcasts over HTTP.
        sockets: The number of sockets that were opened.
    """

    def __init__(self, storage: StorageSimulator, *, port: int = 0) -> None:
        self._storage = urlsplit(storage.url).port
        self._port = port
        self._keys = {storage.service_key, storage.anon_key}
        self._secret = storage.service_key
        self._joined: dict[ServerConnection, dict[str, bool]] = {}
        self._changed = threading.Condition()
        self.refuses_hints = False
        self.refuses_joins = False
        self.bodies: list[Any] = []
        self.sockets = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    def wait_for_subscribers(self, count: int, topic: str) -> None:
        """Wait until so many connections have joined a topic."""
        name = f"realtime:{topic}"
        with self._changed:
            assert self._changed.wait_for(lambda: sum(name in one for one in self._joined.values()) == count, 20)

    def broadcast(self, topic: str, event: str) -> None:
        """Send a broadcast to the subscribers of a topic, as anyone with a key may."""
        asyncio.run_coroutine_threadsafe(self._deliver(f"realtime:{topic}", event, {}), self._loop).result(10)

    def cut(self) -> None:
        """Break every subscription."""
        for connection in list(self._joined):
            self._loop.call_soon_threadsafe(connection.transport.abort)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        async with serve(self._talk, "127.0.0.1", 0) as sockets:
            self._sockets = next(iter(sockets.sockets)).getsockname()[1]
            server = await asyncio.start_server(self._route, "127.0.0.1", self._port)
            self._port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._end.wait()
            server.close()

    async def _route(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a connection on by the path of its first request; answer broadcasts over HTTP."""
        with suppress(ConnectionError, asyncio.IncompleteReadError), closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1]
            if path.startswith(b"/realtime/v1/api/broadcast"):
                await self._post(head.decode(), reader, writer)
            else:
                port = self._sockets if path.startswith(b"/realtime/v1/websocket") else self._storage
                other_reader, other = await asyncio.open_connection("127.0.0.1", port)
                with closing(other):
                    other.write(head)
                    await asyncio.gather(_pump(reader, other), _pump(other_reader, writer))

    async def _post(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = head.lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
        body = json.loads(await reader.readexactly(length))
        self.bodies.append(body)
        allowed = f"apikey: {self._secret}".lower() in lines and not self.refuses_hints
        status = "202 Accepted" if allowed else "401 Unauthorized"
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        if allowed:
            for message in body["messages"]:
                await self._deliver(f"realtime:{message['topic']}", message["event"], message["payload"])

    async def _talk(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        query = parse_qs(urlsplit(connection.request.path).query)
        arrays = query.get("vsn") == ["2.0.0"]
        self._joined[connection] = {}
        self.sockets += 1
        try:
            if query["apikey"][0] not in self._keys:
                return
            async for frame in connection:
                if isinstance(frame, bytes):
                    await self._deliver(*_pushed(frame))
                    continue
                value = json.loads(frame)
                names = ("join_ref", "ref", "topic", "event", "payload")
                message = dict(zip(names, value, strict=True)) if arrays else value
                topic, event = message["topic"], message["event"]
                if event == "broadcast":
                    await self._deliver(topic, message["payload"]["event"], message["payload"]["payload"])
                    continue
                refused = event == "phx_join" and self.refuses_joins
                response: dict[str, Any] = {"reason": "refused"} if refused else {"postgres_changes": []}
                payload = {"status": "error" if refused else "ok", "response": response}
                refs = (message.get("ref"), message.get("join_ref"))
                await _send(connection, arrays, topic, "phx_reply", payload, *refs)
                if event == "phx_join" and not refused:
                    with self._changed:
                        self._joined[connection][topic] = arrays
                        self._changed.notify_all()
        except ConnectionClosed:
            pass
        finally:
            with self._changed:
                del self._joined[connection]
                self._changed.notify_all()

    async def _deliver(self, topic: str, event: str, payload: dict[str, Any]) -> None:
        for connection, topics in list(self._joined.items()):
            if topic in topics:
                body = {"type": "broadcast", "event": event, "payload": payload}
                await _send(connection, topics[topic], topic, "broadcast", body, None, None)


async def _send(
    connection: ServerConnection,
    arrays: bool,
    topic: str,
    event: str,
    payload: dict[str, Any],
    ref: str | None,
    join_ref: str | None,
) -> None:
    message = {"topic": topic, "event": event, "payload": payload, "ref": ref}
    with suppress(ConnectionClosed):
        await connection.send(json.dumps([join_ref, ref, topic, event, payload] if arrays else message))


def _pushed(frame: bytes) -> tuple[str, str, dict[str, Any]]:
    """Read the topic, event and payload of a binary broadcast."""
    kind, join_ref, ref, topic, event, metadata, _encoding = frame[:7]
    assert kind == _BROADCAST_PUSH
    begin = 7 + join_ref + ref
    name, said = frame[begin : begin + topic], frame[begin + topic : begin + topic + event]
    payload: dict[str, Any] = json.loads(frame[begin + topic + event + metadata :])
    return name.decode(), said.decode(), payload


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()
