"""A real `supabase-bridge server`: MLflow and a worker under one process, from the first answer to the last signal."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import EXECUTABLE, clean_environment, execute, invoke
from tests.support.databases import copy_server_database
from tests.support.machine import free_port
from tests.support.scene import MODEL, tiny_onnx

pytestmark = [pytest.mark.mlflow, pytest.mark.exhaustive]

_LIMIT_SECONDS = 120
_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server and its home; what it says is in the files `out` and `err` there."""

    process: subprocess.Popen[bytes]
    home: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def said(self) -> str:
        return (self.home / "err").read_text()

    def post(self, call: str, **body: object) -> Any:
        """Call MLflow's REST interface."""
        return self._request("POST", f"mlflow/{call}", json.dumps(body).encode())

    def register(self, model: str) -> None:
        """Log a run with an ONNX file, as a client without access to the home does, and register it as version 1."""
        run = self.post("runs/create", experiment_id="0", start_time=1_761_903_511_000)["run"]["info"]
        root = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
        self._request("PUT", f"mlflow-artifacts/artifacts/{root}/model/model.onnx", tiny_onnx())
        self.post("runs/update", run_id=run["run_id"], status="FINISHED", end_time=1_761_903_512_000)
        self.post("registered-models/create", name=model)
        source = f"{run['artifact_uri']}/model"
        self.post("model-versions/create", name=model, source=source, run_id=run["run_id"])

    def promote(self, model: str) -> None:
        self.post(
            "model-versions/transition-stage",
            name=model,
            version="1",
            stage="Production",
            archive_existing_versions=True,
        )

    def tags(self, model: str) -> dict[str, str]:
        """The tags of version 1."""
        found = self._request("GET", f"mlflow/model-versions/get?name={model}&version=1", None)
        return {tag["key"]: tag["value"] for tag in found["model_version"].get("tags", [])}

    def current(self, model: str) -> int | None:
        """The version that the manifest names; None: there is no manifest."""
        path = self.home / "supabase" / "models" / model / "latest" / "manifest.json"
        try:
            version: int = json.loads(path.read_bytes())["current"]["model_version"]
        except FileNotFoundError:
            return None
        return version

    def worker(self) -> int | None:
        """The worker's process id."""
        found = [pid for pid in descendants(self.process.pid) if "supabase_bridge.cli" in command_of(pid)]
        return found[0] if found else None

    def _request(self, method: str, path: str, body: bytes | None) -> Any:
        headers = {"Content-Type": "application/json" if method == "POST" else "application/octet-stream"}
        request = urllib.request.Request(f"{self.url}/api/2.0/{path}", body, headers, method=method)
        with urllib.request.urlopen(request, timeout=_LIMIT_SECONDS) as answer:
            return json.loads(answer.read() or b"{}")


@contextmanager
def serving(home: Path, *, before: Sequence[str] = (), **variables: str) -> Iterator[Server]:
    """A server that is up and whose worker has been started; killed with all it started in the end."""
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [*before, str(EXECUTABLE), "server", "--home", str(home), "--port", str(port)]
    # To files, since nobody would read a pipe.
    with (home / "out").open("wb") as out, (home / "err").open("wb") as err:
        process = subprocess.Popen(
            command,
            cwd=home,
            env=clean_environment(home, {**_ENVIRONMENT, **variables}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    server = Server(process=process, home=home, port=port)
    try:
        until(lambda: f"server:   {server.url} " in server.said() or process.poll() is not None, "the server")
        assert process.poll() is None, server.said()
        yield server
    finally:
        left = [*descendants(process.pid), process.pid] if process.poll() is None else []
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that leave it running: MLflow takes seconds to start."""
    with serving(tmp_path_factory.mktemp("server") / "home") as running:
        yield running


def until(reached: Callable[[], object], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    pause = threading.Event()
    while not reached():
        assert time.monotonic() < deadline, f"waited {_LIMIT_SECONDS} seconds for {what}"
        pause.wait(0.05)


def parents() -> Mapping[int, int]:
    """Every process that lives, zombies aside, with its parent."""
    found: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may have anything in it.
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found[int(path.parent.name)] = int(parent)
    return found


def descendants(pid: int) -> list[int]:
    """All processes that a process has started, and those that they have."""
    children = [child for child, parent in parents().items() if parent == pid]
    return children + [found for child in children for found in descendants(child)]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


# --- running ----------------------------------------------------------------------------------------------------------


def test_it_answers_and_says_where_everything_is(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/health", timeout=_LIMIT_SECONDS) as answer:
        assert answer.read() == b"OK"
    said = server.said().splitlines()
    assert f"store:    directory {server.home}/supabase/models (embedded, no SUPABASE_URL set)" in said
    assert f"database: sqlite:///{server.home}/mlflow.db" in said
    assert f"server:   {server.url} (Ctrl-C stops it)" in said


def test_a_promotion_through_rest_moves_the_manifest(server: Server) -> None:
    server.register(MODEL)
    server.promote(MODEL)
    until(lambda: server.current(MODEL) == 1, "the manifest to name version 1")
    assert server.tags(MODEL)["supabase.run_id"] == "20251031T093832Z"
    until(lambda: server.tags(MODEL).get("supabase.status") == "active", "the version to say so")


def test_a_killed_worker_is_started_again(server: Server) -> None:
    until(server.worker, "the worker")
    killed = server.worker()
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    until(lambda: server.worker() not in {None, killed}, "another worker")
    server.register("after_the_kill")
    server.promote("after_the_kill")
    until(lambda: server.current("after_the_kill") == 1, "the manifest to name version 1")
    assert "the worker ended and is restarted (code=-9 pause=" in server.said()


def test_sigterm_ends_it_with_code_0_and_everything_it_started(tmp_path: Path, empty_database: Path) -> None:
    (tmp_path / "home").mkdir()
    copy_server_database(empty_database, tmp_path / "home" / "mlflow.db")
    with serving(tmp_path / "home") as server:
        until(server.worker, "the worker")
        until(lambda: "worker:   ready" in server.said(), "the worker to be ready")
        started = descendants(server.process.pid)
        assert len(started) >= 2
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(_LIMIT_SECONDS) == 0
        alive = parents()
        assert [command_of(pid) for pid in started if pid in alive] == []
        assert "worker:   stopped" in server.said()
        assert "did not end after SIGTERM" not in server.said()
        assert "Traceback" not in server.said()


def test_under_nohup_and_with_a_proxy_it_starts_survives_sighup_and_ends_its_children_when_it_is_killed(
    tmp_path: Path, empty_database: Path
) -> None:
    (tmp_path / "home").mkdir()
    copy_server_database(empty_database, tmp_path / "home" / "mlflow.db")
    proxy = "http://127.0.0.1:9"
    with serving(tmp_path / "home", before=["nohup"], http_proxy=proxy, HTTP_PROXY=proxy) as server:
        until(lambda: "worker:   ready" in server.said(), "the worker to be ready")
        server.process.send_signal(signal.SIGHUP)
        started = descendants(server.process.pid)
        assert [pid for pid in started if "mlflow" in command_of(pid) and "--workers 1" in command_of(pid)]
        threading.Event().wait(0.5)
        assert server.process.poll() is None
        # MLflow 2 serves through gunicorn, whose processes outlive a parent that is killed.
        ours = [pid for pid in started if "gunicorn" not in command_of(pid)]
        server.process.kill()
        until(lambda: not set(ours) & set(parents()), "the children to end")
        for pid in set(started) & set(parents()):
            os.kill(pid, signal.SIGKILL)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = execute("server", "--home", tmp_path, "--port", port, directory=tmp_path)
    assert said.error.startswith(f"Error: no MLflow server at http://127.0.0.1:{port}: cannot listen there: ")
    assert said.code == 1
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("--backend-store-uri", "SUPABASE_BRIDGE_DATABASE_URL"),
        ("--registry-store-uri=sqlite:///x.db", "SUPABASE_BRIDGE_DATABASE_URL"),
        ("--artifacts-destination", "SUPABASE_BRIDGE_ARTIFACTS_DESTINATION"),
        ("--host", "--host, before the --"),
        ("--port=1", "--port, before the --"),
    ],
)
def test_an_option_that_we_set_is_refused_after_the_dashes(tmp_path: Path, option: str, instead: str) -> None:
    said = invoke("server", "--home", tmp_path / "home", "--", "--workers", "2", option)
    name = option.split("=")[0]
    assert said.error == f"Error: {name}: set {instead} instead, so that server and worker agree"
    assert said.code == 2
    assert not (tmp_path / "home").exists()


def test_a_server_that_ends_before_it_answers_is_said_in_one_line(tmp_path: Path) -> None:
    said = execute("server", "--home", tmp_path, "--port", free_port(), "--", "--no-such-option", directory=tmp_path)
    assert said.code == 1
    assert said.err.splitlines()[-1].endswith(": the MLflow server ended with code 2; see its output above")
