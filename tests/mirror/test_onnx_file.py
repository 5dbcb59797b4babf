"""Fetch, join and check a version's ONNX model as one file, or refuse it."""

from __future__ import annotations

import os
import tracemalloc
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import onnx
import pytest
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from onnx import TensorProto, helper, numpy_helper

from supabase_bridge.core.documents import ModelMeta
from supabase_bridge.core.errors import InvalidDocumentError, LocalFileError
from supabase_bridge.mirror.assemble import assemble_release
from supabase_bridge.mirror.checks.sandbox import Checks
from supabase_bridge.mirror.errors import ModelRejectedError, SourceRefusedError
from supabase_bridge.mirror.metadata import RunInfo
from supabase_bridge.mirror.onnx_file import join, read_structure, validate
from supabase_bridge.mirror.selection import Selection
from supabase_bridge.mirror.source_files import ModelFile, SourceFolder
from supabase_bridge.mirror.sources import VersionSource
from supabase_bridge.storage.hashing import hash_file
from tests.support.full_disk import no_file_larger_than
from tests.support.machine import peak_bytes

WEIGHTS = np.arange(1_024, dtype=np.float32)
CHECKS = Checks(timeout=timedelta(seconds=60), memory_bytes=2_000_000_000)


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


def draft(home: Path, checks: Checks = CHECKS) -> Path:
    """The ONNX file of the release that would be made of the folder "model"."""
    source = VersionSource(
        model_folder=SourceFolder(str(home / "model"), get_artifact_repository(str(home / "model")), home / "model"),
        run_folder=None,
        facts=RunInfo(ended_at=datetime(2025, 10, 31, tzinfo=timezone.utc)),
        running=False,
    )
    (home / "draft").mkdir(exist_ok=True)
    return assemble_release(Selection(source, model="m", model_key="m", version=1), home / "draft", checks).onnx.local


def test_a_whole_model_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    onnx.save_model(model(), path)
    assert read_structure(path).external_files == ()
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
    assert read_structure(path).external_files == (location,)
    drafted = draft(tmp_path)
    assert read_structure(drafted).external_files == ()
    assert drafted.stat().st_size > WEIGHTS.nbytes
    assert drafted.name == "m.onnx"
    assert path.read_bytes() == before
    validate(drafted)


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
    assert read_structure(draft(tmp_path)).external_files == ()


CASES = Path(__file__).with_name("cases")


def test_a_location_that_begins_with_a_dot_names_the_file_beside_the_model(tmp_path: Path) -> None:
    """The model in `cases` names its weights `./o21.data`."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("o21_dot_slash_location.onnx", "o21.data"):
        (folder / name).write_bytes((CASES / name).read_bytes())
    assert read_structure(folder / "o21_dot_slash_location.onnx").external_files == ("o21.data",)
    whole = draft(tmp_path)
    assert read_structure(whole).external_files == ()
    validate(whole)


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
    with pytest.raises(ModelRejectedError, match=r"weights\.bin"):
        draft(tmp_path)
    with pytest.raises(ModelRejectedError, match=r"weights\.bin"):
        join(path, tmp_path / "whole.onnx")


def test_a_weight_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    save_with_weights_beside(model(), path)
    (path.parent / "weights.bin").write_bytes(WEIGHTS.tobytes()[:-4])
    with pytest.raises(ModelRejectedError):
        draft(tmp_path)


def test_a_full_disk_says_nothing_against_a_model_that_is_joined(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    save_with_weights_beside(model(), path)
    with no_file_larger_than(WEIGHTS.nbytes), pytest.raises(LocalFileError, match="file too large") as caught:
        join(path, tmp_path / "whole.onnx")
    assert caught.value.path == tmp_path / "whole.onnx"
    assert not (tmp_path / "whole.onnx").exists()
    join(path, tmp_path / "whole.onnx")
    validate(tmp_path / "whole.onnx")


@pytest.mark.parametrize("limit_bytes", [10, WEIGHTS.nbytes - 1])
def test_a_full_disk_says_nothing_against_a_model_that_is_drafted(tmp_path: Path, limit_bytes: int) -> None:
    save_with_weights_beside(model(), tmp_path / "model" / "m.onnx")
    with no_file_larger_than(limit_bytes), pytest.raises(LocalFileError, match="file too large"):
        draft(tmp_path)
    validate(draft(tmp_path))


def test_a_place_that_the_sandbox_cannot_write_says_nothing_against_the_model(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    save_with_weights_beside(model(), path)
    with pytest.raises(LocalFileError) as caught:
        CHECKS.join(path, tmp_path / "missing" / "whole.onnx", size_bytes=10_000)
    assert caught.value.path == tmp_path / "missing" / "whole.onnx"
    assert caught.value.retryable


NODES = 1_500_000


def of_empty_nodes(count: int) -> bytes:
    """A graph of so many empty nodes, two bytes each; parsed as a whole each takes some 75 times that."""
    nodes = b"\x0a\x00" * count
    size = b"".join(bytes([len(nodes) >> shift & 0x7F | 0x80]) for shift in (0, 7, 14)) + bytes([len(nodes) >> 21])
    return b"\x08\x08\x3a" + size + nodes


def test_the_record_of_a_graph_has_its_ends_operators_and_operator_sets(tmp_path: Path) -> None:
    then = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "then", [], [])
    nodes = [helper.make_node("If", ["c"], ["z"], then_branch=then, else_branch=then)]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", None, 4]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ]
    proto = model(functions=True)
    proto.graph.node.extend(nodes)
    proto.graph.input.extend(ends[1:])
    proto.graph.input[0].CopyFrom(ends[0])
    path = tmp_path / "m.onnx"
    onnx.save_model(proto, path)
    structure = CHECKS.structure(path)
    assert structure.record.to_object() == {
        "inputs": [
            {"name": "x", "type": "float32", "shape": ["batch", "?", 4]},
            {"name": "c", "type": "bool", "shape": []},
        ],
        "outputs": [{"name": "y", "type": "float32", "shape": [1_024]}],
        "operators": {"Add": 1, "Constant": 1, "If": 1, "Relu": 2, "local.Shift": 1},
        "opsets": {"ai.onnx": 17, "local": 1},
    }
    assert structure.record_notes == []


def test_the_record_of_a_graph_stays_small_however_many_names_the_file_has(tmp_path: Path) -> None:
    proto = model()
    proto.graph.node.extend(helper.make_node(f"Op{number}" + "x" * 500, [], []) for number in range(400))
    proto.graph.input.extend(
        helper.make_tensor_value_info(f"i{number}" + "x" * 500, TensorProto.FLOAT, ["d" * 500]) for number in range(400)
    )
    path = tmp_path / "m.onnx"
    onnx.save_model(proto, path)
    structure = read_structure(path)
    assert len(ModelMeta(model_name="m", run_id="r", onnx_graph=structure.record).to_bytes()) < 200_000
    assert (sum(structure.operators.values()), structure.operators["others"]) == (401, 101)
    assert structure.record_notes == ["onnx_graph has the first 100 of 401 inputs"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells and resets a process's peak")
def test_a_file_of_empty_nodes_takes_no_memory_of_the_worker_and_little_of_the_sandbox(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    path.write_bytes(of_empty_nodes(NODES))
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    whole = draft(tmp_path, Checks(timeout=timedelta(seconds=60), memory_bytes=30_000_000))
    with pytest.raises(ModelRejectedError):
        CHECKS.onnx(ModelFile(record=hash_file(whole), path=whole), ModelMeta(model_name="m", run_id="r"))
    assert peak_bytes() - before < 30_000_000


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
        with pytest.raises(ModelRejectedError, match=r"at most 2 GiB.*half precision"):
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
    for read in (lambda: draft(tmp_path), lambda: read_structure(path)):
        with pytest.raises(ModelRejectedError, match=r"m\.onnx.*at most 2 GiB.*half precision"):
            read()
    assert list((tmp_path / "draft").iterdir()) == []


@pytest.mark.parametrize("location", ["../secret.bin", "x/../../secret.bin", "{home}/secret.bin", "..", ".", ""])
def test_weights_outside_the_models_folder_are_never_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHTS.tobytes())
    path = tmp_path / "model" / "m.onnx"
    save_with_weights_beside(model(), path)
    relocate(path, location.format(home=tmp_path))
    with pytest.raises(ModelRejectedError):
        draft(tmp_path)


def test_a_link_to_weights_outside_the_models_folder_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    save_with_weights_beside(model(), path)
    (path.parent / "weights.bin").rename(tmp_path / "secret.bin")
    (path.parent / "weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(SourceRefusedError):
        draft(tmp_path)


def test_joining_follows_no_path_out_of_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "model" / "m.onnx"
    save_with_weights_beside(model(), path)
    (path.parent / "weights.bin").rename(tmp_path / "secret.bin")
    relocate(path, "../secret.bin")
    with pytest.raises(ModelRejectedError):
        join(path, tmp_path / "whole.onnx")


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x08\x12", model().SerializeToString()[:-50]])
def test_a_corrupt_model_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(ModelRejectedError, match=r"m\.onnx"):
        validate(draft(tmp_path))


def test_a_model_that_breaks_the_onnx_specification_is_refused(tmp_path: Path) -> None:
    proto = model()
    proto.graph.node[0].op_type = "NoSuchOperator"
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelRejectedError, match="NoSuchOperator"):
        validate(draft(tmp_path))


def test_a_model_whose_shapes_contradict_each_other_is_noted(tmp_path: Path) -> None:
    proto = model()
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 7
    path = tmp_path / "m.onnx"
    onnx.save_model(proto, path)
    (note,) = validate(path)
    assert "ONNX infers other shapes than the graph declares" in note


@pytest.mark.parametrize("mlmodel", ["[1, 2", "just a text", "flavors: 7", "\x00", "- a\n- b"])
def test_an_mlmodel_that_cannot_be_read_is_refused(tmp_path: Path, mlmodel: str) -> None:
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    onnx.save_model(model(), path)
    (path.parent / "MLmodel").write_text(mlmodel)
    with pytest.raises(InvalidDocumentError, match="MLmodel"):
        draft(tmp_path)
