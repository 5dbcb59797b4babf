"""What holds for every test: no real home, no Supabase settings from outside, and in CI nothing skipped."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("long", max_examples=20_000)

_SKIPPED: list[str] = []
_FIGURES: list[str] = []


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
