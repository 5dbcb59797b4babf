"""Storage that fails and workers that are killed lose and double no promotion; the short form of `tests.crash.soak`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.soak import Plan, soak
from tests.support.databases import DatabaseServer
from tests.support.simulators.storage import StorageSimulator


@pytest.mark.exhaustive
def test_no_promotion_is_lost_or_doubled_while_storage_fails_and_workers_are_killed(
    tmp_path: Path, postgresql: DatabaseServer, simulator: StorageSimulator, tell: Callable[[str], None]
) -> None:
    plan = Plan(
        servers=2, workers=2, models=3, versions=2, promotions=30, clients=3, pause=0.5, kill_every=3.0, kills=4
    )
    figures = soak(plan, tmp_path, postgresql.create(), simulator)
    assert figures.promotions == plan.promotions
    assert figures.switches > plan.models
    assert figures.killed > 0
    tell(str(figures))
