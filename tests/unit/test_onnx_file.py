"""A version's ONNX model as one checked file, and what is refused on the way."""

from __future__ import annotations

import os
import tracemalloc
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import onnx
import pytest
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from onnx import TensorProto, helper, numpy_helper

from supabase_bridge.completion import TrainingFacts
from supabase_bridge.draft import draft_release
from supabase_bridge.errors import InvalidDocumentError, InvalidModelFileError, LocalFileError, SourceNotAllowedError
from supabase_bridge.onnx_file import check, join, read_graph
from supabase_bridge.selection import Selection
from supabase_bridge.source import VersionSource
from supabase_bridge.source_folder import SourceFolder
from tests.full_disk import no_file_larger_than

WEIGHTS = np.arange(1_024, dtype=np.float32)


def constant(name: str) -> onnx.NodeProto:
    """A node whose weights are in the node itself."""
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(WEIGHTS, f"{name}_value"))


def model(*, functions: bool = False) -> onnx.ModelProto:
    """x + weights; with `functions`, the weights are a constant of a function that the graph calls."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1_024]) for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    inner = helper.make_function(
        "local", "Shift", ["a"], ["b"], [constant("w"), helper.make_node("Add", ["a", "w"], ["b"])], opsets[:1]
    )
    node = helper.make_node("Add", ["x", "w"], ["y"])
    if functions:
        node = helper.make_node("Shift", ["x"], ["y"], domain="local")
    graph = helper.make_graph([node], "shift", ends[:1], ends[1:], [numpy_helper.from_array(WEIGHTS, "w")])
    if functions:
        del graph.initializer[:]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[inner] if functions else [])


def save_with_weights_beside(proto: onnx.ModelProto, path: Path, location: str = "weights.bin") -> None:
    """Save the model, its weights in a file of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(
        proto, path, save_as_external_data=True, location=location, size_threshold=0, convert_attribute=True
    )


def draft(home: Path) -> Path:
    """The ONNX file of the release that would be made of the folder "model"."""
    source = VersionSource(
        model_folder=SourceFolder(str(home / "model"), get_artifact_repository(str(home / "model")), home / "model"),
        run_folder=None,
        facts=TrainingFacts(ended_at=datetime(2025, 10, 31, tzinfo=timezone.utc)),
        running=False,
    )
    (home / "draft").mkdir(exist_ok=True)
    return draft_release(Selection(source, model="m", model_key="m", version=1), home / "draft").onnx.local


def test_a_whole_model_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    onnx.save_model(model(), path)
    assert read_graph(path).external_files == ()
    assert draft(tmp_path).read_bytes() == path.read_bytes()


def test_what_a_training_writes_later_changes_nothing_that_was_checked(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    onnx.save_model(model(), path)
    before = path.read_bytes()
    drafted = draft(tmp_path)
    with path.open("r+b") as file:
        file.write(b"something else")
    assert drafted.read_bytes() == before


@pytest.mark.parametrize("location", ["weights.bin", "m.onnx.data"])
@pytest.mark.parametrize("functions", [False, True])
def test_weights_beside_the_model_are_joined_in(tmp_path: Path, functions: bool, location: str) -> None:
    path = tmp_path / "model" / "m.onnx"
    save_with_weights_beside(model(functions=functions), path, location)
    before = path.read_bytes()
    assert read_graph(path).external_files == (location,)
    drafted = draft(tmp_path)
    assert read_graph(drafted).external_files == ()
    assert drafted.stat().st_size > WEIGHTS.nbytes
    assert drafted.name == "m.onnx"
    assert path.read_bytes() == before
    check(drafted)


def test_joining_changes_nothing_but_the_place_of_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save_with_weights_beside(model(), path)
    join(path, tmp_path / "whole.onnx")
    whole = onnx.load(tmp_path / "whole.onnx")
    for tensor in whole.graph.initializer:
        tensor.ClearField("data_location")
    assert whole == model()


def test_weights_in_a_folder_below_are_found(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    (tmp_path / "model" / "w").mkdir(parents=True)
    save_with_weights_beside(model(), path, "weights.bin")
    (tmp_path / "model" / "weights.bin").rename(tmp_path / "model" / "w" / "weights.bin")
    relocate(path, "w/weights.bin")
    assert read_graph(draft(tmp_path)).external_files == ()


def relocate(path: Path, location: str) -> None:
    """Let the model's weights be somewhere else."""
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())


def test_a_weight_file_that_was_not_logged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    save_with_weights_beside(model(), path)
    (path.parent / "weights.bin").unlink()
    with pytest.raises(InvalidModelFileError, match=r"weights\.bin"):
        draft(tmp_path)
    with pytest.raises(InvalidModelFileError, match=r"weights\.bin"):
        join(path, tmp_path / "whole.onnx")


def test_a_weight_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    save_with_weights_beside(model(), path)
    (path.parent / "weights.bin").write_bytes(WEIGHTS.tobytes()[:-4])
    with pytest.raises(InvalidModelFileError):
        draft(tmp_path)


def test_a_full_disk_says_nothing_against_a_model_that_is_joined(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    save_with_weights_beside(model(), path)
    with no_file_larger_than(WEIGHTS.nbytes), pytest.raises(LocalFileError, match="file too large") as caught:
        join(path, tmp_path / "whole.onnx")
    assert caught.value.path == tmp_path / "whole.onnx"
    assert not (tmp_path / "whole.onnx").exists()
    join(path, tmp_path / "whole.onnx")
    check(tmp_path / "whole.onnx")


@pytest.mark.parametrize("limit_bytes", [10, WEIGHTS.nbytes - 1, WEIGHTS.nbytes])
def test_a_full_disk_says_nothing_against_a_model_that_is_drafted(tmp_path: Path, limit_bytes: int) -> None:
    save_with_weights_beside(model(), tmp_path / "model" / "m.onnx")
    with no_file_larger_than(limit_bytes), pytest.raises(LocalFileError, match="file too large"):
        draft(tmp_path)
    check(draft(tmp_path))


@pytest.mark.parametrize("taken", ["onnx", "joined", "parts", "parts/w"])
def test_a_place_that_cannot_be_made_is_named(tmp_path: Path, taken: str) -> None:
    path = tmp_path / "model" / "m.onnx"
    (tmp_path / "model" / "w").mkdir(parents=True)
    save_with_weights_beside(model(), path, "weights.bin")
    (tmp_path / "model" / "weights.bin").rename(tmp_path / "model" / "w" / "weights.bin")
    relocate(path, "w/weights.bin")
    (tmp_path / "draft" / taken).parent.mkdir(parents=True)
    (tmp_path / "draft" / taken).touch()
    with pytest.raises(LocalFileError) as caught:
        draft(tmp_path)
    assert caught.value.path == tmp_path / "draft" / taken


def test_weights_too_large_for_one_file_are_refused_unread_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    save_with_weights_beside(model(), path)
    with (path.parent / "weights.bin").open("r+b") as weights:
        weights.truncate(2**31)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidModelFileError, match=r"at most 2 GiB.*half precision"):
            join(path, tmp_path / "whole.onnx")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000
    assert not (tmp_path / "whole.onnx").exists()


def test_a_file_too_large_to_be_a_model_is_refused_unread_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    path.touch()
    os.truncate(path, 20 * 2**30)
    for read in (lambda: draft(tmp_path), lambda: read_graph(path)):
        with pytest.raises(InvalidModelFileError, match=r"m\.onnx.*at most 2 GiB.*half precision"):
            read()
    assert list((tmp_path / "draft").iterdir()) == []


@pytest.mark.parametrize("location", ["../secret.bin", "x/../../secret.bin", "{home}/secret.bin", "..", ".", ""])
def test_weights_outside_the_models_folder_are_never_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHTS.tobytes())
    path = tmp_path / "model" / "m.onnx"
    save_with_weights_beside(model(), path)
    relocate(path, location.format(home=tmp_path))
    with pytest.raises(InvalidModelFileError):
        draft(tmp_path)


def test_a_link_to_weights_outside_the_models_folder_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    save_with_weights_beside(model(), path)
    (path.parent / "weights.bin").rename(tmp_path / "secret.bin")
    (path.parent / "weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(SourceNotAllowedError):
        draft(tmp_path)


def test_joining_follows_no_path_out_of_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    save_with_weights_beside(model(), path)
    (path.parent / "weights.bin").rename(tmp_path / "secret.bin")
    relocate(path, "../secret.bin")
    with pytest.raises(InvalidModelFileError):
        join(path, tmp_path / "whole.onnx")


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x08\x12", model().SerializeToString()[:-50]])
def test_a_corrupt_model_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(InvalidModelFileError, match=r"m\.onnx"):
        check(draft(tmp_path))


def test_a_model_that_breaks_the_onnx_specification_is_refused(tmp_path: Path) -> None:
    proto = model()
    proto.graph.node[0].op_type = "NoSuchOperator"
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidModelFileError, match="NoSuchOperator"):
        check(draft(tmp_path))


def test_a_model_whose_shapes_contradict_each_other_is_refused(tmp_path: Path) -> None:
    proto = model()
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 7
    path = tmp_path / "m.onnx"
    onnx.save_model(proto, path)
    with pytest.raises(InvalidModelFileError):
        check(path)


@pytest.mark.parametrize("mlmodel", ["[1, 2", "just a text", "flavors: 7", "\x00", "- a\n- b"])
def test_an_mlmodel_that_cannot_be_read_is_refused(tmp_path: Path, mlmodel: str) -> None:
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    onnx.save_model(model(), path)
    (path.parent / "MLmodel").write_text(mlmodel)
    with pytest.raises(InvalidDocumentError, match="MLmodel"):
        draft(tmp_path)
