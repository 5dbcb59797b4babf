"""Fixtures of the crash tests: a registry to copy for each run."""

from __future__ import annotations

import pytest

from tests.databases import postgresql
from tests.registry_fixtures import directory_settings, empty_database, make_scene, simulator

__all__ = ["directory_settings", "empty_database", "make_scene", "postgresql", "simulator"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say how much of the matrix is wanted; known where the tests of this folder are asked for by its name."""
    parser.addoption("--crash-every", type=int, default=2, help="kill a worker at every n-th point only (default: 2)")
