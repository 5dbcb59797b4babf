"""Requests that wait for each other, on a project with so much latency that those that do not are sure to overlap."""

from __future__ import annotations

import math
from pathlib import Path

from supabase_bridge import Resolver
from supabase_bridge.storage.base import FILES_AT_ONCE
from tests.support.consumers import MODEL, Bucket
from tests.support.round_trips import serial
from tests.support.simulators.faults import Delay, Fault
from tests.support.simulators.storage import StorageSimulator

LATENCY = Fault(action=Delay(0.5))


def test_a_pull_takes_one_round_trip_for_the_manifest_and_one_for_all_files_that_go_at_once(
    simulator: StorageSimulator, tmp_path: Path
) -> None:
    Bucket.of_simulator(simulator).promote()
    with Resolver(url=simulator.url, key=simulator.service_key, cache_dir=tmp_path) as resolver:
        simulator.inject(LATENCY)
        simulator.reset_calls()
        release = resolver.resolve(MODEL)
        assert len(serial(simulator.calls())) == 1
        resolver.pull(release)
    assert len(serial(simulator.calls())) <= 1 + math.ceil(len(release.files) / FILES_AT_ONCE)
