"""A version that its model's declared consumers cannot load does not become a release; a release stays repairable."""

from __future__ import annotations

import onnx

from supabase_bridge.app.runtime import open_runtime
from supabase_bridge.core.events import EventState
from supabase_bridge.settings.model import Settings
from tests.support.scene import MODEL, MakeScene, model_files


def test_a_version_that_its_consumers_cannot_load_is_rejected_with_the_option_that_helps(
    make_scene: MakeScene, directory_settings: Settings
) -> None:
    newer = onnx.load_from_string(model_files()["model/model.onnx"])
    newer.ir_version = 11
    files = {**model_files(), "model/model.onnx": newer.SerializeToString()}
    scene = make_scene(directory_settings.with_changes(models={MODEL: {"consumers": ["edge"]}}))
    version = scene.train(files=files)
    (handled,) = scene.work()
    assert handled.state is EventState.DEAD
    assert scene.tags(version)["status"] == "rejected"
    assert "Set model.ir_version = 10 before onnx.save" in scene.tags(version)["error"]
    assert scene.objects() == {}
    warned = make_scene(directory_settings.with_changes(models={MODEL: {"consumers": ["edge"], "unloadable": "warn"}}))
    version = warned.train(files=files)
    warned.work()
    assert "its declared consumers cannot load it" in warned.tags(version)["note"]


def test_a_release_that_was_made_before_its_consumers_were_declared_can_still_be_repaired(
    make_scene: MakeScene, directory_settings: Settings
) -> None:
    newer = onnx.load_from_string(model_files()["model/model.onnx"])
    newer.ir_version = 11
    scene = make_scene(directory_settings)
    version = scene.train(files={**model_files(), "model/model.onnx": newer.SerializeToString()})
    scene.promote(version)
    scene.work()
    (meta,) = [key for key in scene.objects() if key.endswith("model_meta.json")]
    before = scene.objects()[meta]
    scene.store.delete([meta])
    scene.promote(version, "Staging")
    with open_runtime(scene.settings.with_changes(models={MODEL: {"consumers": ["edge"]}})) as strict:
        assert strict.worker().drain() == 1
    assert [event.state for event in scene.events()] == [EventState.DONE] * 3
    assert scene.objects()[meta] == before
