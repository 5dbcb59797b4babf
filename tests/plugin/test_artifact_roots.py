"""The worker finds the artifacts of an MLflow server of one's own: the registry plugin records where they are."""

from __future__ import annotations

from pathlib import Path

import mlflow.server as mlflow_server
import pytest

from mlflow_supabase.store import build
from supabase_bridge.outbox.artifact_roots import NO_ARTIFACT_ROOTS, ArtifactRoots, load_artifact_roots
from tests.support.commands import execute
from tests.support.databases import copy_server_database
from tests.support.mlflow_server import OwnServer, own_server
from tests.support.scene import tiny_onnx

_SERVES, _ROOT, _DESTINATION = (
    str(getattr(mlflow_server, name))
    for name in ("SERVE_ARTIFACTS_ENV_VAR", "ARTIFACT_ROOT_ENV_VAR", "ARTIFACTS_DESTINATION_ENV_VAR")
)


@pytest.fixture
def as_server(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process of an MLflow server, by the variables that `mlflow server` passes to its own processes."""
    monkeypatch.setenv(_SERVES, "true")
    monkeypatch.setenv(_ROOT, "mlflow-artifacts:/")
    monkeypatch.setenv(_DESTINATION, "./mlartifacts")
    return monkeypatch


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> str:
    copy_server_database(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def recorded(database: str) -> ArtifactRoots:
    """The roots after a store of ours was opened."""
    store = build(f"supabase+{database}")
    try:
        return load_artifact_roots(store.engine)
    finally:
        store.engine.dispose()


def test_a_server_records_its_destination_as_an_absolute_path(
    as_server: pytest.MonkeyPatch, database: str, tmp_path: Path
) -> None:
    as_server.chdir(tmp_path)
    assert recorded(database) == ArtifactRoots(artifacts_destination=str(tmp_path / "mlartifacts"))
    as_server.setenv(_DESTINATION, "s3://bucket/x")
    assert recorded(database) == ArtifactRoots(artifacts_destination="s3://bucket/x")


def test_a_server_that_serves_no_artifacts_records_its_default_root_alone(
    as_server: pytest.MonkeyPatch, database: str
) -> None:
    as_server.setenv(_ROOT, "/data/mlruns")
    as_server.delenv(_SERVES)
    assert recorded(database) == ArtifactRoots(default_artifact_root="/data/mlruns")


def test_a_process_that_is_no_server_records_nothing(as_server: pytest.MonkeyPatch, database: str) -> None:
    as_server.delenv(_ROOT)
    assert recorded(database) == NO_ARTIFACT_ROOTS


@pytest.mark.exhaustive
@pytest.mark.parametrize("option", ["--artifacts-destination", "--default-artifact-root"])
def test_the_worker_mirrors_what_a_server_with_artifacts_of_its_own_got(
    option: str, empty_database: Path, tmp_path: Path
) -> None:
    home, artifacts = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    copy_server_database(empty_database, home / "mlflow.db")
    serves = [] if option == "--artifacts-destination" else ["--no-serve-artifacts"]
    with own_server(home / "mlflow.db", option, str(artifacts), *serves) as server:
        _register(server, artifacts)
        to = {"version": "1", "stage": "Production", "archive_existing_versions": True}
        server.post("model-versions/transition-stage", name="two_tower", **to)
    done = execute("worker", "--once", "--home", home, directory=home)
    assert done.code == 0, done.err + done.out
    assert (home / "supabase" / "models" / "two_tower" / "latest" / "manifest.json").exists()


def _register(server: OwnServer, artifacts: Path) -> None:
    """Log an ONNX model to a run, where the server keeps artifacts, and register it as version 1."""
    experiment = server.post("experiments/create", name="trainings")["experiment_id"]
    run = server.post("runs/create", experiment_id=experiment, start_time=1_761_903_511_000)["run"]["info"]
    below = run["artifact_uri"].removeprefix("mlflow-artifacts:/").removeprefix(str(artifacts)).strip("/")
    path = artifacts / below / "model" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(tiny_onnx())
    server.post("runs/update", run_id=run["run_id"], status="FINISHED", end_time=1_761_903_512_000)
    server.post("registered-models/create", name="two_tower")
    source = f"{run['artifact_uri']}/model"
    server.post("model-versions/create", name="two_tower", source=source, run_id=run["run_id"])
