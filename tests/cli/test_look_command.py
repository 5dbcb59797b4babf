"""`supabase-bridge look` refuses what it cannot show before it starts a server, and names a missing extra."""

from __future__ import annotations

import importlib.abc
import os
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from supabase_bridge.cli import main
from supabase_bridge.releases.manual import activate_manually
from supabase_bridge.storage.directory import DirectoryStore
from tests.support.small_releases import LATEST, lay_out, run_id

Look = Callable[..., Result]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Run `look two_tower` in a home with one release in `latest`; the program that would run is printed."""
    store = DirectoryStore(tmp_path / "supabase" / "models")
    store.ensure_bucket()
    lay_out(store, 1)
    activate_manually(store, LATEST, run_id(1), now=datetime.now(timezone.utc))
    monkeypatch.setattr(os, "execv", lambda program, words: click.echo(" ".join([program, *words[1:]])))
    return lambda *words: CliRunner().invoke(main, ["look", "two_tower", *words, "--home", str(tmp_path)])


def test_the_server_listens_on_this_machine_only_and_reports_nothing(look: Look) -> None:
    done = look("latest", str(run_id(1)), "--no-browser", "--port", "8600")
    assert done.exit_code == 0
    words = done.stdout.split()
    assert words[:4] == [sys.executable, "-m", "streamlit", "run"]
    assert words[-4:] == ["--", "two_tower", "latest", str(run_id(1))]
    expected = {"--server.address=127.0.0.1", "--browser.gatherUsageStats=false", "--server.port=8600"}
    assert expected | {"--server.headless=true"} <= set(words)


def test_a_release_that_does_not_exist_ends_the_command(look: Look) -> None:
    for words, code, problem in (
        (("latest",), 1, "two_tower has no channel 'staging'"),
        (("latest", "7"), 2, "'7' is neither a channel, such as latest, nor a run_id"),
        (("latest", "20200101T000000Z"), 1, "20200101T000000Z"),
    ):
        done = look(*words)
        assert (done.exit_code, problem in done.output, done.stdout) == (code, True, "")


def test_a_missing_extra_is_named(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "streamlit":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] == "streamlit"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    done = look()
    assert (done.exit_code, "run `pip install 'mlflow-supabase-bridge[look]'`" in done.output) == (1, True)
