"""Programs, free ports and shared directories of the machine that runs the tests."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest


def missing(what: str, remedy: str) -> NoReturn:
    """Skip the test, or fail it in CI, because this machine lacks `what`; the command `remedy` installs it."""
    message = f"no {what} here: `{remedy}`"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def program(name: str, *, install: str) -> Path:
    """Return a program of the Debian package `install`; skip, or fail in CI, where there is none."""
    found = shutil.which(name)
    return Path(found) if found else missing(name, f"apt-get install {install}")


def need_torch() -> None:
    """Skip, or fail in CI, where PyTorch and its exporter are missing; `.ci/run` installs them for exhaustive tests."""
    if find_spec("torch") is None or find_spec("onnxscript") is None:
        missing("PyTorch", "pip install -r examples/two_tower/requirements.txt")


def free_port() -> int:
    """Return a free port of 127.0.0.1 below the range from which the system assigns ports."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def peak_bytes(pid: int | str = "self") -> int:
    """Return the largest resident size of a process so far, or since its peak was reset, on Linux; 0: it has ended.

    What getrusage and wait4 tell begins with the size of the process that started it.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return 0 if found is None else int(found[1]) * 1024


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a directory that one process of the test run fills and all of them (pytest-xdist) read."""
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    directory, done = root / f"shared-{name}", root / f"shared-{name}.done"
    with (root / f"shared-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            directory.mkdir()
            make(directory)
            done.touch()
    return directory
