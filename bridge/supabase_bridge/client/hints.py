"""Listen over Supabase Realtime for hints that a channel has switched. A hint is only a reason to poll at once."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from pydantic import SecretStr

from supabase_bridge.core.backoff import backoff
from supabase_bridge.core.layout import HINT_EVENT

if TYPE_CHECKING:
    from realtime import RealtimeSubscribeStates

_FIRST_PAUSE = timedelta(seconds=1)
_LONGEST_PAUSE = timedelta(minutes=1)
_JOIN_SECONDS = 15
_CHECK_SECONDS = 5
_CLOSE_SECONDS = 5

_logger = logging.getLogger(__name__)
_random = random.SystemRandom()


class HintListener:
    """A subscription in a background thread, which connects again after each failure until it is closed.

    A context manager that closes itself. No failure is raised: without a subscription the caller polls.

    Args:
        url: The project's URL.
        key: A key of the project; the publishable key is enough.
        topic: See `ChannelPaths.topic`.
        changed: Called from the thread after each hint, and when the subscription begins or ends.
    """

    def __init__(self, *, url: str, key: SecretStr, topic: str, changed: Callable[[], None]) -> None:
        self._url = url
        self._key = key
        self._topic = topic
        self._changed = changed
        self._alive = False
        self._closing = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="supabase-bridge-hint-listener", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the server has confirmed the subscription, and the connection has not broken since."""
        return self._alive

    def __enter__(self) -> HintListener:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(self._subscribe_again())

    async def _subscribe_again(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        failures = 0
        while not self._closing.is_set():
            try:
                await self._subscribe()
                failures = 0
            except Exception as error:  # noqa: BLE001 - a network or the library may raise anything, and polling goes on
                failures += 1
                _logger.info("no subscription to hints; polling goes on", extra={"reason": str(error)})
            await asyncio.sleep(backoff(failures, _FIRST_PAUSE, _LONGEST_PAUSE, _random.uniform).total_seconds())

    async def _subscribe(self) -> None:
        """Subscribe, and return when the subscription has ended."""
        # The import takes 0.2 s, for which no program waits that does not listen.
        from realtime import AsyncRealtimeClient, RealtimeSubscribeStates

        ended = asyncio.Event()

        def on_state(state: RealtimeSubscribeStates, _error: Exception | None) -> None:
            self._set_alive(state is RealtimeSubscribeStates.SUBSCRIBED)
            if not self._alive:
                ended.set()

        key = self._key.get_secret_value()
        client = AsyncRealtimeClient(f"{self._url}/realtime/v1", key, auto_reconnect=False)
        try:
            channel = client.channel(self._topic)
            channel.on_broadcast(HINT_EVENT, lambda _hint: self._changed())
            await asyncio.wait_for(channel.subscribe(on_state), _JOIN_SECONDS)
            while client.is_connected and not ended.is_set():
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(ended.wait(), _CHECK_SECONDS)
        finally:
            self._set_alive(False)
            await client.close()

    def _set_alive(self, alive: bool) -> None:
        if alive is not self._alive:
            self._alive = alive
            self._changed()
