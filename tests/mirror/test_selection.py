"""Which of a version's files become the release's files, over MLflow's own local artifact repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from supabase_bridge.mirror.errors import ModelFileError, SourceRefusedError
from supabase_bridge.mirror.metadata import RunInfo
from supabase_bridge.mirror.selection import Selection
from supabase_bridge.mirror.source_files import SourceFile, SourceFolder
from supabase_bridge.mirror.sources import VersionSource

FACTS = RunInfo(ended_at=datetime(2025, 10, 31, 9, 38, 31, tzinfo=timezone.utc))
FLAVORS: Mapping[str, Any] = {"onnx": {"data": "model.onnx", "onnx_version": "1.16.0"}}


def folder(path: Path, *names: str) -> SourceFolder:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"{path.name}/{name}")
    path.mkdir(exist_ok=True)
    return SourceFolder(str(path), get_artifact_repository(str(path)), path)


def selection(
    home: Path, *, model: list[str], run: list[str] | None = None, tags: Mapping[str, str] | None = None
) -> Selection:
    """A selection from a model directory and a run with these files; without a run where `run` is None."""
    source = VersionSource(
        model_folder=folder(home / "model", *model),
        run_folder=None if run is None else folder(home / "run", *run),
        facts=replace(FACTS, tags=tags or {}),
        running=False,
    )
    return Selection(source, model="Two Tower", model_key="two_tower", version=7)


def text(file: SourceFile | None, home: Path) -> str | None:
    return None if file is None else file.folder.fetch(file.path, home).read_text()


def test_the_file_that_mlmodel_names_comes_first(tmp_path: Path) -> None:
    chosen = selection(tmp_path, model=["MLmodel", "model.onnx", "two_tower_latest.onnx", "other.onnx"], run=[])
    assert text(chosen.onnx(FLAVORS), tmp_path) == "model/model.onnx"


def test_the_specifications_name_comes_next(tmp_path: Path) -> None:
    chosen = selection(tmp_path, model=["a.onnx", "onnx/two_tower_latest.onnx"], run=["two_tower_latest.onnx"])
    assert text(chosen.onnx({}), tmp_path) == "model/onnx/two_tower_latest.onnx"


def test_the_only_file_of_its_kind_comes_next(tmp_path: Path) -> None:
    chosen = selection(tmp_path, model=["deep/down/a.onnx", "a.txt"], run=["two_tower_latest.onnx", "b.onnx"])
    assert text(chosen.onnx({}), tmp_path) == "model/deep/down/a.onnx"


def test_the_runs_artifacts_come_last_and_by_the_same_rules(tmp_path: Path) -> None:
    assert text(selection(tmp_path, model=["MLmodel"], run=["x/a.onnx"]).onnx({}), tmp_path) == "run/x/a.onnx"
    chosen = selection(tmp_path, model=["MLmodel"], run=["x/a.onnx", "two_tower_latest.onnx"])
    assert text(chosen.onnx({}), tmp_path) == "run/two_tower_latest.onnx"


@pytest.mark.parametrize(
    "flavors",
    [
        {},
        {"sklearn": {"data": "a.pkl"}},
        {"onnx": {"data": "absent.onnx"}},
        {"onnx": {"data": "../run/b.onnx"}},
        {"onnx": {"data": 7}},
        {"onnx": {}},
        {"onnx": None},
        {"onnx": ["data"]},
    ],
)
def test_a_flavor_that_names_no_file_of_the_model_is_passed_over(flavors: dict[str, Any], tmp_path: Path) -> None:
    chosen = selection(tmp_path, model=["a.onnx"], run=["b.onnx"])
    assert text(chosen.onnx(flavors), tmp_path) == "model/a.onnx"


def test_several_files_and_no_rule_are_refused_with_the_candidates(tmp_path: Path) -> None:
    chosen = selection(tmp_path, model=["b.onnx", "x/a.onnx"], run=["c.onnx"])
    with pytest.raises(ModelFileError) as refused:
        chosen.onnx({})
    assert refused.value.paths == ("b.onnx", "x/a.onnx")
    assert "b.onnx, x/a.onnx" in str(refused.value)
    assert "<model>_latest" in str(refused.value)


def test_two_files_of_the_specifications_name_are_refused_too(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        selection(tmp_path, model=["two_tower_latest.onnx", "x/two_tower_latest.onnx"]).onnx({})


def test_no_onnx_file_is_an_error_that_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as refused:
        selection(tmp_path, model=["MLmodel"], run=["model.pkl"]).onnx(FLAVORS)
    assert refused.value.paths == (str(tmp_path / "model"), str(tmp_path / "run"))
    assert "mlflow.onnx.log_model" in str(refused.value)
    with pytest.raises(ModelFileError) as without_run:
        selection(tmp_path, model=["MLmodel"]).onnx({})
    assert without_run.value.paths == (str(tmp_path / "model"),)


def test_an_empty_source_has_nothing_at_all(tmp_path: Path) -> None:
    empty = selection(tmp_path, model=[], run=[])
    assert (empty.mlmodel(), empty.state_dict(), empty.document("metrics.json")) == (None, None, None)


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "x/two_tower_latest.pt"])
def test_a_state_dict_is_found_by_either_ending(name: str, tmp_path: Path) -> None:
    assert text(selection(tmp_path, model=["a.onnx"], run=[name]).state_dict(), tmp_path) == f"run/{name}"


def test_several_state_dicts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as refused:
        selection(tmp_path, model=[], run=["a.pt", "b.pt"]).state_dict()
    assert refused.value.paths == ("a.pt", "b.pt")


def test_mlmodel_is_the_one_at_the_top_of_the_models_directory(tmp_path: Path) -> None:
    assert selection(tmp_path, model=["x/MLmodel"], run=["MLmodel"]).mlmodel() is None
    assert text(selection(tmp_path, model=["MLmodel", "x/MLmodel"]).mlmodel(), tmp_path) == "model/MLmodel"


def test_a_document_of_the_models_directory_beats_the_runs(tmp_path: Path) -> None:
    chosen = selection(tmp_path, model=["extra/metrics.json"], run=["metrics.json"])
    assert text(chosen.document("metrics.json"), tmp_path) == "model/extra/metrics.json"


def test_a_document_nearer_to_the_top_comes_first(tmp_path: Path) -> None:
    chosen = selection(tmp_path, model=[], run=["a/b/metrics.json", "c/metrics.json", "d/e/metrics.json"])
    assert text(chosen.document("metrics.json"), tmp_path) == "run/c/metrics.json"


def test_two_documents_at_one_depth_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as refused:
        selection(tmp_path, model=[], run=["a/metrics.json", "b/metrics.json"]).document("metrics.json")
    assert refused.value.paths == ("a/metrics.json", "b/metrics.json")
    assert "put it into a folder named eval or validation" in str(refused.value)


@pytest.mark.parametrize("folder", ["eval", "validation", "Evaluation", "val"])
def test_of_two_documents_at_one_depth_the_evaluations_is_chosen(tmp_path: Path, folder: str) -> None:
    chosen = selection(tmp_path, model=[], run=["train/metrics.json", f"{folder}/metrics.json"])
    assert text(chosen.document("metrics.json"), tmp_path) == f"run/{folder}/metrics.json"


def test_a_file_beside_another_one_is_looked_for_in_the_same_folder_only(tmp_path: Path) -> None:
    chosen = selection(tmp_path, model=["onnx/a.onnx", "onnx/w/a.bin", "a.bin"], run=["onnx/r.bin"])
    onnx = chosen.onnx({})
    assert text(chosen.beside(onnx, "w/a.bin"), tmp_path) == "model/onnx/w/a.bin"
    for elsewhere in ("a.bin", "../a.bin", "r.bin", "/etc/passwd", str(tmp_path / "model" / "a.bin"), ""):
        assert chosen.beside(onnx, elsewhere) is None


def test_sizes_come_with_the_listing(tmp_path: Path) -> None:
    assert selection(tmp_path, model=["a.onnx"]).onnx({}).size_bytes == len("model/a.onnx")


def test_a_link_that_leaves_the_folder_is_listed_but_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.onnx").write_text("secret")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.onnx").symlink_to(tmp_path / "secret.onnx")
    found = selection(tmp_path, model=[]).onnx({})
    with pytest.raises(SourceRefusedError):
        found.folder.fetch(found.path, tmp_path)


def test_a_folder_that_is_not_there_has_no_files(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert SourceFolder(str(absent), get_artifact_repository(str(absent)), absent).files() == []
