"""What follows a remote registry may be killed before or after any commit: the next one loses and doubles nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.matrix import Outcome
from tests.support.remote_registry import Remote, stock_server
from tests.support.scene import files_below

_DRIVER = "from tests.crash.following import main; main()"
_LIMIT_SECONDS = 600


def lasting(home: Path) -> dict[str, bytes]:
    """What is in a home's store, temporary objects aside."""
    return {key: data for key, data in files_below(home / "supabase" / "models").items() if not key.startswith("_tmp/")}


@pytest.mark.exhaustive
def test_killed_before_or_after_any_commit_of_a_look_nothing_is_lost_or_doubled(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.mkdir()
    with stock_server(tmp_path) as url:
        remote = Remote(url=url, home=tmp_path / "home", model="two_tower")
        remote.home.mkdir()
        (remote.home / "supabase-bridge.toml").write_text("lease = 0.3\n")
        first, second = remote.train(tmp_path, stage="Production"), remote.train(tmp_path)
        remote.follow()
        assert remote.points_to(first)
        remote.promote(second, archive=True)
        third = remote.train(tmp_path)
        command = [sys.executable, "-c", _DRIVER, url, str(tmp_path / "mlflow.db"), str(remote.home), str(runs)]
        driver = subprocess.run(
            command, cwd=Path(__file__).parents[2], env=dict(os.environ), capture_output=True, timeout=_LIMIT_SECONDS
        )
    assert driver.returncode == 0, driver.stderr.decode()
    undisturbed, *ended = [json.loads(line) for line in driver.stdout.splitlines()]
    wanted = Outcome(objects=lasting(runs / "undisturbed"), rows=undisturbed["rows"])
    manifest = json.loads(wanted.objects["two_tower/latest/manifest.json"])
    assert (undisturbed["codes"], manifest["sequence"], manifest["current"]["model_version"]) == ([0], 2, second)
    assert [third, "supabase.status", "mirrored"] in wanted.rows["tags of versions"]
    # What a look saw, and each of its three changes carried out.
    effects = (runs / "undisturbed" / "effects").read_text()
    assert (effects.count("commit INSERT INTO supabase_outbox"), len(ended) >= 2 * 7) == (1, True)
    assert {said["name"]: said["codes"] for said in ended if said["codes"] != [-signal.SIGKILL, 0]} == {}
    different = {
        said["name"]: differences
        for said in ended
        if (differences := wanted.differences(Outcome(objects=lasting(runs / said["name"]), rows=said["rows"])))
    }
    assert different == {}
    with capsys.disabled():
        sys.stdout.write(f"\n{len(ended)} points covered while a registry is followed\n")
