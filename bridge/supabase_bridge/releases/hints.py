"""Send a hint over Supabase Realtime that a channel has switched, so that consumers poll at once.

A hint carries no fact and no secret: `manifest.json` stays the truth, and a lost hint costs one interval of polling.
Source: https://supabase.com/docs/guides/realtime/broadcast, "Broadcast using the REST API".
"""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import suppress

import httpx
from pydantic import SecretStr

from supabase_bridge.core.layout import HINT_EVENT, ChannelPaths
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.supabase.endpoint import key_headers

_logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
_WAITING = 100
"""The number of hints that may wait to be sent; a further one is dropped."""


class HintSender:
    """Sends hints from a background thread. Thread-safe; no call raises or waits for the server.

    Args:
        url: The project's URL; None: hints are off.
        key: A secret key of the project.
    """

    def __init__(self, *, url: str | None, key: SecretStr | None) -> None:
        self._url = url
        self._key = key
        self._topics: queue.Queue[str | None] = queue.Queue(_WAITING)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @classmethod
    def of_settings(cls, settings: Settings) -> HintSender:
        """Make a sender for the project of the settings; it sends nothing unless they switch Realtime on."""
        return cls(url=settings.supabase_url if settings.realtime else None, key=settings.service_key)

    def send(self, bucket: str, paths: ChannelPaths) -> None:
        """Hint that the manifest of a channel was written."""
        if self._url is None or self._key is None:
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="supabase-bridge-hints", daemon=True)
                self._thread.start()
        with suppress(queue.Full):
            self._topics.put_nowait(paths.topic(bucket))

    def close(self) -> None:
        """Wait for the hints that are on their way, 2 seconds at most."""
        with self._lock:
            if self._thread is not None:
                with suppress(queue.Full):
                    self._topics.put_nowait(None)
                self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        headers = key_headers(self._key.get_secret_value()) if self._key else {}
        with httpx.Client(headers=headers, timeout=_TIMEOUT_SECONDS) as http:
            while (topic := self._topics.get()) is not None:
                message = {"topic": topic, "event": HINT_EVENT, "payload": {}, "private": False}
                try:
                    answer = http.post(f"{self._url}/realtime/v1/api/broadcast", json={"messages": [message]})
                    problem = None if answer.is_success else f"the server answered {answer.status_code}"
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    problem = type(error).__name__
                if problem is not None:
                    facts = {"topic": topic, "reason": problem}
                    _logger.warning("a hint of a switch was not sent; consumers find it by polling", extra=facts)
