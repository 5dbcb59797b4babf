"""Which of a version's files become the release's files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from supabase_bridge.mirror.errors import ModelFileError
from supabase_bridge.mirror.metadata import RunInfo
from supabase_bridge.mirror.selection import Selection
from supabase_bridge.mirror.source_files import SourceFolder
from supabase_bridge.mirror.sources import VersionSource


def selection(directory: Path, model: Sequence[str], run: Sequence[str] = ()) -> Selection:
    """A version with these files in its model directory and among its run's artifacts."""
    folders = []
    for name, files in (("model", model), ("run", run)):
        root = directory / name
        root.mkdir()
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(b"")
        folders.append(SourceFolder(str(root), LocalArtifactRepository(str(root)), root))
    facts = RunInfo(ended_at=datetime(2025, 10, 31, tzinfo=timezone.utc))
    source = VersionSource(model_folder=folders[0], run_folder=folders[1], facts=facts, running=False)
    return Selection(source, model="Two Tower", model_key="two_tower", version=3)


@pytest.mark.parametrize(
    ("model", "run", "chosen"),
    [
        (["model.onnx"], [], None),
        ([], ["a.txt", "checkpoints/state.pt"], "checkpoints/state.pt"),
        (["data/model.pth", "MLmodel"], [], "data/model.pth"),
        (["data/model.pt2", "MLmodel"], [], "data/model.pt2"),
        (["data/model.pt2", "model.pth"], [], "model.pth"),
        (["data/model.pt2", "data/model.pth", "state.pt"], [], "state.pt"),
        ([], ["two_tower_latest.pt", "other.pt"], "two_tower_latest.pt"),
        ([], ["deep/two_tower_latest.pth", "epoch1.pt", "epoch2.pt"], "deep/two_tower_latest.pth"),
        ([], ["two_tower_latest.pth", "two_tower_latest.pt"], "two_tower_latest.pt"),
        (["model.pth"], ["two_tower_latest.pt"], "model.pth"),
    ],
)
def test_the_state_dict_is_found_by_rule(tmp_path: Path, model: list[str], run: list[str], chosen: str | None) -> None:
    found = selection(tmp_path, model, run).state_dict()
    assert (None if found is None else found.path) == chosen


@pytest.mark.parametrize(
    ("model", "run", "candidates"),
    [
        ([], ["a.pt", "b.pt"], ("a.pt", "b.pt")),
        ([], ["a.pt", "b.pt", "c.pth"], ("a.pt", "b.pt")),
        ([], ["x/two_tower_latest.pt", "y/two_tower_latest.pt"], ("x/two_tower_latest.pt", "y/two_tower_latest.pt")),
        (["a.pt2", "b.pt2"], ["two_tower_latest.pt"], ("a.pt2", "b.pt2")),
    ],
)
def test_two_state_dicts_without_a_rule_are_listed(
    tmp_path: Path, model: list[str], run: list[str], candidates: tuple[str, ...]
) -> None:
    with pytest.raises(ModelFileError) as refused:
        selection(tmp_path, model, run).state_dict()
    assert refused.value.paths == candidates
    assert all(path in str(refused.value) for path in candidates)


def test_the_onnx_file_is_what_mlmodel_names_then_the_newest_then_the_only_one(tmp_path: Path) -> None:
    flavors = {"onnx": {"data": "second.onnx"}}
    for number, (model, run, chosen) in enumerate(
        [
            (["first.onnx", "second.onnx"], [], "second.onnx"),
            (["first.onnx", "two_tower_latest.onnx"], [], "two_tower_latest.onnx"),
            ([], ["deep/two_tower_latest.onnx", "other.onnx"], "deep/two_tower_latest.onnx"),
            (["first.onnx"], ["two_tower_latest.onnx"], "first.onnx"),
        ]
    ):
        (tmp_path / str(number)).mkdir()
        assert selection(tmp_path / str(number), model, run).onnx(flavors).path == chosen
    (tmp_path / "none").mkdir()
    with pytest.raises(ModelFileError):
        selection(tmp_path / "none", ["model.pt"], []).onnx({})
    (tmp_path / "two").mkdir()
    with pytest.raises(ModelFileError, match=r"a\.onnx, b\.onnx"):
        selection(tmp_path / "two", ["a.onnx", "b.onnx"], []).onnx({})
