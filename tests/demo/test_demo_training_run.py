"""The demonstration's run as MLflow keeps it, in a real database with real files."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from supabase_bridge.demo.model import (
    Evaluation,
    Hyperparameters,
    Interactions,
    TwoTower,
    evaluate,
    generate_interactions,
    train,
)
from supabase_bridge.demo.training import log_training, max_difference, write_state_dict
from tests.support.databases import copy_sqlite

# SQLAlchemy 2.1 warns of how MLflow 3 declares its tables, when a database is first opened.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

HYPERPARAMETERS = Hyperparameters(
    embedding_dim=4, hidden_dim=6, epochs=1, learning_rate=0.01, batch_size=16, use_price_feature=False, seed=7
)
TRAINED_AT = datetime(2025, 10, 31, 18, 38, 31, 999, tzinfo=timezone(timedelta(hours=9)))


@pytest.fixture
def client(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A fresh MLflow database whose artifacts lie in tmp_path too."""
    monkeypatch.chdir(tmp_path)
    copy_sqlite(empty_database, tmp_path / "mlflow.db")
    # By the environment, which is as it was afterwards: what `set_tracking_uri` sets stays for every later test.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = MlflowClient()
    client.search_experiments()  # so that the tables are there before a test watches the output
    return client


@pytest.fixture(scope="module")
def interactions() -> Interactions:
    return generate_interactions(np.random.default_rng(1), users=20, items=40, tag_vocab_size=9, performer_vocab_size=4)


@pytest.fixture(scope="module")
def model(interactions: Interactions) -> TwoTower:
    return train(interactions, HYPERPARAMETERS)


def log(model: TwoTower, interactions: Interactions, directory: Path, *, registered_model_name: str) -> str:
    directory.mkdir(exist_ok=True)
    return log_training(
        model,
        evaluate(model, interactions),
        HYPERPARAMETERS,
        interactions=interactions,
        trained_at=TRAINED_AT,
        directory=directory,
        registered_model_name=registered_model_name,
        experiment="demo",
    )


def logged(client: MlflowClient, model: TwoTower, interactions: Interactions) -> tuple[ModelVersion, Run]:
    number = log(model, interactions, Path("files"), registered_model_name="two_tower")
    version = client.get_model_version("two_tower", number)
    assert version.run_id
    return version, client.get_run(version.run_id)


def test_each_training_registers_the_next_version(
    client: MlflowClient, model: TwoTower, interactions: Interactions
) -> None:
    numbers = [log(model, interactions, Path("files"), registered_model_name="two_tower") for _ in range(2)]
    assert numbers == ["1", "2"]
    assert {version.version for version in client.search_model_versions("name = 'two_tower'")} in ({1, 2}, {"1", "2"})


def test_the_run_keeps_the_measures_under_names_mlflow_allows(
    client: MlflowClient, model: TwoTower, interactions: Interactions
) -> None:
    _, run = logged(client, model, interactions)
    assert Evaluation(**run.data.metrics) == evaluate(model, interactions)


def test_the_run_keeps_the_parameters_that_model_meta_asks_for(
    client: MlflowClient, model: TwoTower, interactions: Interactions
) -> None:
    _, run = logged(client, model, interactions)
    expected = {
        "format": "two_tower.feature_mlp",
        "trained_at": "2025-10-31T09:38:31Z",
        "input_schema_version": "1",
        "embedding_dim": "4",
        "hidden_dim": "6",
        "user_feature_dim": "9",
        "item_feature_dim": "14",
        "tag_vocab_size": "9",
        "performer_vocab_size": "4",
        "preferred_tag_vocab_size": "9",
        "use_price_feature": "False",
    }
    assert expected.items() <= run.data.params.items()


def test_the_run_is_finished_and_described(client: MlflowClient, model: TwoTower, interactions: Interactions) -> None:
    _, run = logged(client, model, interactions)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.note.content"] == (
        "Trained for 1 epochs on 360 generated interactions of 20 users with 40 items; price feature off."
    )


def test_the_run_names_both_splits_as_its_datasets(
    client: MlflowClient, model: TwoTower, interactions: Interactions
) -> None:
    _, run = logged(client, model, interactions)
    assert run.inputs is not None
    datasets = {entry.dataset.name: entry for entry in run.inputs.dataset_inputs}
    assert set(datasets) == {"interactions_train", "interactions_val"}
    for name, context in (("interactions_train", "training"), ("interactions_val", "validation")):
        assert [tag.value for tag in datasets[name].tags] == [context]
        assert datasets[name].dataset.source == f'{{"uri": "files/{name}.csv"}}'
    table = np.loadtxt("files/interactions_val.csv", delimiter=",", skiprows=1, dtype=np.int64)
    assert np.array_equal(table, interactions.validation)
    assert datasets["interactions_train"].dataset.digest != datasets["interactions_val"].dataset.digest


def test_the_version_holds_a_single_onnx_file_with_the_weights_inside(
    client: MlflowClient, model: TwoTower, interactions: Interactions, tmp_path: Path
) -> None:
    version, _ = logged(client, model, interactions)
    uri = client.get_model_version_download_uri("two_tower", version.version)
    downloaded = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(tmp_path / "down")))
    names = {path.name for path in downloaded.iterdir()}
    assert {"MLmodel", "model.onnx", "requirements.txt"} <= names
    assert not [name for name in names if name.endswith(".data")]
    assert max_difference(model, onnx.load(str(downloaded / "model.onnx"))) < 1e-5


def test_the_run_holds_the_state_dict(
    client: MlflowClient, model: TwoTower, interactions: Interactions, tmp_path: Path
) -> None:
    _, run = logged(client, model, interactions)
    downloaded = client.download_artifacts(run.info.run_id, "two_tower_latest.pt", str(tmp_path))
    write_state_dict(tmp_path / "expected.pt", model)
    assert Path(downloaded).read_bytes() == (tmp_path / "expected.pt").read_bytes()


@pytest.mark.usefixtures("client")
def test_nothing_is_printed_and_mlflow_may_speak_again_afterwards(
    model: TwoTower, interactions: Interactions, capsys: pytest.CaptureFixture[str]
) -> None:
    log(model, interactions, Path("files"), registered_model_name="two_tower")
    assert capsys.readouterr() == ("", "")
    logging.getLogger("mlflow").warning("heard")
    assert "heard" in capsys.readouterr().err


def test_a_refusal_by_mlflow_is_raised_and_marks_the_run_failed(
    client: MlflowClient, model: TwoTower, interactions: Interactions
) -> None:
    with pytest.raises(MlflowException, match="name"):
        log(model, interactions, Path("files"), registered_model_name="")
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]
