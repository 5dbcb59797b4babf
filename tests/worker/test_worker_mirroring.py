"""What a worker makes of a registered version: a release with every file, under a name that never changes."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag

from supabase_bridge.core.events import EventState
from tests.support.scene import FIRST_TRAINING, MODEL, Scene, model_files, state_dict, tiny_onnx

RUN_ID = "20251031T093831Z"
PREFIX = f"{MODEL}/{RUN_ID}/"
RELEASE = {
    f"{PREFIX}two_tower_{RUN_ID}.onnx",
    f"{PREFIX}two_tower_{RUN_ID}.pt",
    f"{PREFIX}metrics.json",
    f"{PREFIX}model_meta.json",
    f"{PREFIX}summary.md",
    f"{PREFIX}MLmodel",
    f"{PREFIX}conda.yaml",
    f"{PREFIX}python_env.yaml",
    f"{PREFIX}requirements.txt",
}


def document(scene: Scene, name: str, prefix: str = PREFIX) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(scene.objects(prefix)[prefix + name])
    return found


def summary(scene: Scene) -> str:
    return scene.objects(PREFIX)[f"{PREFIX}summary.md"].decode()


# --- files ------------------------------------------------------------------------------------------------------------


def test_registering_a_version_mirrors_every_file(scene: Scene) -> None:
    version = scene.train()
    scene.work()
    found = scene.objects()
    assert set(found) == RELEASE
    assert found[f"{PREFIX}two_tower_{RUN_ID}.onnx"] == tiny_onnx(1)
    assert found[f"{PREFIX}two_tower_{RUN_ID}.pt"] == state_dict(1)
    assert scene.tags(version) == {"run_id": RUN_ID, "status": "mirrored"}
    assert [(event.state, event.outcome) for event in scene.events()] == [(EventState.DONE, f"mirrored as {RUN_ID}")]


def test_a_version_without_a_state_dict_is_mirrored_without_one(directory_scene: Scene) -> None:
    directory_scene.train(files={"model/model.onnx": tiny_onnx()})
    directory_scene.work()
    assert set(directory_scene.objects()) == {key for key in RELEASE if not key.endswith(".pt")}


def test_a_version_without_a_run_is_mirrored_by_the_time_of_its_registration(directory_scene: Scene) -> None:
    run_id = directory_scene.log_run()
    source = f"{directory_scene.client.get_run(run_id).info.artifact_uri}/model"
    directory_scene.client.create_registered_model(MODEL)
    made = directory_scene.client.create_model_version(MODEL, source)
    directory_scene.work()
    tagged = directory_scene.tags(int(made.version))["run_id"]
    registered_at = datetime.fromtimestamp(made.creation_timestamp / 1_000, tz=timezone.utc)
    assert tagged == f"{registered_at:%Y%m%dT%H%M%SZ}"
    assert document(directory_scene, "model_meta.json", f"{MODEL}/{tagged}/")["mlflow"] == {
        "registered_model": MODEL,
        "version": 1,
    }


def test_the_record_of_the_files_is_in_model_meta(scene: Scene) -> None:
    scene.train()
    scene.work()
    objects = scene.objects()
    files = document(scene, "model_meta.json")["files"]
    assert {PREFIX + name: record["size_bytes"] for name, record in files.items()} == {
        key: len(data) for key, data in objects.items() if not key.endswith("model_meta.json")
    }


# --- documents --------------------------------------------------------------------------------------------------------


def test_the_documents_are_built_from_what_the_run_says(scene: Scene) -> None:
    run_id = scene.log_run(
        params={
            "trained_at": "2025-10-31T18:38:31+09:00",
            "format": "two_tower.feature_mlp",
            "embedding_dim": 2,
            "use_price_feature": "True",
            "prep_run_id": "prep-7",
            "learning_rate": 0.001,
        },
        metrics={"recall_at_20": 0.31, "auc": 0.87},
        tags={"mlflow.source.git.commit": "0badcafe", "mlflow.note.content": "Evaluated on October."},
        ended_at=FIRST_TRAINING + timedelta(minutes=5),
    )
    scene.client.log_inputs(
        run_id,
        datasets=[
            dataset("october_train", "s3://data/train.csv", "training"),
            dataset("october_val", "s3://data/val.csv", "validation"),
        ],
    )
    version = scene.register(run_id, description="Half the embedding, same recall.")
    scene.work()
    meta, metrics = document(scene, "model_meta.json"), document(scene, "metrics.json")
    assert meta.pop("files")
    computed_from = meta.pop("computed_from")
    assert (list(computed_from), computed_from["run_ended_at"]) == (
        ["metrics_sha256", "run_ended_at"],
        "2025-10-31T09:43:31Z",
    )
    assert meta["mlflow"].pop("params")["learning_rate"] == "0.001"
    graph = meta.pop("onnx_graph")
    assert (graph["inputs"][0]["name"], graph["opsets"].keys()) == ("user_features", {"ai.onnx"})
    assert meta == {
        "model_name": MODEL,
        "format": "two_tower.feature_mlp",
        "run_id": RUN_ID,
        "trained_at": "2025-10-31T09:38:31Z",
        "git_commit": "0badcafe",
        "embedding_dim": 2,
        "use_price_feature": True,
        "data_snapshot": {
            "prep_run_id": "prep-7",
            "source_csv": "s3://data/train.csv",
            "datasets": [
                {"digest": "digest", "name": "october_train", "source": "s3://data/train.csv"},
                {"digest": "digest", "name": "october_val", "source": "s3://data/val.csv"},
            ],
        },
        "mlflow": {"registered_model": MODEL, "version": version, "run_id": run_id},
        "release_notes": "Half the embedding, same recall.",
    }
    assert metrics == {
        "run_id": RUN_ID,
        "evaluated_at": "2025-10-31T09:43:31Z",
        "metrics": {"auc": 0.87, "recall@20": 0.31},
        "validation_set": "s3://data/val.csv",
        "notes": "Evaluated on October.",
    }
    assert "- recall@20: 0.31" in summary(scene)
    assert "- learning_rate: 0.001" in summary(scene)


def dataset(name: str, source: str, context: str) -> DatasetInput:
    entity = DatasetEntity(name, "digest", "local", json.dumps({"uri": source}))
    return DatasetInput(entity, [InputTag("mlflow.data.context", context)])


def test_documents_that_the_training_wrote_are_kept_and_completed(scene: Scene) -> None:
    meta = {"embedding_dim": 2, "trained_at": "2025-10-31T09:38:31Z", "team": {"name": "discovery"}, "run_id": "?"}
    metrics = {"metrics": {"recall@20": 0.4}, "threshold_passed": True, "seed": 7}
    scene.train(
        files={
            **model_files(),
            "model_meta.json": json.dumps(meta).encode(),
            "reports/metrics.json": json.dumps(metrics).encode(),
            "summary.md": b"# Ours\n",
        },
        params={"embedding_dim": 32, "hidden_dim": 16},
        metrics={"auc": 0.9},
        ended_at=FIRST_TRAINING + timedelta(minutes=5),
    )
    scene.work()
    mirrored = document(scene, "model_meta.json")
    assert (mirrored["embedding_dim"], mirrored["hidden_dim"]) == (2, 16)
    assert (mirrored["team"], mirrored["run_id"]) == ({"name": "discovery"}, RUN_ID)
    assert document(scene, "metrics.json") == {
        "run_id": RUN_ID,
        "evaluated_at": "2025-10-31T09:43:31Z",
        "metrics": {"recall@20": 0.4},
        "threshold_passed": True,
        "seed": 7,
    }
    assert summary(scene) == "# Ours\n"


def test_metrics_are_compared_with_the_release_that_is_current(scene: Scene) -> None:
    first = scene.train(metrics={"recall_at_20": 0.25, "auc": 0.8})
    scene.promote(first)
    scene.work()
    scene.train(metrics={"recall_at_20": 0.375, "loss": 1.5})
    scene.work()
    later = f"{MODEL}/20251031T093931Z/"
    metrics = document(scene, "metrics.json", later)
    assert (metrics["baseline_run_id"], metrics["baseline_diff"]) == (RUN_ID, {"recall@20": 0.125})
    assert document(scene, "model_meta.json", later)["release_notes"] == "recall@20 0.25 -> 0.375"


def test_the_manifest_of_a_first_release_has_its_metrics_as_notes_and_again_after_a_rollback(scene: Scene) -> None:
    first = scene.train(metrics={"auc": 0.8})
    scene.promote(first)
    scene.work()
    assert getattr(scene.head(), "release_notes", None) == "Metrics: auc 0.8."
    scene.promote(scene.train(metrics={"auc": 0.9}), archive=True)
    scene.work()
    scene.promote(first, archive=True)
    scene.work()
    head = scene.head()
    assert head is not None
    assert (head.current.model_version, head.release_notes) == (first, "Metrics: auc 0.8.")


# --- runs that have not ended -----------------------------------------------------------------------------------------


def test_a_version_waits_for_its_run_to_end_and_has_every_metric(scene: Scene) -> None:
    run_id = scene.log_run(running=True)
    version = scene.register(run_id)
    (handled,) = scene.work()
    assert (handled.state, handled.outcome) == (EventState.PENDING, f"run {run_id} has not ended yet")
    assert (scene.objects(), scene.tags(version)) == ({}, {})
    scene.client.log_metric(run_id, "recall_at_20", 0.31)
    scene.client.set_terminated(run_id, end_time=int(FIRST_TRAINING.timestamp() * 1_000))
    scene.work_later(timedelta(seconds=1))
    assert document(scene, "metrics.json")["metrics"] == {"recall@20": 0.31}


def test_a_promotion_does_not_wait_for_the_run_to_end(scene: Scene) -> None:
    version = scene.register(scene.log_run(running=True, params={"trained_at": "2025-10-31T09:38:31Z"}))
    scene.work()
    scene.promote(version)
    scene.work()
    assert scene.current() == version
    assert set(scene.objects(PREFIX)) == RELEASE


def test_a_run_that_never_ends_is_not_waited_for_longer_than_the_grace(directory_scene: Scene) -> None:
    version = directory_scene.register(directory_scene.log_run(running=True))
    directory_scene.work()
    directory_scene.work_later(directory_scene.settings.run_grace)
    assert directory_scene.tags(version)["status"] == "mirrored"


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_two_trainings_of_one_second_get_release_names_of_their_own(scene: Scene) -> None:
    versions = [scene.train(ended_at=FIRST_TRAINING) for _ in range(3)]
    scene.work()
    assert [scene.tags(version)["run_id"] for version in versions] == [RUN_ID, f"{RUN_ID}-v2", f"{RUN_ID}-v3"]
    objects = scene.objects()
    for number, suffix in enumerate(("", "-v2", "-v3"), start=1):
        assert objects[f"{MODEL}/{RUN_ID}{suffix}/{MODEL}_{RUN_ID}{suffix}.onnx"] == tiny_onnx(number)


def test_a_run_may_ask_for_its_release_name(directory_scene: Scene) -> None:
    version = directory_scene.train(tags={"supabase.run_id": "20240101T000000Z-ci42"})
    directory_scene.work()
    assert directory_scene.tags(version)["run_id"] == "20240101T000000Z-ci42"
    assert directory_scene.objects(f"{MODEL}/20240101T000000Z-ci42/")


def test_a_renamed_model_keeps_its_folder(scene: Scene) -> None:
    first = scene.train()
    scene.work()
    scene.client.rename_registered_model(MODEL, "retrieval")
    second = scene.train(model="retrieval")
    scene.promote(second, model="retrieval")
    scene.work()
    assert scene.current(key=MODEL) == second
    assert scene.tags(first, "retrieval")["run_id"] == RUN_ID
    assert {key.split("/")[0] for key in scene.objects()} == {MODEL}
    assert dict(scene.client.get_registered_model("retrieval").tags) == {"supabase.key": MODEL}


def test_a_pending_promotion_follows_its_model_to_the_new_name(directory_scene: Scene) -> None:
    version = directory_scene.train()
    directory_scene.work()
    directory_scene.promote(version)
    directory_scene.client.rename_registered_model(MODEL, "retrieval")
    directory_scene.work()
    assert directory_scene.current(key=MODEL) == version


@pytest.mark.exhaustive
def test_a_new_model_under_the_name_of_a_renamed_one_is_refused(scene: Scene) -> None:
    scene.train()
    scene.work()
    before = scene.objects()
    scene.client.rename_registered_model(MODEL, "retrieval")
    version = scene.train()
    scene.work()
    assert scene.tags(version) == {
        "status": "failed",
        "error": "folder 'two_tower' belongs to registered model 'retrieval' (its tag supabase.key); "
        "set the tag supabase.key of 'two_tower' to another name",
    }
    assert scene.objects() == before
    scene.client.set_registered_model_tag(MODEL, "supabase.key", "two_tower_new")
    scene.runtime.outbox.retry(scene.events()[-1].id)
    scene.work()
    assert scene.tags(version)["status"] == "mirrored"
    assert scene.objects("two_tower_new/")


# --- what was deleted in MLflow ---------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_a_run_registered_again_after_its_version_was_deleted_is_promoted_as_a_release_of_its_own(scene: Scene) -> None:
    run = scene.log_run()
    first = scene.register(run)
    scene.work()
    before = scene.objects(PREFIX)
    scene.client.delete_model_version(MODEL, str(first))
    second = scene.register(run)
    scene.work()
    scene.promote(second)
    scene.work()
    assert scene.current() == second
    assert scene.tags(second)["run_id"] == f"{RUN_ID}-v2"
    assert scene.objects(PREFIX) == before


def test_a_run_whose_version_was_deleted_before_it_was_mirrored_goes_on_in_the_same_folder(scene: Scene) -> None:
    run = scene.log_run()
    first = scene.register(run)
    scene.work()
    scene.store.delete([f"{PREFIX}model_meta.json"])
    scene.client.delete_model_version(MODEL, str(first))
    second = scene.register(run)
    scene.promote(second)
    scene.work()
    assert (scene.current(), scene.tags(second)["run_id"]) == (second, RUN_ID)


@pytest.mark.exhaustive
def test_a_model_that_was_deleted_and_made_again_gets_releases_beside_the_old_ones(directory_scene: Scene) -> None:
    scene = directory_scene
    runs = [scene.log_run() for _ in range(2)]
    for run in runs:
        scene.register(run)
    scene.work()
    before = scene.objects()
    scene.client.delete_registered_model(MODEL)
    for version in [scene.register(run) for run in reversed(runs)]:
        scene.promote(version)
        scene.work()
        assert scene.current() == version
    # What the second training asks for is the first version's; one that is what it was keeps its name.
    assert [scene.tags(version)["run_id"] for version in (1, 2)] == ["20251031T093931Z-v1", f"{RUN_ID}-v2"]
    assert before.items() <= scene.objects().items()
    scene.client.delete_registered_model(MODEL)
    again = [scene.register(run) for run in [runs[1], *runs]]
    scene.work()
    assert [scene.tags(version)["run_id"] for version in again] == [
        "20251031T093931Z-v1",
        f"{RUN_ID}-v2",
        "20251031T093931Z-v3",
    ]


@pytest.mark.exhaustive
def test_a_version_that_lost_its_tag_finds_its_own_release_again(directory_scene: Scene) -> None:
    version = directory_scene.train()
    directory_scene.work()
    before = directory_scene.objects()
    directory_scene.client.delete_model_version_tag(MODEL, str(version), "supabase.run_id")
    directory_scene.promote(version)
    directory_scene.work()
    assert directory_scene.tags(version)["run_id"] == RUN_ID
    assert before == directory_scene.objects(PREFIX)


@pytest.mark.exhaustive
def test_a_release_of_the_same_number_and_run_with_another_model_in_it_is_not_taken_for_the_versions(
    directory_scene: Scene,
) -> None:
    scene = directory_scene
    run = scene.log_run(
        files={**model_files(1), "other/MLmodel": model_files()["model/MLmodel"], "other/model.onnx": tiny_onnx(7)}
    )
    scene.register(run)
    scene.work()
    scene.client.delete_registered_model(MODEL)
    version = scene.register(run, source=f"{scene.client.get_run(run).info.artifact_uri}/other")
    scene.promote(version)
    scene.work()
    head = scene.head()
    assert head is not None
    assert scene.objects()[head.current.onnx_path] == tiny_onnx(7)
