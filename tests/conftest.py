"""Rules for every test: no real home, no settings from outside, no skipped test in CI; and the markers."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, is_hypothesis_test, settings
from sqlalchemy.engine import Engine

FEW = "few"
"""Hypothesis' profile of a run without the option `--hypothesis-profile`."""
# A busy machine draws examples slowly; that says nothing about the code under test.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(FEW, _PATIENT, max_examples=10, derandomize=True, database=None)
settings.register_profile("exhaustive", _PATIENT, max_examples=50)
settings.register_profile("long", _PATIENT, max_examples=20_000)
settings.load_profile(FEW)

# Without bytecode files, each program that a test starts would compile all that it imports: three seconds for MLflow.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# NumPy reads it when it is imported. On a busy machine its threads cost twenty times the work on small matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_MLFLOW_FIXTURES = {"empty_database", "make_retained", "make_worker_scene", "registry"}
_PLUGIN = Path(__file__).parent / "plugin"
_LONGEST = {"crash", "e2e", "worker", "cli", "plugin"}
"""Directories that come first: a module that runs for a minute must not be the last one to start."""

pytest_plugins = [
    # One that imports another one comes after it.
    "tests.support.databases",
    "tests.support.announcing",
    "tests.support.embedding_sets",
    "tests.support.scene",
    "tests.support.stores",
    "tests.support.gated",
    "tests.support.released",
    "tests.support.retained",
    "tests.support.registries",
    "tests.support.remote_registry",
    "tests.support.two_tower",
    "tests.support.worker_scenes",
    "tests.support.usage",
]

_SKIPPED: list[str] = []
_FIGURES: list[str] = []


@sa.event.listens_for(Engine, "connect")
def _without_flushing(connection: object, _: object) -> None:
    """Do not flush SQLite files of tests to the disk: no test cuts the power, and each flush takes milliseconds."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what uses MLflow, what uses MariaDB (slow to start), and, in a run of more examples, what has examples."""
    many_examples = config.getoption("--hypothesis-profile") not in (None, FEW)
    items.sort(key=lambda item: item.path.parent.name not in _LONGEST)
    for item in items:
        if _PLUGIN in item.path.parents or _MLFLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.mlflow)
        if "mariadb" in item.name.partition("[")[2]:
            item.add_marker(pytest.mark.exhaustive)
        if many_examples and is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.exhaustive)


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SUPABASE_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    home: Path = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


@pytest.fixture
def bridge_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the bridge logs. `caplog` alone loses it where MLflow 2 migrates a database: that sets the root up anew."""
    logger = logging.getLogger("supabase_bridge")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says a figure at the end of the run, also of tests that run in processes of their own (pytest-xdist)."""
    return partial(record_property, "figure")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        _FIGURES.extend(str(value) for name, value in report.user_properties if name == "figure")
    if report.skipped:
        _SKIPPED.append(report.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was covered."""
    for figure in _FIGURES:
        terminalreporter.write_line(figure)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A test that is skipped proves nothing: where CI is set, the run has failed."""
    if os.environ.get("CI") and _SKIPPED:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\n{len(_SKIPPED)} tests were skipped, which CI does not accept: {', '.join(_SKIPPED)}")  # noqa: T201
