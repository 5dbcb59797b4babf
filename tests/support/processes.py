"""Processes of tests: with a clean environment, and killed together with their children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.machine import free_port

LIMIT_SECONDS = 120


def surroundings(home: Path, **variables: str) -> dict[str, str]:
    """Return an environment with `variables` and another home, without variables of MLflow, the bridge and pytest."""
    foreign = ("MLFLOW", "SUPABASE", "PYTEST", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    # MLflow starts uvicorn by its name.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**kept, **quiet, "PATH": path, "HOME": str(home), **variables}


def mlflow_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mlflow", *arguments]


def run(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> str:
    """Run a command that must succeed; return its standard output."""
    with started(command, cwd=cwd, env=env, stdout=subprocess.PIPE) as process:
        out, _ = process.communicate(timeout=LIMIT_SECONDS)
        assert process.returncode == 0, f"{command}:\n{out!r}\n{_said(process, cwd)}"
    return out.decode()


@contextmanager
def started(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdout: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in a session that is killed as a whole: MLflow's servers leave workers running.

    What it says goes to the file `stderr` in `cwd`; a pipe that nobody reads would stop it one day.
    """
    with (cwd / "stderr").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=cwd, env=env, start_new_session=True, stdout=log if stdout is None else stdout, stderr=log
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@contextmanager
def serving(command: Sequence[str], *, cwd: Path, env: Mapping[str, str], health: str = "/health") -> Iterator[str]:
    """Run a server with `--port` after the command; yield its URL when it answers."""
    port = free_port()
    with started([*command, "--port", str(port)], cwd=cwd, env=env) as process:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + LIMIT_SECONDS
        while not _answers(f"{url}{health}"):
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
                raise AssertionError(f"the server ended:\n{_said(process, cwd)}")
            assert time.monotonic() < deadline, f"the server does not answer:\n{_said(process, cwd)}"
        yield url


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def _said(process: subprocess.Popen[bytes], cwd: Path) -> str:
    return f"process {process.pid}: {(cwd / 'stderr').read_text(errors='replace')}"
