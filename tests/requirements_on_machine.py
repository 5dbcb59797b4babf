"""What a test needs of the machine it runs on: programs, or a word on what to install, and free ports."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest


def missing(what: str, install: str) -> NoReturn:
    """Skip the test, or fail it in CI, since this machine lacks `what`, of the Debian package `install`."""
    message = f"no {what} here: `apt-get install {install}`"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def program(name: str, *, install: str) -> Path:
    """A program of this machine; skips, or fails in CI, where there is none."""
    found = shutil.which(name)
    return Path(found) if found else missing(name, install)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that no system hands out by itself before it is used."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
