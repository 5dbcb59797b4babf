"""`activate` and `rollback --without-mlflow` run the steps first, or write into the log that they did not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from supabase_bridge.cli import main
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.manual import activate_manually
from supabase_bridge.storage.directory import DirectoryStore
from tests.support.databases import copy_sqlite
from tests.support.served import until
from tests.support.small_releases import LATEST, lay_out, run_id

RunCommand = Callable[..., Result]


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    """An embedded store with three releases, the first of which is current."""
    made = DirectoryStore(tmp_path / "supabase" / "models")
    made.ensure_bucket()
    for number in (1, 2, 3):
        lay_out(made, number)
    activate_manually(made, LATEST, run_id(1), now=datetime.now(timezone.utc))
    return made


@pytest.fixture
def run(tmp_path: Path, store: DirectoryStore, empty_database: Path) -> RunCommand:
    """Run a command in a home whose model has the step `look`, the script `look.sh`."""
    copy_sqlite(empty_database, tmp_path / "mlflow.db")
    script = f"['/bin/sh', '{tmp_path / 'look.sh'}']"
    (tmp_path / "supabase-bridge.toml").write_text(f"[steps.two_tower.look]\nrun = {script}\n")
    assert store.name
    return lambda *words: CliRunner().invoke(main, [*words, "--home", str(tmp_path)])


def test_an_activation_runs_its_steps_once_and_moves_no_pointer_where_they_fail(
    run: RunCommand, store: DirectoryStore, tmp_path: Path
) -> None:
    script, log = tmp_path / "look.sh", tmp_path / "log"
    script.write_text("echo it looks bad; exit 1\n")
    refused = run("activate", "two_tower", str(run_id(2)))
    assert refused.exit_code == 1
    assert f"step look of two_tower/{run_id(2)} failed: it ended with 1: it looks bad" in refused.output
    assert current(store) == str(run_id(1))
    script.write_text(f"echo $SUPABASE_BRIDGE_RUN_ID $SUPABASE_BRIDGE_PREVIOUS_RUN_ID >> {log}\n")
    before = datetime.now(timezone.utc)
    assert run("activate", "two_tower", str(run_id(2))).exit_code == 0
    assert run("rollback", "two_tower", "--without-mlflow").exit_code == 0
    assert run("activate", "two_tower", str(run_id(2))).exit_code == 0
    # The rollback's release was current before there were steps.
    assert log.read_text().splitlines() == [f"{run_id(2)} {run_id(1)}", f"{run_id(1)} {run_id(2)}"]
    head = Channel(store, LATEST).read_head().head
    assert head is not None
    assert head.current.published_at.timestamp() >= before.timestamp() - 0.001


def test_skipped_steps_are_named_in_the_log(run: RunCommand, store: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "look.sh").write_text("exit 1\n")
    assert run("activate", "two_tower", str(run_id(2)), "--skip-steps").exit_code == 0
    head = Channel(store, LATEST).read_head().head
    assert head is not None
    assert head.cause is not None
    assert (head.cause.by_hand, head.cause.steps_skipped) == (True, ["look"])
    assert run("rollback", "two_tower", "--without-mlflow", "--skip-steps").exit_code == 0
    assert current(store) == str(run_id(1))
    assert run("rollback", "two_tower", "--skip-steps").exit_code == 2


def test_a_channel_that_moves_meanwhile_ends_the_step_and_stays(
    run: RunCommand, store: DirectoryStore, tmp_path: Path
) -> None:
    (tmp_path / "look.sh").write_text(f"touch {tmp_path / 'begun'}; sleep 600\n")
    results: list[Result] = []
    command = threading.Thread(target=lambda: results.append(run("activate", "two_tower", str(run_id(2)))))
    command.start()
    until(lambda: (tmp_path / "begun").exists(), "the step", limit_seconds=60)
    activate_manually(store, LATEST, run_id(3), now=datetime.now(timezone.utc))
    command.join(60)
    assert results[0].exit_code == 1
    assert f"was stopped: latest moved to {run_id(3)}" in results[0].output
    assert current(store) == str(run_id(3))


@pytest.mark.exhaustive
def test_every_step_runs_where_the_database_does_not_answer(
    run: RunCommand, store: DirectoryStore, tmp_path: Path
) -> None:
    (tmp_path / "look.sh").write_text(f"echo x >> {tmp_path / 'log'}\n")
    (tmp_path / "mlflow.db").unlink()
    for number in (2, 1, 2):
        assert run("activate", "two_tower", str(run_id(number))).exit_code == 0
    assert (tmp_path / "log").read_text() == "x\n" * 3
    assert current(store) == str(run_id(2))


def current(store: DirectoryStore) -> str:
    head = Channel(store, LATEST).read_head().head
    assert head is not None
    return head.current.run_id
