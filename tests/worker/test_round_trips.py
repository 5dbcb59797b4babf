"""How many round trips to storage, one after the other, a promotion and a new release need."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supabase_bridge.worker.processor import Processor
from tests.support.round_trips import serial, until_complete, until_published
from tests.support.scene import Scene
from tests.support.simulators.storage import Call, Delay, Fault, StorageSimulator

pytestmark = pytest.mark.exhaustive

LIMIT = 5
LIMIT_AFTER_START = 6
RELEASE_LIMIT = 8
RELEASE_LIMIT_AFTER_START = 9
LATENCY = Fault(action=Delay(0.15))
"""Longer than a thread takes to start on a busy machine, so that reads at once are seen as such."""


@pytest.fixture
def promoted(supabase_scene: Scene, simulator: StorageSimulator) -> Scene:
    """Two mirrored versions, the first one promoted; each answer of the storage is late from now on."""
    first, _ = supabase_scene.train(), supabase_scene.train()
    supabase_scene.work()
    supabase_scene.promote(first)
    supabase_scene.work()
    simulator.inject(LATENCY)
    return supabase_scene


def calls_of_promotion(scene: Scene, simulator: StorageSimulator, version: int) -> list[Call]:
    scene.promote(version, archive=True)
    simulator.reset_calls()
    scene.work()
    calls = simulator.calls()
    assert scene.current() == version
    return calls


def shown(calls: list[Call]) -> str:
    return "\n".join(f"{call.method} {call.path} {call.status}" for call in calls)


def test_the_first_promotion_of_a_model_takes_at_most_five_serial_round_trips(
    supabase_scene: Scene, simulator: StorageSimulator
) -> None:
    version = supabase_scene.train()
    supabase_scene.work()
    simulator.inject(LATENCY)
    chain = until_published(calls_of_promotion(supabase_scene, simulator, version))
    assert len(chain) <= LIMIT, shown(chain)


def test_a_promotion_and_a_rollback_take_at_most_five_serial_round_trips(
    promoted: Scene, simulator: StorageSimulator
) -> None:
    for version in (2, 1):
        chain = until_published(calls_of_promotion(promoted, simulator, version))
        assert len(chain) <= LIMIT, shown(chain)


def test_a_promotion_to_a_channel_that_its_version_leaves_another_one_for_takes_at_most_five(
    promoted: Scene, simulator: StorageSimulator
) -> None:
    promoted.promote(2, "Staging")
    promoted.work()
    chain = until_published(calls_of_promotion(promoted, simulator, 2))
    assert len(chain) <= LIMIT, shown(chain)


def test_the_first_promotion_after_a_start_of_the_worker_takes_one_more(
    promoted: Scene, simulator: StorageSimulator
) -> None:
    promoted.runtime = replace(promoted.runtime, processor=restarted(promoted))
    chain = until_published(calls_of_promotion(promoted, simulator, 2))
    assert len(chain) <= LIMIT_AFTER_START, shown(chain)


def restarted(scene: Scene) -> Processor:
    """The processor of a worker that has read nothing yet."""
    return Processor(replace(scene.runtime.processor._services))


def test_a_promotion_sends_as_many_requests_after_many_others_as_at_first(
    promoted: Scene, simulator: StorageSimulator
) -> None:
    simulator.clear_faults()
    counts = [len(calls_of_promotion(promoted, simulator, 2 - number % 2)) for number in range(8)]
    assert set(counts) == {counts[0]}, counts


def calls_of_release(scene: Scene, simulator: StorageSimulator) -> list[Call]:
    """Train a version of small files, and let the worker make its release."""
    version = scene.train()
    simulator.reset_calls()
    scene.work()
    assert scene.tags(version)["status"] == "mirrored"
    return simulator.calls()


def test_a_new_release_of_small_files_takes_at_most_eight_serial_round_trips(
    supabase_scene: Scene, simulator: StorageSimulator
) -> None:
    first = supabase_scene.train()
    supabase_scene.work()
    simulator.inject(LATENCY)
    chain = until_complete(calls_of_release(supabase_scene, simulator))
    assert len(chain) <= RELEASE_LIMIT, shown(chain)
    simulator.clear_faults()
    supabase_scene.promote(first)
    supabase_scene.work()
    simulator.inject(LATENCY)
    calls = calls_of_release(supabase_scene, simulator)
    chain = until_complete(calls)
    assert len(chain) <= RELEASE_LIMIT, shown(chain)
    # Its claim is deleted while the folder is listed, and nothing that was compared is read again.
    assert len(serial(calls)) <= len(chain) + 1, shown(serial(calls))


def test_the_first_new_release_after_a_start_of_the_worker_takes_one_more(
    promoted: Scene, simulator: StorageSimulator
) -> None:
    promoted.runtime = replace(promoted.runtime, processor=restarted(promoted))
    chain = until_complete(calls_of_release(promoted, simulator))
    assert len(chain) <= RELEASE_LIMIT_AFTER_START, shown(chain)
