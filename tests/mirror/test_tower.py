"""One tower of a two-tower model as an ONNX file of its own: cut from the graph, compared with it, and named."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from supabase_bridge.core.documents import ModelMeta
from supabase_bridge.mirror.errors import ModelFileError, ModelRejectedError
from supabase_bridge.mirror.source_files import ModelFile
from supabase_bridge.mirror.tower import cut_tower
from supabase_bridge.releases.verify import verify_release
from tests.mirror.test_checks import CHECKS, graph, here, towers, value
from tests.mirror.test_mirror_model_files import KEYS, draft_in, store, upload  # noqa: F401 - a fixture
from tests.mirror.test_selection import selection
from tests.support.simulators.memory_store import MemoryStore

META = ModelMeta.from_object({"model_name": "m", "run_id": "r"})


def saved(directory: Path, model: onnx.ModelProto) -> ModelFile:
    path = directory / "whole.onnx"
    path.write_bytes(model.SerializeToString())
    return here(path)


def cut(whole: ModelFile, tower: str = "user") -> ModelFile:
    target = whole.local.with_name(f"{tower}.onnx")
    CHECKS.cut_tower(whole.local, target, tower)
    return here(target)


def test_a_tower_alone_has_its_own_inputs_and_weights_and_gives_the_same(tmp_path: Path) -> None:
    whole = saved(tmp_path, towers())
    alone = cut(whole)
    model = onnx.load(alone.local)
    assert [item.name for item in model.graph.input] == ["user_features"]
    assert [item.name for item in model.graph.initializer] == ["user_weights"]
    assert alone.record.size_bytes < whole.record.size_bytes
    CHECKS.onnx(whole, META, towers={"user": alone, "item": cut(whole, "item")})


def test_the_same_graph_is_cut_into_the_same_bytes(tmp_path: Path) -> None:
    whole = saved(tmp_path, towers())
    assert cut(whole).record == cut(whole).record


def test_what_a_branch_reads_from_the_outer_graph_stays(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["user_features", "user_weights"], ["chosen"])],
        "branch",
        [],
        [value("chosen", [1, 2])],
    )
    weights = [
        numpy_helper.from_array(np.ones((3, 2), np.float32), "user_weights"),
        numpy_helper.from_array(np.array(True), "always"),
    ]
    model = graph(
        [helper.make_node("If", ["always"], ["user_embedding"], then_branch=inner, else_branch=inner)],
        [value("user_features", [1, 3])],
        [value("user_embedding", [1, 2])],
        weights=weights,
    )
    whole = saved(tmp_path, model)
    CHECKS.onnx(whole, META, towers={"user": cut(whole)})


def test_a_tower_that_needs_the_other_ones_input_is_not_cut(tmp_path: Path) -> None:
    model = graph(
        [helper.make_node("Add", ["user_features", "item_features"], ["user_embedding"])],
        [value(name, ["rows", 3]) for name in ("user_features", "item_features")],
        [value("user_embedding", ["rows", 3])],
    )
    with pytest.raises(ModelRejectedError, match=r"user tower cannot be cut out: .* depend on input 'item_features'"):
        cut(saved(tmp_path, model))


def test_a_graph_without_the_towers_output_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelRejectedError, match="no output's name begins with user_"):
        cut(saved(tmp_path, towers(sides="item")))


def test_a_tower_of_constants_alone_is_no_tower(tmp_path: Path) -> None:
    weights = [numpy_helper.from_array(np.ones(2, np.float32), "ones")]
    node = helper.make_node("Identity", ["ones"], ["user_embedding"])
    with pytest.raises(ModelRejectedError, match="depend on no input"):
        cut(saved(tmp_path, graph([node], [], [value("user_embedding", [2])], weights=weights)))


def test_a_tower_that_gives_other_results_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path, towers())
    forged = onnx.load(cut(whole).local)
    forged.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((3, 2), np.float32), "user_weights"))
    (path := tmp_path / "forged.onnx").write_bytes(forged.SerializeToString())
    with pytest.raises(ModelRejectedError, match="its user tower alone does not give the same"):
        CHECKS.onnx(whole, META, towers={"user": here(path)})


def test_a_tower_that_cannot_be_compared_is_refused_also_where_the_trial_only_warns(tmp_path: Path) -> None:
    model = graph(
        [helper.make_node("Cast", ["user_features"], ["user_embedding"], to=TensorProto.BFLOAT16)],
        [value("user_features", ["rows", 3])],
        [value("user_embedding", ["rows", 3], TensorProto.BFLOAT16)],
    )
    whole = saved(tmp_path, model)
    with pytest.raises(ModelRejectedError, match="cannot be compared: the whole graph was not run"):
        dataclasses.replace(CHECKS, trial_warns=True).onnx(whole, META, towers={"user": cut(whole)})


def test_a_large_tower_is_cut_without_the_other_ones_weights(tmp_path: Path) -> None:
    path, target = tmp_path / "whole.onnx", tmp_path / "user.onnx"
    path.write_bytes(towers(embedding=2_000).SerializeToString())
    cut_tower(path, target, "user")
    assert target.stat().st_size == pytest.approx(3 * 2_000 * 4, rel=0.05)
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    assert session.run(None, {"user_features": np.ones((1, 3), np.float32)})[0].tolist() == [[3.0] * 2_000]


@pytest.mark.parametrize(("tag", "wanted"), [(None, []), ("user", ["user"]), (" item ,user,", ["user", "item"])])
def test_the_runs_tag_names_the_towers(tmp_path: Path, tag: str | None, wanted: Sequence[str]) -> None:
    assert selection(tmp_path, model=["model.onnx"], tags={} if tag is None else {"supabase.towers": tag}).towers() == (
        list(wanted)
    )


def test_a_tag_that_names_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"a tag supabase\.towers with other names than user and item: users"):
        selection(tmp_path, model=["model.onnx"], tags={"supabase.towers": "users,item"}).towers()


def test_a_release_records_its_towers_like_the_model(store: MemoryStore, tmp_path: Path) -> None:  # noqa: F811
    whole = saved(tmp_path, towers())
    made = dataclasses.replace(draft_in(tmp_path), onnx=whole, towers={"user": cut(whole)})
    upload(store, made)
    release = verify_release(store, KEYS)
    assert f"two_tower_{KEYS.run_id}.user.onnx" in release.meta.files
    assert f"two_tower_{KEYS.run_id}.item.onnx" not in release.meta.files
