"""The gate and the checks together with a worker: what metrics.json and the tags say, and what never gets there."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Callable, Mapping
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from supabase_bridge.app.rollback import roll_back
from supabase_bridge.core.events import EventState
from tests.support.commands import invoke
from tests.support.gated import FAILS, PASSES, RECALL, SceneWith
from tests.support.scene import MODEL, Scene, model_files, tiny_onnx
from tests.support.torch_save import torch_save

pytestmark = pytest.mark.exhaustive


def metrics_of(scene: Scene, version: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(scene.objects()[f"{MODEL}/{scene.tags(version)['run_id']}/metrics.json"])
    return found


# --- the verdict ------------------------------------------------------------------------------------------------------


def test_a_release_and_its_version_say_what_the_gate_says_before_anybody_promotes(scene_with: SceneWith) -> None:
    scene = scene_with(RECALL)
    passing, failing = scene.train(metrics=PASSES), scene.train(metrics=FAILS)
    scene.work()
    assert (metrics_of(scene, passing)["threshold_passed"], scene.tags(passing)["verdict"]) == (
        True,
        "passed: recall@20 0.700 meets recall@20 >= 0.65",
    )
    found = metrics_of(scene, failing)
    assert found["threshold_passed"] is False
    assert found["threshold_criteria"] == [
        {"criterion": "recall@20 >= 0.65", "value": 0.61, "passed": False, "finding": "recall@20 0.610 < 0.65"}
    ]
    assert scene.tags(failing)["verdict"] == "failed: recall@20 0.610 < 0.65"


def test_a_training_cannot_say_itself_that_it_has_passed(scene_with: SceneWith) -> None:
    scene = scene_with(RECALL)
    own = {"metrics": {"recall@20": 0.61}, "threshold_passed": True, "threshold_criteria": "mine"}
    version = scene.train(files={**model_files(), "metrics.json": json.dumps(own).encode()})
    scene.work()
    assert metrics_of(scene, version)["threshold_passed"] is False


def test_without_criteria_the_trainings_own_verdict_stays(scene_with: SceneWith) -> None:
    scene = scene_with("")
    own = {"metrics": {"recall@20": 0.61}, "threshold_passed": True}
    version = scene.train(files={**model_files(), "metrics.json": json.dumps(own).encode()})
    scene.work()
    assert metrics_of(scene, version)["threshold_passed"] is True
    assert "threshold_criteria" not in metrics_of(scene, version)
    assert "verdict" not in scene.tags(version)


def test_a_release_is_compared_with_the_one_that_was_current_when_it_was_made(scene_with: SceneWith) -> None:
    scene = scene_with('[gates.two_tower]\ncriteria = ["recall@20 not worse than current by more than 0.01"]\n')
    first = scene.train(metrics=PASSES)
    scene.promote(first)
    scene.work()
    worse = scene.train(metrics=FAILS)
    scene.work()
    before = scene.tags(first)["run_id"]
    assert scene.tags(worse)["verdict"] == f"failed: recall@20 0.610 < 0.69 ({before} has 0.700, - 0.01)"


# --- promotions -------------------------------------------------------------------------------------------------------


def test_the_pointer_stays_when_a_promotion_is_refused(scene_with: SceneWith) -> None:
    scene = scene_with(RECALL)
    good, bad = scene.train(metrics=PASSES), scene.train(metrics=FAILS)
    scene.promote(good, archive=True)
    scene.work()
    with pytest.raises(MlflowException, match=r"two_tower v2 cannot go to Production: recall@20 0\.610 < 0\.65"):
        scene.promote(bad, archive=True)
    assert scene.work() == []
    assert scene.current() == good
    assert scene.tags(good)["verdict"] == "Production: passed: recall@20 0.700 meets recall@20 >= 0.65"


@pytest.mark.parametrize(
    ("logged", "said"),
    [([float("nan")], "is NaN"), ([float("inf")], "is infinite"), ([0.9, 0.61], "0.610 < 0.65"), ([], "is missing")],
    ids=["NaN", "infinite", "the newest", "missing"],
)
def test_metrics_are_judged_as_mlflow_has_stored_them(scene_with: SceneWith, logged: list[float], said: str) -> None:
    scene = scene_with(RECALL)
    run_id = scene.log_run(running=True)
    for step, value in enumerate(logged):
        scene.client.log_metric(run_id, "recall_at_20", value, step=step)
    version = scene.register(run_id)
    with pytest.raises(MlflowException, match=f"two_tower v1 cannot go to Production: recall@20 {said}"):
        scene.promote(version)


if hasattr(MlflowClient, "create_logged_model"):

    @pytest.mark.parametrize(
        ("logged", "refused"),
        [
            ([(2, 1_000, 0.61), (1, 2_000, 0.9)], True),  # the highest step counts, as MLflow itself has it for runs
            ([(2, 1_000, 0.9), (1, 2_000, 0.61)], False),
            ([(1, 1_000, 0.9), (1, 2_000, 0.61)], True),
        ],
    )
    def test_the_newest_metrics_of_the_versions_own_logged_model_count_more_than_its_runs(
        scene_with: SceneWith, logged: list[tuple[int, int, float]], refused: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scene = scene_with(RECALL)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", scene.client.tracking_uri)
        run_id = scene.log_run(running=True)
        experiment = scene.client.get_run(run_id).info.experiment_id
        own = scene.client.create_logged_model(experiment, source_run_id=run_id).model_id
        for step, at_ms, value in logged:
            scene.client.log_metric(run_id, "recall_at_20", value, timestamp=at_ms, step=step, model_id=own)
        scene.client.log_metric(run_id, "recall_at_20", 0.61 if not refused else 0.9, step=3)
        version = scene.register(run_id, source=f"models:/{own}")
        if refused:
            with pytest.raises(MlflowException, match=r"recall@20 0\.610 < 0\.65"):
                scene.promote(version)
        else:
            scene.promote(version)
            assert scene.tags(version)["verdict"] == "Production: passed: recall@20 0.900 meets recall@20 >= 0.65"


def test_a_gate_that_warns_is_heard_when_the_pointer_moves(
    scene_with: SceneWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_with(RECALL + 'mode = "warn"\n')
    version = scene.train(metrics=FAILS)
    scene.promote(version)
    # MLflow 2.22 takes the handlers away, pytest's among them, and disables the loggers when it makes a database.
    heard: SimpleQueue[logging.LogRecord] = SimpleQueue()
    logger = logging.getLogger("supabase_bridge.worker.processor")
    monkeypatch.setattr(logger, "disabled", False)
    monkeypatch.setattr(logger, "handlers", [QueueHandler(heard)])
    scene.work()
    assert scene.current() == version
    assert scene.tags(version)["verdict"] == "Production: failed: recall@20 0.610 < 0.65"
    assert heard.get_nowait().message == "a version that fails its gate became current"


def test_rolling_back_passes_a_newer_gate_by_command(scene_with: SceneWith) -> None:
    scene = scene_with(RECALL + 'mode = "off"\n')
    old, new = scene.train(metrics=FAILS), scene.train(metrics=PASSES)
    for version in (old, new):
        scene.promote(version, archive=True)
        scene.work()
    scene.client.set_registered_model_tag(MODEL, "supabase.gate", "enforce")
    roll_back(scene.runtime, MODEL, channel="latest", run_id=None)
    assert scene.current() == old
    assert scene.tags(old)["verdict"] == "Production: not judged: it was current before"


def test_a_promotion_that_was_overtaken_is_no_proof_of_having_been_current(scene_with: SceneWith) -> None:
    scene = scene_with(RECALL + 'mode = "off"\n')
    never, current = scene.train(metrics=FAILS), scene.train(metrics=PASSES)
    scene.promote(never, "Staging")
    scene.work()
    # It leaves Staging, which is carried out, and comes to Production, which is not.
    scene.promote(never)
    scene.promote(current)
    scene.work()
    assert [event.state for event in scene.events() if event.version == never][-1] is EventState.SUPERSEDED
    scene.client.set_registered_model_tag(MODEL, "supabase.gate", "enforce")
    with pytest.raises(MlflowException, match="cannot go to Production"):
        scene.promote(never)


def test_moving_a_pointer_by_hand_to_a_release_that_failed_its_gate_warns(scene_with: SceneWith) -> None:
    scene = scene_with(RECALL)
    versions = [scene.train(metrics=metrics) for metrics in (PASSES, FAILS)]
    scene.work()
    said = [
        invoke("activate", MODEL, scene.tags(version)["run_id"], "--home", scene.settings.home) for version in versions
    ]
    assert [item.code for item in said] == [0, 0]
    assert "warning" not in said[0].err
    assert "this release failed its gate when it was made: recall@20 0.610 < 0.65" in said[1].err
    assert scene.current() == versions[1]


# --- checks -----------------------------------------------------------------------------------------------------------


class Payload:
    """What writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self._path}",)


def malicious(proof: Path) -> Mapping[str, bytes]:
    return {**model_files(), "two_tower_latest.pt": torch_save(pickle.dumps({"weights": Payload(proof)}))}


def test_a_version_that_fails_a_check_is_rejected_with_the_reason_and_nothing_is_uploaded(
    scene_with: SceneWith, tmp_path: Path
) -> None:
    scene = scene_with("")
    version = scene.train(files=malicious(tmp_path / "proof"))
    scene.work()
    tags = scene.tags(version)
    assert tags["status"] == "rejected"
    assert "'posix.system'" in tags["error"]
    assert scene.objects() == {}
    assert [event.state for event in scene.events()] == [EventState.DEAD]
    assert not (tmp_path / "proof").exists()


def test_a_rejected_version_never_becomes_current(scene_with: SceneWith, tmp_path: Path) -> None:
    scene = scene_with("")
    good, bad = scene.train(), scene.train(files=malicious(tmp_path / "proof"))
    scene.promote(good)
    scene.promote(bad)
    scene.work()
    assert scene.current() != bad
    # A tag is anybody's to write.
    for name in ("supabase.status", "supabase.error"):
        scene.client.delete_model_version_tag(MODEL, str(bad), name)
    scene.promote(bad)
    scene.work()
    assert scene.tags(bad)["status"] == "rejected"
    assert scene.current() != bad
    assert not (tmp_path / "proof").exists()


def test_what_the_settings_allow_by_name_is_mirrored(scene_with: SceneWith, tmp_path: Path) -> None:
    scene = scene_with('allowed_pickle_globals = ["posix.system"]\n')
    version = scene.train(files=malicious(tmp_path / "proof"))
    scene.work()
    assert scene.tags(version)["status"] == "mirrored"
    assert not (tmp_path / "proof").exists()


def test_dimensions_that_the_run_logged_are_held_against_the_graph(scene_with: SceneWith) -> None:
    scene = scene_with("")
    version = scene.train(params={"user_feature_dim": 4099})
    scene.work()
    assert scene.tags(version)["status"] == "rejected"
    assert scene.tags(version)["error"] == (
        "model.onnx did not pass the checks: model_meta.json has user_feature_dim 4099, "
        "and the graph takes 'user_features' [?, 2]"
    )


def test_a_rejected_version_is_checked_again_when_its_event_is_retried(scene_with: SceneWith) -> None:
    scene = scene_with("")
    run_id = scene.log_run(files={"model/model.onnx": tiny_onnx(float("inf"))})
    version = scene.register(run_id)
    scene.work()
    assert "NaN or infinity" in scene.tags(version)["error"]
    (Path(scene.client.get_run(run_id).info.artifact_uri or "") / "model/model.onnx").write_bytes(tiny_onnx())
    scene.runtime.outbox.retry(scene.events()[0].id)
    scene.work()
    assert scene.tags(version)["status"] == "mirrored"
    assert "error" not in scene.tags(version)


# --- versions that cannot become a release ----------------------------------------------------------------------------

UNFIT: dict[str, Mapping[str, bytes]] = {
    "no ONNX file": {"model/MLmodel": b"flavors:\n  sklearn: {}\n", "model/model.pkl": b"pickle"},
    "candidates and no rule to choose": {"model/a.onnx": tiny_onnx(1), "model/b.onnx": tiny_onnx(2)},
    "is not a valid ONNX model": {"model/model.onnx": b"no protobuf"},
}


@pytest.mark.parametrize("reason", UNFIT)
def test_a_version_that_cannot_be_released_is_refused_in_mlflow_with_the_reason_and_the_remedy(
    scene_with: SceneWith, reason: str
) -> None:
    scene = scene_with('[channels.aliases]\nchampion = "latest"\n')
    version = scene.train(files=UNFIT[reason])
    scene.work()
    assert scene.tags(version)["status"] == "rejected"
    events = len(scene.events())
    changes: tuple[Callable[[], Any], ...] = (
        lambda: scene.promote(version),
        lambda: scene.promote(version, "Staging"),
        lambda: scene.client.set_registered_model_alias(MODEL, "champion", str(version)),
    )
    for change in changes:
        with pytest.raises(MlflowException) as caught:
            change()
        said = str(caught.value)
        assert "cannot " in said
        assert said.index(reason) < 200
        assert "docs/bring-your-own-model.md" in said
        assert said.find("/artifacts") in {-1, *range(said.index("docs/bring-your-own-model.md"), len(said))}
    assert len(scene.events()) == events
    scene.client.set_registered_model_alias(MODEL, "other", str(version))
    scene.promote(version, "Archived")


def test_a_version_that_cannot_be_released_may_be_promoted_with_a_warning_where_the_settings_say_so(
    scene_with: SceneWith,
) -> None:
    scene = scene_with("refuse_rejected = false\n")
    version = scene.train(files={})
    scene.work()
    scene.promote(version)
    assert "failed: its files cannot become a release" in scene.tags(version)["verdict"]


def test_a_version_may_be_promoted_again_once_its_files_are_repaired(scene_with: SceneWith) -> None:
    scene = scene_with("")
    run_id = scene.log_run(files={})
    version = scene.register(run_id)
    scene.work()
    directory = Path(scene.client.get_run(run_id).info.artifact_uri or "") / "model"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(tiny_onnx())
    assert invoke("mirror", MODEL, version, "--home", scene.settings.home).code == 0
    scene.promote(version)
    scene.work()
    assert scene.current() == version


def test_a_version_that_failed_for_another_reason_may_be_promoted_which_tries_it_again(
    scene_with: SceneWith, tmp_path: Path
) -> None:
    scene = scene_with("")
    version = scene.register(scene.log_run(), source=str(tmp_path))
    scene.work()
    assert scene.tags(version)["status"] == "failed"
    scene.promote(version)
    assert [handled.event.version for handled in scene.work()] == [version]
