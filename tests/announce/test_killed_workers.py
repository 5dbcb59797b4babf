"""A worker may be killed at every step from the log entry to the record of its delivery: no switch is lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.announce.killed_worker import KILLED, SWITCHES
from tests.support.announcing import SECRET
from tests.support.processes import run, surroundings
from tests.support.receivers import receiving

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("every", "first", "least"), [pytest.param(1, 0, 20, marks=pytest.mark.exhaustive), (7, 1, 3)], ids=["all", "some"]
)
def test_no_switch_is_lost_and_all_arrive_in_order_wherever_a_worker_is_killed(
    tmp_path: Path, every: int, first: int, least: int
) -> None:
    with receiving() as receiver:
        command = [sys.executable, "-m", "tests.announce.killed_worker", str(tmp_path), receiver.url]
        environment = surroundings(tmp_path, PYTHONPATH=str(ROOT), WEBHOOK_SECRET=SECRET)
        out = run([*command, str(every), str(first)], cwd=tmp_path, env=environment)
        runs = [json.loads(line) for line in out.splitlines()]
        assert len(runs) >= least
        for one in runs:
            assert one["codes"] == [KILLED, 0], one
            arrived = [taken for taken in receiver.taken if taken.message["data"]["channel"] == one["channel"]]
            sequences = [taken.message["data"]["sequence"] for taken in arrived]
            assert sequences == sorted(sequences), one
            ids = {taken.id: taken.message["data"]["sequence"] for taken in arrived}
            # What the killed process committed is announced; what it never committed cannot be.
            assert sorted(ids.values()) == list(range(1, len(ids) + 1)), one
            committed = len(list((tmp_path / "bucket" / "two_tower" / one["channel"] / "history").iterdir()))
            assert len(ids) == committed <= len(SWITCHES), one
