"""Databases, trained versions, MLflow servers and workers for benchmarks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.target import Target
from supabase_bridge.app.runtime import open_runtime
from supabase_bridge.settings.model import Settings
from tests.support.databases import DatabaseServer, running_mariadb, running_postgresql
from tests.support.machine import free_port
from tests.support.scene import Scene, registry_client

DATABASES = ("sqlite", "postgresql", "mariadb")
_LIMIT_SECONDS = 120


@contextmanager
def database_server(kind: str) -> Iterator[DatabaseServer | None]:
    """Run a private server of this kind; yield None for SQLite, which has no server."""
    if kind == "sqlite":
        yield None
        return
    with running_postgresql() if kind == "postgresql" else running_mariadb() as server:
        yield server


def environment(place: Target, database_url: str | None = None) -> dict[str, str]:
    """Return the variables that a server and a worker of a target need; None: SQLite in their home."""
    variables = {"SUPABASE_URL": place.url, "SUPABASE_SECRET_KEY": place.key.get_secret_value()}
    return variables | ({} if database_url is None else {"SUPABASE_BRIDGE_DATABASE_URL": database_url})


@contextmanager
def scene(home: Path, environ: Mapping[str, str], **changes: Any) -> Iterator[Scene]:
    """Open a registry with a worker, in which a benchmark trains versions."""
    settings = Settings.load(home=home, environ=environ, **changes)
    home.mkdir(parents=True, exist_ok=True)
    client = registry_client(settings)
    with open_runtime(settings) as made:
        yield Scene(settings=settings, runtime=made, client=client)


@contextmanager
def process(command: Sequence[str], home: Path, environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process for the length of a block; its output goes to a file beside `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "SUPABASE_"))}
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "HOME": str(home)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with home.with_suffix(f".{time.monotonic_ns()}.log").open("wb") as log:
        started = subprocess.Popen(
            command, cwd=home, env={**kept, **quiet, "PATH": path, **environ}, stdout=log, stderr=log
        )
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(30)
        finally:
            started.kill()


def bridge_command(*arguments: str) -> list[str]:
    """Return the command line of `supabase-bridge`."""
    return [sys.executable, "-m", "supabase_bridge.cli", *arguments]


@contextmanager
def mlflow_server(home: Path, environ: Mapping[str, str], *, backend: str, registry: str) -> Iterator[httpx.Client]:
    """Run `mlflow server` with one process; yield a client of its REST API on one connection."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", backend, "--registry-store-uri", registry]
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        stack.enter_context(process([*command, *stores], home, environ))
        client = stack.enter_context(httpx.Client(base_url=f"{url}/api/2.0/mlflow/", timeout=60))
        deadline = time.monotonic() + _LIMIT_SECONDS
        while True:
            try:
                client.get(f"{url}/health")
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the MLflow server does not answer"
                time.sleep(0.1)
        yield client


def transition(client: httpx.Client, model: str, version: int, stage: str) -> None:
    """Move a version to a stage over REST."""
    # Other versions keep the stage: MLflow's own store fails to archive them on PostgreSQL with psycopg 3.
    body = {"name": model, "version": str(version), "stage": stage, "archive_existing_versions": False}
    client.post("model-versions/transition-stage", json=body).raise_for_status()
