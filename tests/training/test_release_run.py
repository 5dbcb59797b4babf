"""What a training logs with `release_run`, in one script or three, and the release that a worker makes of it."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pytest

from supabase_bridge.core.layout import FEATURES_LIMIT
from supabase_bridge.core.text import format_time
from supabase_bridge.training import release_run
from supabase_bridge.training.errors import IncompleteRunError
from tests.support.scene import BUCKET, MODEL, Scene, tiny_onnx
from tests.support.torch_save import torch_save

pytestmark = pytest.mark.mlflow

ROWS = {f"{side}_features": np.ones((1, 2), np.float32) for side in ("user", "item")}


@pytest.fixture
def trainer(directory_scene: Scene) -> Iterator[Scene]:
    """A scene with MLflow's own client library set to its server, as in a trainer's script."""
    scene = directory_scene
    before = mlflow.get_tracking_uri()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own
        mlflow.set_tracking_uri(scene.settings.database_url)
        mlflow.set_registry_uri(scene.settings.registry_uri)
        mlflow.set_experiment(experiment_id=scene._experiment())
        yield scene
    mlflow.set_tracking_uri(before)
    mlflow.set_registry_uri(None)  # type: ignore[arg-type] # what MLflow itself calls to forget it
    assert mlflow.active_run() is None


def prepared(directory: Path) -> Path:
    """What a preprocessing leaves."""
    (directory / "features" / "deep").mkdir(parents=True)
    (directory / "features" / "tag_vocab.json").write_text('{"drama": 0}')
    (directory / "features" / "deep" / "schema.json").write_text("{}")
    (directory / "reviews.csv").write_text("user,item\n1,1\n")
    (directory / "two_tower_latest.pt").write_bytes(torch_save(pickle.dumps({"scale": 1.0}, protocol=2)))
    return directory


def documents(scene: Scene, version: int) -> dict[str, Any]:
    prefix = f"{MODEL}/{scene.tags(version)['run_id']}/"
    found = scene.objects(prefix)
    return {
        "names": {key.removeprefix(prefix) for key in found},
        "meta": json.loads(found[f"{prefix}model_meta.json"]),
        "metrics": json.loads(found[f"{prefix}metrics.json"]),
        "summary": found[f"{prefix}summary.md"].decode(),
    }


def test_one_script_logs_everything_and_its_release_has_every_field_of_the_specification(
    trainer: Scene, tmp_path: Path
) -> None:
    data = prepared(tmp_path / "data")
    dimensions = {"input_schema_version": 1, "embedding_dim": 2, "hidden_dim": 4, "user_feature_dim": 2}
    dimensions |= {"item_feature_dim": 2, "tag_vocab_size": 1, "performer_vocab_size": 1, "preferred_tag_vocab_size": 1}
    begun = datetime.now(timezone.utc).replace(microsecond=0)
    with release_run(
        MODEL,
        params={"format": "two_tower.feature_mlp", "use_price_feature": False, **dimensions},
        prep_run_id="20251030T100538Z",
        source_csv="ml/data/reviews.csv",
        description="The first.",
    ) as run:
        run.log_dataset(data / "reviews.csv", context="training")
        run.log_dataset("s3://bucket/interactions_val.parquet", context="validation")
        run.log_features(data / "features")
        run.log_state_dict(data / "two_tower_latest.pt")
        run.log_onnx(onnx.load_from_string(tiny_onnx()), example=ROWS, towers=["user"])
        run.log_evaluation(
            {"recall@20": 0.27, "auc": 0.81},
            split="the last 10 % of time",
            candidates="all",
            seen_items="masked",
            k=20,
            references={"popularity": {"recall@20": 0.22}},
        )
        run.log_summary("# Ours\n")
        assert run.version is None
    assert run.version == 1
    trainer.work()
    made = documents(trainer, 1)
    run_id = made["meta"]["run_id"]
    assert made["names"] == {
        *(f"two_tower_{run_id}.{end}" for end in ("onnx", "pt", "user.onnx")),
        *("features/tag_vocab.json", "features/deep/schema.json"),
        *("model_meta.json", "metrics.json", "summary.md", "MLmodel"),
        *("conda.yaml", "python_env.yaml", "requirements.txt"),
    }
    meta = made["meta"]
    assert {name: meta[name] for name in dimensions} == dimensions
    assert (meta["format"], meta["use_price_feature"]) == ("two_tower.feature_mlp", False)
    assert format_time(begun) <= meta["trained_at"] <= format_time(datetime.now(timezone.utc).replace(microsecond=0))
    snapshot = meta["data_snapshot"]
    assert (snapshot["prep_run_id"], snapshot["source_csv"]) == ("20251030T100538Z", "ml/data/reviews.csv")
    assert [item["source"] for item in snapshot["datasets"]] == [
        str(data / "reviews.csv"),
        "s3://bucket/interactions_val.parquet",
    ]
    assert made["metrics"]["metrics"] == {"auc": 0.81, "recall@20": 0.27}
    assert made["metrics"]["validation_set"] == "s3://bucket/interactions_val.parquet"
    protocol = {"split": "the last 10 % of time", "candidates": "all", "seen_items": "masked", "k": 20}
    assert made["metrics"]["evaluation_protocol"] == protocol
    assert made["metrics"]["reference_metrics"] == {"popularity": {"recall@20": 0.22}}
    assert (made["summary"], meta["release_notes"]) == ("# Ours\n", "The first.")
    assert meta.get("mirror_notes") is None
    trainer.promote(1)
    trainer.work()
    head = trainer.head()
    assert head is not None
    assert head.current.user_onnx_path == f"{MODEL}/{run_id}/two_tower_{run_id}.user.onnx"


def test_three_scripts_share_a_run_and_only_the_last_one_registers(trainer: Scene, tmp_path: Path) -> None:
    data = prepared(tmp_path / "data")
    with release_run(MODEL, register=False) as first:
        first.log_features(data / "features" / "tag_vocab.json")
    with release_run(MODEL, run_id=first.run_id, register=False) as second:
        second.log_onnx(onnx.load_from_string(tiny_onnx()), example=ROWS)
    assert trainer.client.search_model_versions("") == []
    with release_run(MODEL, run_id=first.run_id) as third:
        third.log_evaluation({"recall_at_20": 0.3}, split="x", candidates=100, seen_items="kept", k=[10, 20])
    assert third.version == 1
    trainer.work()
    made = documents(trainer, 1)
    assert "features/tag_vocab.json" in made["names"]
    assert made["metrics"]["metrics"] == {"recall@20": 0.3}
    assert made["metrics"]["evaluation_protocol"]["k"] == [10, 20]


def test_after_an_error_nothing_is_registered_and_the_run_has_failed(trainer: Scene) -> None:
    with pytest.raises(ZeroDivisionError), release_run(MODEL) as run:
        run.log_params(embedding_dim=1 // 0)
    assert trainer.client.get_run(run.run_id).info.status == "FAILED"
    assert trainer.client.search_registered_models() == []


def test_a_run_without_a_model_or_without_metrics_is_not_registered(trainer: Scene) -> None:
    with pytest.raises(IncompleteRunError, match="it has no model; call log_onnx"), release_run(MODEL) as run:
        run.log_evaluation({"auc": 0.8}, split="x", candidates="all", seen_items="masked")
    with mlflow.start_run() as active:
        (path := Path(active.info.artifact_uri.removeprefix("file://")) / "model").mkdir(parents=True)
        (path / "MLmodel").write_text("flavors: {onnx: {data: model.onnx}}")
        mlflow.set_tag("mlflow.log-model.history", json.dumps([{"artifact_path": "model"}]))
        with pytest.raises(IncompleteRunError, match="it has no metric"), release_run(MODEL):
            pass
    assert trainer.client.search_registered_models() == []


def test_a_run_that_is_active_already_is_used_and_stays_active(trainer: Scene) -> None:
    with mlflow.start_run() as active:
        with pytest.raises(IncompleteRunError, match="no model"), release_run(MODEL) as run:
            assert run.run_id == active.info.run_id
        assert mlflow.active_run() is not None
    assert trainer.client.get_run(active.info.run_id).info.status == "FINISHED"


def test_features_that_no_release_can_have_are_refused_where_they_are_logged(trainer: Scene, tmp_path: Path) -> None:
    (tmp_path / "encoder.pkl").write_bytes(b"")
    (many := tmp_path / "many").mkdir()
    for number in range(FEATURES_LIMIT + 1):
        (many / str(number)).touch()
    with pytest.raises(IncompleteRunError, match=r"encoder\.pkl' can run code"), release_run(MODEL) as run:
        run.log_features(tmp_path / "encoder.pkl")
    with pytest.raises(IncompleteRunError, match="more than 100"), release_run(MODEL) as run:
        run.log_features(many)
    assert trainer.client.list_artifacts(run.run_id) == []


def test_a_tower_of_another_name_is_refused(trainer: Scene) -> None:
    assert trainer.settings.bucket_of("default") == BUCKET
    with pytest.raises(ValueError, match="no such tower: 'users'"), release_run(MODEL) as run:
        run.log_onnx(onnx.load_from_string(tiny_onnx()), example=ROWS, towers=["users"])
