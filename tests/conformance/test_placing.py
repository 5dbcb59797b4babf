"""Placing a release's file where an object comes and goes under its key: what is said to be placed is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from supabase_bridge.errors import StoreUnavailableError
from supabase_bridge.model_file import ModelFile
from supabase_bridge.object_store.digest import file_record
from supabase_bridge.placing import place_file
from tests.conformance.conftest import BUCKET, Bench, info_answer
from tests.simulators.faults import Fault
from tests.simulators.storage import StorageSimulator

KEY = "m/r/m.onnx"
DATA = bytes(100_000)
ON_SUPABASE = pytest.mark.parametrize("bench", ["supabase"], indirect=True)


@pytest.fixture
def file(tmp_path: Path) -> ModelFile:
    path = tmp_path / "m.onnx"
    path.write_bytes(DATA)
    return ModelFile(record=file_record(path), path=path)


def come_and_go(simulator: StorageSimulator, times: int) -> None:
    """Let something be there whenever a file is to be created, and be gone when it is looked at."""
    for time in range(times):
        there = info_answer(size=len(DATA))
        simulator.inject(Fault(action=there, path_contains=f"/info/{BUCKET}/{KEY}", skip=2 * time, times=1))


@ON_SUPABASE
@pytest.mark.parametrize("times", [1, 2])
def test_a_file_is_placed_although_what_was_under_its_key_vanished(
    bench: Bench, simulator: StorageSimulator, file: ModelFile, times: int
) -> None:
    come_and_go(simulator, times)
    assert place_file(bench.store, KEY, file, None) == file.record
    assert simulator.object_bytes(BUCKET, KEY) == DATA


@ON_SUPABASE
def test_what_comes_and_goes_again_and_again_is_given_up(
    bench: Bench, simulator: StorageSimulator, file: ModelFile
) -> None:
    come_and_go(simulator, 50)
    with pytest.raises(StoreUnavailableError, match="again and again"):
        place_file(bench.store, KEY, file, None)
    assert simulator.object_keys(BUCKET) == []
