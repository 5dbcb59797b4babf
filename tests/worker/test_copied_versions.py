"""MLflow's "Promote model" copies a version into another registered model: it becomes a release of that model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from supabase_bridge.core.events import EventState
from supabase_bridge.settings.model import Settings
from tests.support.commands import invoke
from tests.support.project_artifacts import settings_in_project, train_in_project
from tests.support.scene import BUCKET, MODEL, MakeScene, Scene
from tests.support.simulators.storage import StorageSimulator

pytestmark = pytest.mark.exhaustive

PROD = "two_tower_prod"
RUN_ID = "20251031T093831Z"


def promote_into(client: MlflowClient, version: int, model: str = PROD, *, source: str = MODEL) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return int(client.copy_model_version(f"models:/{source}/{version}", model).version)


def meta(scene: Scene, model: str, version: int) -> dict[str, Any]:
    run_id = scene.tags(version, model)["run_id"]
    found: dict[str, Any] = json.loads(scene.objects()[f"{model}/{run_id}/model_meta.json"])
    return found


def test_a_copy_is_mirrored_once_with_its_origin_and_its_alias_moves_its_own_pointer(directory_scene: Scene) -> None:
    scene = directory_scene
    first = scene.train()
    scene.client.set_registered_model_alias(MODEL, "champion", str(first))
    scene.work()
    run = scene.client.get_model_version(MODEL, str(first)).run_id
    copy = promote_into(scene.client, first)
    # A CI job that waits for the copy is not answered with what the original has reached.
    assert scene.tags(copy, PROD) == {}
    assert [handled.state for handled in scene.work()] == [EventState.DONE]
    assert scene.tags(copy, PROD) == {"copy_of": f"models:/{MODEL}/{first}", "run_id": RUN_ID, "status": "mirrored"}
    assert meta(scene, PROD, copy)["mlflow"] == {
        "registered_model": PROD,
        "version": copy,
        "run_id": run,
        "copied_from": {"registered_model": MODEL, "version": first, "run_id": run},
    }
    of_dev, of_prod = (
        scene.objects(f"{model}/{RUN_ID}/")[f"{model}/{RUN_ID}/{model}_{RUN_ID}.onnx"] for model in (MODEL, PROD)
    )
    assert of_dev == of_prod
    assert scene.current(key=PROD) is None
    scene.client.set_registered_model_alias(PROD, "champion", str(copy))
    scene.work()
    assert (scene.current(key=PROD), scene.current()) == (copy, first)
    assert scene.tags(first)["status"] == "active"
    before = scene.objects(f"{PROD}/{RUN_ID}/")
    assert invoke("mirror", PROD, copy, "--home", scene.settings.home).code == 0
    assert scene.objects(f"{PROD}/{RUN_ID}/") == before


def test_a_copy_that_a_server_without_the_plugin_made_loses_the_tags_of_its_original(directory_scene: Scene) -> None:
    scene = directory_scene
    versions = [scene.train(), scene.train()]
    for version in versions:
        scene.promote(version)
    scene.work()
    stock = MlflowClient(tracking_uri=scene.settings.database_url, registry_uri=scene.settings.database_url)
    copies = [promote_into(stock, version) for version in versions]
    assert scene.tags(copies[1], PROD)["status"] == "active"
    scene.work()
    for version, copy in zip(versions, copies, strict=True):
        assert scene.tags(copy, PROD).keys() == {"copy_of", "run_id", "status"}
        assert scene.tags(copy, PROD)["status"] == "mirrored"
        assert meta(scene, PROD, copy)["mlflow"]["copied_from"]["version"] == version
    again = promote_into(stock, copies[0], "two_tower_eu", source=PROD)
    scene.work()
    assert scene.tags(again, "two_tower_eu")["copy_of"] == f"models:/{PROD}/{copies[0]}"
    assert meta(scene, "two_tower_eu", again)["mlflow"]["copied_from"]["registered_model"] == PROD


def test_two_copies_of_one_version_are_two_releases(directory_scene: Scene) -> None:
    version = directory_scene.train()
    copies = [promote_into(directory_scene.client, version) for _ in range(2)]
    directory_scene.work()
    assert [directory_scene.tags(copy, PROD)["run_id"] for copy in copies] == [RUN_ID, f"{RUN_ID}-v2"]


@pytest.mark.mlflow
def test_the_files_of_a_copy_are_copied_within_the_project(
    make_scene: MakeScene,
    supabase_settings: Settings,
    simulator: StorageSimulator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    scene = make_scene(settings_in_project(supabase_settings, simulator, monkeypatch))
    version = train_in_project(scene, tmp_path)
    scene.work()
    copy = promote_into(scene.client, version)
    simulator.reset_calls()
    scene.work()
    assert scene.tags(copy, PROD)["status"] == "mirrored"
    assert simulator.count("POST", "/object/copy") == 2
    # Each of the two files has more than a megabyte; only the documents are sent.
    assert sum(call.received_bytes for call in simulator.calls()) < 100_000
    run_id = scene.tags(copy, PROD)["run_id"]
    for suffix in ("onnx", "pt"):
        of_dev, of_prod = (f"{model}/{run_id}/{model}_{run_id}.{suffix}" for model in (MODEL, PROD))
        assert simulator.object_bytes(BUCKET, of_dev) == simulator.object_bytes(BUCKET, of_prod)
