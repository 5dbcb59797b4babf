"""A real `mlflow server` whose registry is our store, and no worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.machine import free_port

_LIMIT_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class OwnServer:
    """A running server."""

    url: str

    def post(self, call: str, **body: object) -> Any:
        """Call MLflow's REST interface."""
        request = urllib.request.Request(
            f"{self.url}/api/2.0/mlflow/{call}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=_LIMIT_SECONDS) as answer:
            return json.loads(answer.read())


@contextmanager
def own_server(database: Path, *options: str) -> Iterator[OwnServer]:
    """An `mlflow server` on a free port, on an SQLite database, with further options."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = [f"--backend-store-uri=sqlite:///{database}", f"--registry-store-uri=supabase+sqlite:///{database}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "PYTEST"))}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    said = database.with_suffix(".log")
    with said.open("wb") as log:
        # A session of its own: killing MLflow's parent process alone leaves its workers.
        process = subprocess.Popen(
            [*command, *stores, *options],
            cwd=database.parent,
            env=environment,
            start_new_session=True,
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_it_answers(process, url, said)
        yield OwnServer(url=url)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str, said: Path) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.1)
                raise AssertionError(f"the server ended:\n{said.read_text()}") from None
    raise AssertionError(f"the server does not answer:\n{said.read_text()}")
