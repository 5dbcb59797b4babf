"""Run one command of a step: limited environment and time, stopped on demand, its last output as the reason."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO

from supabase_bridge.core.errors import os_errors
from supabase_bridge.steps import supervisor

_GRACE_SECONDS = 10.0
"""How long a command may take to end after SIGTERM."""
_OUTPUT_LIMIT = 4_096
_POLL_SECONDS = 0.1
_CHECK_SECONDS = 2.0


def run_command(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    timeout: timedelta,
    keep_going: Callable[[], None],
) -> str | None:
    """Run a command to its end; return why it failed, or None where it succeeded.

    Args:
        keep_going: Called every two seconds; whatever it raises ends the command and is raised.

    Raises:
        LocalFileError: no temporary file can be written.
    """
    program = [sys.executable, "-I", str(Path(supervisor.__file__)), str(_GRACE_SECONDS), *command]
    with os_errors(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=dict(environment)
        )
        try:
            reason = _wait(process, timeout, keep_going)
        finally:
            _end(process)
        if reason is None and process.returncode != 0:
            reason = f"it ended with {process.returncode}"
        return None if reason is None else f"{reason}{_tail(output)}"


def _wait(process: subprocess.Popen[bytes], timeout: timedelta, keep_going: Callable[[], None]) -> str | None:
    """Wait for the end of a process; return a reason where that took too long."""
    deadline = time.monotonic() + timeout.total_seconds()
    checked = time.monotonic()
    while True:
        try:
            process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                return f"it did not end within {timeout.total_seconds():g} seconds"
            if time.monotonic() >= checked + _CHECK_SECONDS:
                keep_going()
                checked = time.monotonic()
        else:
            return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe, so that the supervisor ends the command, and wait for that."""
    if process.stdin is not None:
        process.stdin.close()
    process.wait(_GRACE_SECONDS * 2)


def _tail(output: IO[bytes]) -> str:
    """The end of what the command wrote."""
    size = output.seek(0, 2)
    output.seek(max(0, size - _OUTPUT_LIMIT))
    text = output.read(_OUTPUT_LIMIT).decode(errors="replace").strip()
    return f": {text}" if text else ""
