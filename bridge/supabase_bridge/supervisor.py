"""The MLflow server and one worker under one process: started in order, restarted or stopped together."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from supabase_bridge import config
from supabase_bridge.config import Settings
from supabase_bridge.errors import ServerStartError

logger = logging.getLogger(__name__)

_START_SECONDS = 180.0
_STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.1
_RESTART_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the MLflow server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The address as a browser on this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104 - read, not bound
        return f"http://{host}:{self.port}"


def server_command(address: Address, more: Sequence[str]) -> list[str]:
    """The MLflow server's command; see `server_environment` for its stores."""
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", address.host, "--port", str(address.port)),
        *more,
    ]


def server_environment(settings: Settings) -> dict[str, str]:
    """Which stores the MLflow server has; not in its command, where everybody on the machine can read a password."""
    return {
        "MLFLOW_BACKEND_STORE_URI": settings.database_url,
        "MLFLOW_REGISTRY_STORE_URI": settings.registry_uri,
        "MLFLOW_ARTIFACTS_DESTINATION": settings.artifacts_destination,
    }


def worker_command(settings: Settings) -> list[str]:
    """The worker's command; everything but the home directory it finds in the environment, as we did."""
    return [sys.executable, "-m", "supabase_bridge.cli", "worker", "--home", str(settings.home)]


def supervise(
    server: list[str],
    worker: list[str],
    address: Address,
    *,
    server_environment: Mapping[str, str],
    on_ready: Callable[[], None],
) -> int:
    """Run the server, then the worker once the server answers; until a signal, or until the server ends by itself.

    The worker is started again whenever it ends. SIGTERM, SIGINT and SIGHUP stop both: they are asked first and killed
    after ten seconds, with every process they started.

    Returns:
        0 after a signal, otherwise the server's exit code (1 where it has none).

    Raises:
        ServerStartError: the port is taken, or the server ended or stayed silent before it answered once.
    """
    _check_free(address)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    running = [_start(server, server_environment)]
    try:
        if not _wait_until_up(running[0], address, stop):
            return 0
        running.append(_start(worker))
        on_ready()
        while not stop.wait(_LOOK_SECONDS):
            if (code := running[0].poll()) is not None:
                logger.error("the MLflow server ended", extra={"code": code})
                return code or 1
            if (code := running[1].poll()) is not None:
                logger.error("the worker ended and is started again", extra={"code": code})
                stop.wait(_RESTART_SECONDS)
                running[1] = _start(worker)
        return 0
    finally:
        _stop_all(running)


def _start(command: list[str], more: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A process group of its own, so that a Ctrl-C at the terminal reaches us alone and we stop it in order.

    Args:
        more: Environment variables besides, or instead of, our own.
    """
    changed = config.child_environment(more or {})
    return subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, env=changed)


def _check_free(address: Address) -> None:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            problem = f"cannot listen there: {error.strerror}; choose another --port"
            raise ServerStartError(address.url, problem) from error


def _wait_until_up(server: subprocess.Popen[bytes], address: Address, stop: threading.Event) -> bool:
    """True once the server answers; False where it was stopped before."""
    deadline = time.monotonic() + _START_SECONDS
    while not stop.wait(_LOOK_SECONDS):
        if (code := server.poll()) is not None:
            raise ServerStartError(address.url, f"the MLflow server ended with code {code}; its own words are above")
        if time.monotonic() > deadline:
            raise ServerStartError(address.url, f"the MLflow server did not answer for {_START_SECONDS:.0f} seconds")
        try:
            with urllib.request.urlopen(f"{address.url}/health", timeout=1):  # noqa: S310 - our own server
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            continue
    return False


def _stop_all(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask every process group to end, the worker first, and kill what has not ended in time."""
    for process in reversed(running):
        _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    for process in reversed(running):
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("a process did not end when asked and is killed", extra={"pid": process.pid})
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
