"""A real MLflow server whose registry is our store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa

from supabase_bridge.outbox.events import EventKind
from tests.compatibility.registries import MODEL, SOURCE, event, recorded
from tests.requirements_on_machine import free_port

_LIMIT_SECONDS = 120


@contextmanager
def _server(database: Path) -> Iterator[str]:
    """An `mlflow server` on a free port; its URL."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = [f"--backend-store-uri=sqlite:///{database}", f"--registry-store-uri=supabase+sqlite:///{database}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "PYTEST"))}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    said = database.with_suffix(".log")
    with said.open("wb") as log:
        # A session of its own: killing MLflow's parent process alone leaves its workers.
        process = subprocess.Popen(
            [*command, *stores], cwd=database.parent, env=environment, start_new_session=True, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_it_answers(process, url, said)
        yield url
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


def _post(server: str, call: str, body: Mapping[str, object]) -> None:
    request = urllib.request.Request(
        f"{server}/api/2.0/mlflow/{call}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_LIMIT_SECONDS) as answer:
        assert answer.status == 200


def test_a_promotion_through_rest_is_in_the_outbox_when_the_server_answers(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    promotion = {"name": MODEL, "version": "2", "stage": "Production", "archive_existing_versions": True}
    with _server(database) as server:
        _post(server, "registered-models/create", {"name": MODEL})
        _post(server, "model-versions/create", {"name": MODEL, "source": SOURCE})
        _post(server, "model-versions/create", {"name": MODEL, "source": SOURCE})
        _post(server, "model-versions/transition-stage", {**promotion, "version": "1"})
        _post(server, "model-versions/transition-stage", promotion)
        _post(server, "model-versions/transition-stage", promotion)
    engine = sa.create_engine(f"sqlite:///{database}")
    production = {"stage": "Production"}
    assert recorded(engine) == [
        event(EventKind.VERSION_CREATED, version=1, stage="None"),
        event(EventKind.VERSION_CREATED, version=2, stage="None"),
        event(EventKind.STAGE_CHANGED, version=1, previous_stage="None", **production),
        event(EventKind.STAGE_CHANGED, version=1, previous_stage="Production", stage="Archived"),
        event(EventKind.STAGE_CHANGED, version=2, previous_stage="None", **production),
        event(EventKind.STAGE_CHANGED, version=2, previous_stage="Production", **production),
    ]
    engine.dispose()
