"""Versions whose files lie in the project already: copied there, and never taken on somebody's word."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx
import pytest

from supabase_bridge.core.events import EventState
from supabase_bridge.settings.model import Settings
from tests.support.project_artifacts import ARTIFACTS, large_files, large_onnx, settings_in_project, train_in_project
from tests.support.scene import BUCKET, MLMODEL, MODEL, MakeScene, Scene
from tests.support.simulators.faults import Delay, Fault, Respond
from tests.support.simulators.storage import StorageSimulator

pytestmark = pytest.mark.exhaustive

RUN_ID = "20251031T093831Z"
PREFIX = f"{MODEL}/{RUN_ID}/"
ONNX, WEIGHTS = f"{PREFIX}two_tower_{RUN_ID}.onnx", f"{PREFIX}two_tower_{RUN_ID}.pt"


@pytest.fixture
def scene(
    make_scene: MakeScene,
    supabase_settings: Settings,
    simulator: StorageSimulator,
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    """A worker on a project that holds MLflow's artifacts too."""
    return make_scene(settings_in_project(supabase_settings, simulator, monkeypatch))


def artifact(simulator: StorageSimulator, name: str) -> str:
    (key,) = [key for key in simulator.object_keys(ARTIFACTS) if key.endswith(f"/{name}")]
    return key


def carried(simulator: StorageSimulator, name: str) -> list[str]:
    """The requests that moved a whole artifact over the network, or a file of a release."""
    # 206 is a part of one.
    whole = [call.path for call in simulator.calls() if call.method == "GET" and call.status == 200]
    read = [path for path in whole if path.endswith(f"/{name}") and "/info/" not in path]
    sent = [call.path for call in simulator.calls() if call.method in {"POST", "PATCH"} and "/_tmp/" in call.path]
    return read + sent


def check_whole(scene: Scene, files: dict[str, bytes], run_id: str = RUN_ID) -> None:
    """The release has these files, and its record is true."""
    prefix = PREFIX.replace(RUN_ID, run_id)
    objects = scene.objects(prefix)
    assert objects[ONNX.replace(RUN_ID, run_id)] == files["model/model.onnx"]
    assert objects[WEIGHTS.replace(RUN_ID, run_id)] == files["two_tower_latest.pt"]
    recorded = json.loads(objects[f"{prefix}model_meta.json"])["files"]
    assert {prefix + name: record["sha256"] for name, record in recorded.items()} == {
        key: hashlib.sha256(data).hexdigest() for key, data in objects.items() if not key.endswith("model_meta.json")
    }


def test_what_the_repository_logged_is_copied_and_no_byte_of_the_weights_moves(
    scene: Scene, simulator: StorageSimulator, tmp_path: Path
) -> None:
    files = large_files()
    version = train_in_project(scene, tmp_path, files)
    scene.promote(version)
    simulator.reset_calls()
    scene.work()
    assert scene.current() == version
    assert [path for path in carried(simulator, "two_tower_latest.pt") if "latest.pt" in path] == []
    assert simulator.count("POST", "/object/copy") == 2
    check_whole(scene, files)
    signature = scene.objects(PREFIX)[f"{PREFIX}MLmodel"]
    assert b"embedding" in signature


def test_the_model_is_read_for_its_trial_while_the_copies_run(
    scene: Scene, simulator: StorageSimulator, tmp_path: Path
) -> None:
    files = large_files()
    train_in_project(scene, tmp_path, files)
    simulator.inject(Fault(action=Delay(0.2), method="GET", path_contains="/model.onnx"))
    simulator.reset_calls()
    scene.work()
    check_whole(scene, files)
    reads = [call for call in simulator.calls() if call.path.endswith("/model.onnx") and call.method == "GET"]
    (whole,) = [call for call in reads if call.status == 200 and "/info/" not in call.path]
    copies = [call for call in simulator.calls() if call.path.endswith("/object/copy")]
    assert len(copies) == 2
    assert max(copy.started for copy in copies) < whole.ended


def test_what_a_rejected_version_had_copied_is_deleted(
    scene: Scene, simulator: StorageSimulator, tmp_path: Path
) -> None:
    broken = onnx.load_from_string(large_onnx(1))
    broken.graph.node[0].op_type = "NoSuchOperator"
    version = train_in_project(scene, tmp_path, {**large_files(), "model/model.onnx": broken.SerializeToString()})
    simulator.inject(Fault(action=Delay(0.2), method="GET", path_contains="/model.onnx"))
    simulator.reset_calls()
    scene.work()
    assert "NoSuchOperator" in scene.tags(version)["error"]
    assert simulator.count("POST", "/object/copy") == 2
    assert [key for key in simulator.object_keys(BUCKET) if not key.startswith("_tmp/claims/")] == []


@pytest.mark.parametrize("name", ["model.onnx", "two_tower_latest.pt"])
def test_a_digest_that_a_trainer_wrote_beside_a_file_is_not_believed(
    scene: Scene, simulator: StorageSimulator, tmp_path: Path, name: str
) -> None:
    version = train_in_project(scene, tmp_path)
    key = artifact(simulator, name)
    claimed = {**simulator.object_metadata(ARTIFACTS, key), "sha256": hashlib.sha256(b"other").hexdigest()}
    simulator.put_object(ARTIFACTS, key, simulator.object_bytes(ARTIFACTS, key), claimed)
    scene.promote(version)
    (handled,) = scene.work()[-1:]
    assert handled.state is EventState.PENDING
    assert "is damaged" in scene.tags(version)["error"]
    assert simulator.object_keys(BUCKET) == []


@pytest.mark.parametrize("name", ["model.onnx", "two_tower_latest.pt"])
def test_a_file_that_nobody_sealed_is_read_once_and_copied(
    scene: Scene, simulator: StorageSimulator, tmp_path: Path, name: str
) -> None:
    files = large_files()
    version = train_in_project(scene, tmp_path, files)
    key = artifact(simulator, name)
    unsealed = {**simulator.object_metadata(ARTIFACTS, key), "seal": "another key's"}
    simulator.put_object(ARTIFACTS, key, simulator.object_bytes(ARTIFACTS, key), unsealed)
    scene.promote(version)
    simulator.reset_calls()
    scene.work()
    assert scene.current() == version
    check_whole(scene, files)
    assert len([path for path in carried(simulator, name) if path.endswith(name)]) == 1
    assert simulator.count("POST", "/object/copy") == 2


def test_weights_beside_the_model_are_fetched_and_joined(scene: Scene, tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    onnx.save_model(
        onnx.load_from_string(large_onnx(1)),
        beside / "model.onnx",
        save_as_external_data=True,
        location="weights.data",
    )
    found = {f"model/{path.name}": path.read_bytes() for path in beside.iterdir()}
    version = train_in_project(scene, tmp_path, {"model/MLmodel": MLMODEL, **found})
    scene.work()
    assert scene.tags(version)["status"] == "mirrored"
    assert len(scene.objects(PREFIX)[ONNX]) > 1_200_000


def test_a_file_that_is_replaced_between_two_attempts_is_what_it_then_is(
    scene: Scene, simulator: StorageSimulator, tmp_path: Path
) -> None:
    files = large_files()
    version = train_in_project(scene, tmp_path, files)
    simulator.inject(Fault(action=Respond(500, b"{}"), path_contains="/object/copy"))
    (handled,) = scene.work()
    assert handled.state is EventState.PENDING
    simulator.clear_faults()
    files["two_tower_latest.pt"] = large_files(seed=2)["two_tower_latest.pt"]
    simulator.put_object(ARTIFACTS, artifact(simulator, "two_tower_latest.pt"), files["two_tower_latest.pt"])
    scene.work_later()
    assert scene.tags(version)["status"] == "mirrored"
    # The first attempt claimed the folder of its run_id for the former bytes.
    check_whole(scene, files, scene.tags(version)["run_id"])


def test_a_file_that_vanishes_between_two_attempts_is_not_in_the_release(
    scene: Scene, simulator: StorageSimulator, tmp_path: Path
) -> None:
    version = train_in_project(scene, tmp_path)
    simulator.inject(Fault(action=Respond(500, b"{}"), path_contains="/object/copy"))
    scene.work()
    simulator.clear_faults()
    scene.runtime.stores(ARTIFACTS).delete([artifact(simulator, "model.onnx")])
    scene.work_later()
    assert "ONNX" in scene.tags(version)["error"]
    assert not {ONNX, f"{PREFIX}model_meta.json"} & set(simulator.object_keys(BUCKET))


def test_artifacts_behind_an_mlflow_server_are_copied_too(
    scene: Scene, simulator: StorageSimulator, tmp_path: Path
) -> None:
    """`mlflow-artifacts:/` leads to the destination in the settings, where the worker needs no server to find it."""
    files = large_files()
    train_in_project(scene, tmp_path, files)
    run = scene.client.get_run(str(scene.client.get_model_version(MODEL, "1").run_id))
    below = run.info.artifact_uri.removeprefix("supabase://artifacts/mlflow/")
    scene.client.create_registered_model("proxied")
    scene.client.create_model_version("proxied", f"mlflow-artifacts:/{below}/model", run.info.run_id)
    scene.work()
    assert simulator.count("POST", "/object/copy") == 4
    copied = [key for key in simulator.object_keys(BUCKET, "proxied/") if key.endswith(".onnx")]
    assert [simulator.object_bytes(BUCKET, key) for key in copied] == [files["model/model.onnx"]]
