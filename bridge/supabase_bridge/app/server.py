"""Run the MLflow server and a worker as child processes of one command."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import entry_points

from supabase_bridge.app.errors import CommandError
from supabase_bridge.core.backoff import backoff
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.settings.addresses import check_database_url
from supabase_bridge.settings.model import Settings
from supabase_bridge.settings.sources import child_environment

logger = logging.getLogger(__name__)

_PROGRESS_SECONDS = 15.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.1
_LOOK_SECONDS = 0.02
"""Between two requests to the server while it starts."""
_FIRST_RESTART = timedelta(seconds=1)
_LONGEST_RESTART = timedelta(minutes=1)
_STABLE_SECONDS = 60.0
"""A worker that ran for longer than this is restarted after the shortest pause again."""
_SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of <linux/prctl.h>."""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Sends requests to our own server, which no proxy of the environment can reach."""
_SET_BY_US = {
    "--backend-store-uri": "SUPABASE_BRIDGE_DATABASE_URL",
    "--registry-store-uri": "SUPABASE_BRIDGE_DATABASE_URL",
    "--artifacts-destination": "SUPABASE_BRIDGE_ARTIFACTS_DESTINATION",
    "--host": "--host, before the --",
    "--port": "--port, before the --",
}


@dataclass(frozen=True, kw_only=True)
class Address:
    """The address on which the MLflow server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The server's URL for a browser on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104 - read, not bound
        return f"http://{host}:{self.port}"


def check_plugin(settings: Settings) -> None:
    """Check that MLflow finds our registry store. Without it MLflow starts, but every registry call fails.

    Raises:
        CommandError: MLflow or the plugin is not installed.
        SettingsError: see `check_database_url`.
    """
    check_database_url(settings.database_url)
    scheme = settings.registry_uri.partition("://")[0]
    if importlib.util.find_spec("mlflow") is None:
        raise CommandError(
            "MLflow is not installed in this environment: run `pip install 'mlflow-supabase-bridge[mlflow]'`"
        )
    if scheme not in {point.name for point in entry_points(group="mlflow.model_registry_store")}:
        raise CommandError(
            f"MLflow has no registry store for {scheme}:// in this environment, so promotions would not be recorded: "
            "install the bridge there with `pip install 'mlflow-supabase-bridge[mlflow]'`"
        )


def check_options(options: Sequence[str]) -> None:
    """Refuse options of `mlflow server` that the bridge sets itself.

    Raises:
        SettingsError: an option is one of them.
    """
    for option in options:
        if (instead := _SET_BY_US.get(option.split("=")[0])) is not None:
            raise SettingsError(option.split("=")[0], f"set {instead} instead, so that server and worker agree")


def server_arguments(settings: Settings, address: Address, options: Sequence[str]) -> list[str]:
    """The command of the MLflow server: on SQLite, which has one writer, with one process unless the options differ."""
    given = any(option.split("=")[0] in {"-w", "--workers"} for option in options)
    workers = [] if given or not settings.database_url.startswith("sqlite") else ["--workers", "1"]
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", address.host, "--port", str(address.port)),
        *workers,
        *options,
    ]


def server_environment(settings: Settings) -> dict[str, str]:
    """The stores of the MLflow server. They are not in its command line, because a URL can contain a password."""
    return {
        "MLFLOW_BACKEND_STORE_URI": settings.database_url,
        "MLFLOW_REGISTRY_STORE_URI": settings.registry_uri,
        "MLFLOW_ARTIFACTS_DESTINATION": settings.artifacts_destination,
    }


def worker_arguments(settings: Settings) -> list[str]:
    """The command of the worker, which reads all other settings from the inherited environment."""
    return [sys.executable, "-m", "supabase_bridge.cli", "worker", "--home", str(settings.home)]


def _start_waiting_worker(settings: Settings) -> subprocess.Popen[bytes]:
    """Start a worker that imports MLflow while the server does, and opens the database after `_let_work`."""
    return _start([*worker_arguments(settings), "--after-input"], stdin=subprocess.PIPE)


def _let_work(worker: subprocess.Popen[bytes]) -> None:
    """Let a waiting worker work; one that has ended is restarted later."""
    if worker.stdin is not None:
        with suppress(BrokenPipeError), worker.stdin as stdin:
            stdin.write(b"\n")


def run_server(
    settings: Settings,
    address: Address,
    options: Sequence[str],
    *,
    on_ready: Callable[[], None],
    on_wait: Callable[[float], None],
) -> int:
    """Run the MLflow server and a worker, which works once the server answers, until a signal or the server's end.

    A worker that ends is restarted after a pause, which grows up to a minute. SIGTERM, SIGINT and SIGHUP stop both:
    each process group gets SIGTERM and, after ten seconds, SIGKILL. A SIGHUP that is ignored at the start (nohup) stays
    ignored. On Linux both children get SIGTERM when this process is killed.

    Args:
        options: Further options of `mlflow server`; see `check_options`.
        on_ready: Called once, when the server answers.
        on_wait: Called every 15 seconds while the MLflow server starts, with the seconds so far.

    Returns:
        0 after a signal, otherwise the server's exit code (1 where that is 0).

    Raises:
        CommandError: the port is in use, or the server ended before it answered.
    """
    if "--enable-workspaces" in options:
        os.environ["MLFLOW_ENABLE_WORKSPACES"] = "true"
    _check_free(address)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: stop.set())
    running = [_start(server_arguments(settings, address, options), server_environment(settings))]
    try:
        running.append(_start_waiting_worker(settings))
        if not _wait_until_up(running[0], address, stop, on_wait):
            return 0
        _let_work(running[1])
        started, failures, restart_at = time.monotonic(), 0, None
        on_ready()
        while not stop.wait(_POLL_SECONDS):
            if (code := running[0].poll()) is not None:
                logger.error("the MLflow server ended", extra={"code": code})
                return code or 1
            if restart_at is None and (code := running[1].poll()) is not None:
                failures = 1 if time.monotonic() - started > _STABLE_SECONDS else failures + 1
                pause = backoff(failures, _FIRST_RESTART, _LONGEST_RESTART, random.uniform).total_seconds()
                restart_at = time.monotonic() + pause
                logger.error("the worker ended and is restarted", extra={"code": code, "pause": round(pause, 1)})
            if restart_at is not None and time.monotonic() >= restart_at:
                running[1] = _start(worker_arguments(settings))
                started, restart_at = time.monotonic(), None
        return 0
    finally:
        _stop_all(running)


def _start(
    command: list[str], variables: Mapping[str, str] | None = None, *, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a process in its own group, so that Ctrl-C reaches only this process, which then stops the others."""
    environment = child_environment(variables or {})
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def end_with_parent() -> None:
        if prctl is not None:
            prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

    return subprocess.Popen(
        command,
        start_new_session=True,
        stdin=stdin,
        env=environment,
        preexec_fn=end_with_parent,
    )


def _check_free(address: Address) -> None:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise _not_started(address, f"cannot listen there: {error.strerror}; choose another --port") from error


def _wait_until_up(
    server: subprocess.Popen[bytes], address: Address, stop: threading.Event, on_wait: Callable[[float], None]
) -> bool:
    """Return True once the server answers, and False if `stop` is set before."""
    started, announced = time.monotonic(), 0.0
    while not stop.wait(_LOOK_SECONDS):
        if (code := server.poll()) is not None:
            raise _not_started(address, f"the MLflow server ended with code {code}; see its output above")
        waited = time.monotonic() - started
        if waited - announced >= _PROGRESS_SECONDS:
            announced = waited
            on_wait(waited)
        try:
            with _DIRECT.open(f"{address.url}/health", timeout=1):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            continue
    return False


def _not_started(address: Address, reason: str) -> CommandError:
    return CommandError(f"no MLflow server at {address.url}: {reason}")


def _stop_all(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Send SIGTERM to each process group, the worker's first, and SIGKILL to those that do not end in time."""
    for process in reversed(running):
        _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    for process in reversed(running):
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("a process did not end after SIGTERM and is killed", extra={"pid": process.pid})
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
