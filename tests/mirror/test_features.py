"""The files of features: which of a version's files they are, and how a release carries them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from supabase_bridge.core.layout import FEATURES_LIMIT, FEATURES_LIMIT_BYTES, features_problem
from supabase_bridge.mirror.assemble import AssembledRelease
from supabase_bridge.mirror.errors import ModelFileError
from supabase_bridge.mirror.source_files import ModelFile
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.storage.hashing import hash_file
from tests.mirror.test_mirror_model_files import KEYS, draft, store, upload  # noqa: F401 - fixtures
from tests.mirror.test_selection import selection
from tests.support.simulators.memory_store import MemoryStore


def test_the_runs_folder_of_features_is_taken_whole(tmp_path: Path) -> None:
    run = ["features/tags.json", "features/deep/schema.json", "tags.json", "x/features/other.json"]
    chosen = selection(tmp_path, model=["MLmodel", "model.onnx"], run=run).features()
    assert [file.path for file in chosen] == ["features/deep/schema.json", "features/tags.json"]


def test_the_models_own_folder_of_features_comes_first(tmp_path: Path) -> None:
    chosen = selection(tmp_path, model=["features/a.json", "model.onnx"], run=["features/b.json"]).features()
    assert [file.path for file in chosen] == ["features/a.json"]


def test_no_other_rule_chooses_a_file_of_the_features(tmp_path: Path) -> None:
    run = ["features/encoder.onnx", "features/metrics.json", "features/a.pt", "deep/down/below/b.onnx"]
    chosen = selection(tmp_path, model=["README.md"], run=run)
    assert chosen.onnx({}).path == "deep/down/below/b.onnx"
    assert chosen.state_dict() is None
    assert chosen.document("metrics.json") is None


def test_a_model_that_was_logged_as_features_is_a_model(tmp_path: Path) -> None:
    chosen = selection(tmp_path, model=["MLmodel"], run=["features/MLmodel", "features/model.onnx"])
    assert chosen.features() == []
    assert chosen.onnx({}).path == "features/model.onnx"


def test_features_with_a_name_that_no_object_can_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"unsuitable features: object key 'features/タグ\.json'"):
        selection(tmp_path, model=["model.onnx"], run=["features/タグ.json"]).features()


def test_too_many_or_too_large_features_are_refused() -> None:
    many = {f"features/{number}": 1 for number in range(FEATURES_LIMIT)}
    assert features_problem({**many, "features/a": 0}) == f"{FEATURES_LIMIT + 1} files, more than {FEATURES_LIMIT}"
    assert features_problem(many) is None
    large = {"features/a": FEATURES_LIMIT_BYTES, "features/b": 1}
    assert features_problem(large) == f"{FEATURES_LIMIT_BYTES + 1} bytes, more than {FEATURES_LIMIT_BYTES}"


@pytest.mark.parametrize("name", ["encoder.pkl", "deep/ENCODER.PICKLE", "a.joblib", "a.pt", "a.py"])
def test_features_that_can_run_code_where_they_are_loaded_are_refused(name: str) -> None:
    said = features_problem({"features/tags.json": 1, f"features/{name}": 1})
    assert said == f"'features/{name}' can run code when it is loaded; write JSON, CSV, npz or Parquet"


def test_features_are_recorded_and_verified_like_the_model(
    store: MemoryStore,  # noqa: F811
    draft: AssembledRelease,  # noqa: F811
    tmp_path: Path,
) -> None:
    (path := tmp_path / "tags.json").write_text('{"drama": 0}')
    features = {"features/tags.json": ModelFile(record=hash_file(path), path=path)}
    upload(store, dataclasses.replace(draft, features=features))
    assert store.read(KEYS.file("features/tags.json"), limit_bytes=100) == b'{"drama": 0}'
    assert verify_release(store, KEYS).meta.files["features/tags.json"].size_bytes == 12
