"""What a test needs of the machine it runs on, and what happens where that is missing."""

from __future__ import annotations

import os
import shutil
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
