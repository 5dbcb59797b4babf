"""The server that forks the processes of the checks; it runs while versions are checked, and a moment longer."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

REST_SECONDS = 10.0
"""How long the server outlives its last check, so that the checks of the next version do not import again."""


class CheckServer:
    """Starts the server with the first check, and ends it after a rest; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._ended = 0.0
        self._watched = False

    @contextmanager
    def context(self) -> Iterator[BaseContext]:
        """Return the context in which a check's process is started, for as long as that runs."""
        with self._lock:
            self._running += 1
        try:
            yield _context()
        finally:
            with self._lock:
                self._running -= 1
                self._ended = time.monotonic()
                if not self._watched:
                    self._watched = True
                    threading.Thread(target=self._watch, name="check server", daemon=True).start()

    def _watch(self) -> None:
        """End the server once it has had nothing to do for a while."""
        while True:
            with self._lock:
                left = self._ended + REST_SECONDS - time.monotonic()
                if self._running == 0 and left <= 0:
                    _end()
                    self._watched = False
                    return
            time.sleep(REST_SECONDS if left <= 0 else left)


def _end() -> None:
    """End the server, and the process that tracks its resources; the next check starts both again.

    The standard library has no public function for that; its own tests use these two.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver, resource_tracker

        server: Any = forkserver._forkserver
        tracker: Any = resource_tracker._resource_tracker
        server._stop()
        tracker._stop()


def _context() -> BaseContext:
    """Return a server that imports the checks' modules once and forks each process; elsewhere a new interpreter."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # multiprocessing by itself preloads `__main__` only.
    modules = [f"supabase_bridge.mirror.checks.{name}" for name in ("sandbox", "onnx", "pickle")]
    context.set_forkserver_preload(["__main__", *modules])
    return context


SERVER = CheckServer()
"""Of this process."""
