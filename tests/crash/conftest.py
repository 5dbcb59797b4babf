"""Fixtures of the crash tests: a registry to copy for each run."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def runs() -> Iterator[Path]:
    """Where runs take place: in memory where that can be, since thousands of flushes to a disk prove nothing here."""
    memory = Path("/dev/shm")  # noqa: S108 - the directory is made by mkdtemp
    directory = Path(tempfile.mkdtemp(prefix="crash-", dir=memory if os.access(memory, os.W_OK) else None))
    yield directory / "runs"
    shutil.rmtree(directory)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say how much of the matrix is wanted; known where the tests of this folder are asked for by its name."""
    parser.addoption("--crash-every", type=int, help="kill a worker at every n-th point only")
