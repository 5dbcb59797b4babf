"""Metrics that a trainer logs after the version was registered: the release says what the gate judged."""

from __future__ import annotations

import json
from datetime import datetime, timezone

from tests.support.scene import MODEL, Scene


def gated(scene: Scene, ended_at: datetime) -> tuple[str, int]:
    """A version without metrics, whose model has a gate on two of them."""
    run_id = scene.log_run(ended_at=ended_at)
    version = scene.register(run_id)
    for name, bound in (("recall_at_20", ">= 0.65"), ("auc", ">= 0.88")):
        scene.client.set_registered_model_tag(MODEL, f"supabase.gate.{name}", bound)
    return run_id, version


def log_metrics(scene: Scene, run_id: str) -> None:
    scene.client.log_metric(run_id, "recall_at_20", 0.7)
    scene.client.log_metric(run_id, "auc", 0.9)


def released_metrics(scene: Scene, run_id: str) -> dict[str, object]:
    return dict(json.loads(scene.objects()[f"{MODEL}/{run_id}/metrics.json"]))


def test_a_version_waits_for_the_metrics_that_its_gate_names(directory_scene: Scene) -> None:
    scene = directory_scene
    run_id, version = gated(scene, datetime.now(timezone.utc))
    scene.work()
    assert set(scene.tags(version)["note"].removeprefix("waits for the metrics ").split(", ")) == {"recall@20", "auc"}
    assert scene.objects() == {}
    log_metrics(scene, run_id)
    scene.work_later()
    metrics = released_metrics(scene, scene.tags(version)["run_id"])
    assert (metrics["metrics"], metrics["threshold_passed"]) == ({"auc": 0.9, "recall@20": 0.7}, True)
    assert "note" not in scene.tags(version)


def test_a_version_waits_no_longer_than_the_grace_period_after_its_run(directory_scene: Scene) -> None:
    scene = directory_scene
    _, version = gated(scene, datetime.now(timezone.utc))
    scene.work()
    scene.work_later(scene.settings.run_grace * 2)
    assert scene.tags(version)["status"] == "mirrored"


def test_a_promotion_ends_the_wait_for_metrics(directory_scene: Scene) -> None:
    scene = directory_scene
    scene.client.create_registered_model(MODEL, tags={"supabase.gate": "warn"})
    _, version = gated(scene, datetime.now(timezone.utc))
    scene.work()
    scene.promote(version)
    scene.work_later()
    assert scene.current() == version
    assert {event.state.value for event in scene.events()} == {"done"}


def test_a_release_that_was_never_current_is_made_again_where_its_metrics_changed(directory_scene: Scene) -> None:
    scene = directory_scene
    run_id = scene.log_run()
    version = scene.register(run_id)
    scene.work()
    first = scene.tags(version)["run_id"]
    assert released_metrics(scene, first)["metrics"] == {}
    before = scene.objects(f"{MODEL}/{first}/")
    log_metrics(scene, run_id)
    scene.promote(version)
    scene.work()
    head = scene.head()
    assert head is not None
    assert (head.current.run_id, scene.tags(version)["run_id"]) == (f"{first}-v1", f"{first}-v1")
    assert released_metrics(scene, head.current.run_id)["metrics"] == {"auc": 0.9, "recall@20": 0.7}
    assert scene.objects(f"{MODEL}/{first}/") == before
    scene.client.log_metric(run_id, "auc", 0.95)
    scene.promote(version, stage="None")
    scene.promote(version)
    scene.work()
    assert scene.tags(version)["run_id"] == f"{first}-v1"
