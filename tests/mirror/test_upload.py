"""Upload the files of a release straight to their keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from supabase_bridge.mirror.source_files import ModelFile
from supabase_bridge.mirror.upload import has_content, put_all
from supabase_bridge.storage.base import PutOptions
from supabase_bridge.storage.hashing import hash_file
from tests.support.simulators.storage import StorageSimulator
from tests.support.stores import BUCKET, Bench

KEY = "m/r/m.onnx"
DATA = bytes(100_000)


@pytest.fixture
def file(tmp_path: Path) -> ModelFile:
    path = tmp_path / "m.onnx"
    path.write_bytes(DATA)
    return ModelFile(record=hash_file(path), path=path)


@pytest.mark.parametrize("bench", ["supabase"], indirect=True)
def test_files_go_straight_to_their_keys_with_one_post_each(
    bench: Bench, simulator: StorageSimulator, file: ModelFile
) -> None:
    simulator.reset_calls()
    put_all(bench.store, "m/r/", {"m.onnx": file, "summary.md": b"text"})
    assert simulator.object_bytes(BUCKET, KEY) == DATA
    assert simulator.object_keys(BUCKET) == [KEY, "m/r/summary.md"]
    changes = sorted((call.method, call.path) for call in simulator.calls() if "/info/" not in call.path)
    assert changes == [("POST", f"/storage/v1/object/{BUCKET}/{key}") for key in (KEY, "m/r/summary.md")]


@pytest.mark.parametrize("bench", ["directory", "supabase", "memory"], indirect=True)
def test_a_listed_object_is_compared_by_its_bytes_whatever_its_metadata_says(bench: Bench, file: ModelFile) -> None:
    other = DATA[:-1] + b"x"
    bench.store.overwrite(KEY, DATA, PutOptions())
    bench.store.overwrite("m/r/other", other, PutOptions(metadata={"sha256": file.record.sha256}))
    bench.store.overwrite("m/r/short", DATA[:-1], PutOptions())
    found = {info.key: has_content(bench.store, info, file) for info in bench.store.list("m/r/")}
    assert found == {KEY: True, "m/r/other": False, "m/r/short": False}
