"""Sources of model versions: a client of MLflow chooses them, and the bridge reads none outside the allowed roots."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag

from supabase_bridge.core.errors import BridgeError
from supabase_bridge.mirror.errors import RootMissingError, SourceRefusedError
from supabase_bridge.mirror.metadata import Dataset
from supabase_bridge.mirror.sources import Sources, VersionSource
from supabase_bridge.outbox.artifact_roots import NO_ARTIFACT_ROOTS, ArtifactRoots
from supabase_bridge.registry.client import Registry
from supabase_bridge.registry.errors import RegistryRefusedError
from supabase_bridge.settings.model import Settings

_NUMBERS = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A registry, the roots it may read from, and a directory beside them that holds what it must not read."""

    registry: Registry
    settings: Settings
    database: str
    secret: Path

    def source(
        self,
        uri: str,
        *,
        run_id: str | None = None,
        stored: str | None = None,
        recorded: ArtifactRoots = NO_ARTIFACT_ROOTS,
        **changed: Any,
    ) -> VersionSource:
        """The source of a new version that names `uri`; with `stored`, the database names that instead."""
        name = f"model {next(_NUMBERS)}"
        self.registry.client.create_registered_model(name)
        self.registry.client.create_model_version(name, uri, run_id)
        if stored is not None:
            self.rewrite(f"UPDATE model_versions SET storage_location = :value WHERE name = '{name}'", stored)
        sources = Sources(self.registry, self.settings.with_changes(**changed), recorded=lambda: recorded)
        return sources.locate(self.registry.version(name, 1))

    def rewrite(self, statement: str, value: str) -> None:
        """Change MLflow's tables directly, as an earlier version of MLflow or another program may have."""
        engine = sa.create_engine(self.database)
        with engine.begin() as connection:
            connection.execute(sa.text(statement), {"value": value})
        engine.dispose()

    def run(self, **arguments: Any) -> str:
        return str(self.registry.client.create_run("0", **arguments).info.run_id)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all tests here: MLflow takes a second to make one."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def place(database: str, tmp_path: Path) -> Place:
    home = tmp_path / "home"
    (home / "artifacts" / "model").mkdir(parents=True)
    (home / "artifacts" / "model" / "a.onnx").write_text("model")
    (tmp_path / "secret" / "model").mkdir(parents=True)
    (tmp_path / "secret" / "model" / "a.onnx").write_text("secret")
    return Place(
        registry=Registry(tracking_uri=database, registry_uri=database),
        settings=Settings(home=home, database_url=database, artifacts_destination=str(home / "artifacts")),
        database=database,
        secret=tmp_path / "secret",
    )


def names(source: VersionSource) -> list[str]:
    return [file.path for file in source.model_folder.files()]


def refused(place: Place, uri: str, **arguments: Any) -> SourceRefusedError:
    with pytest.raises(SourceRefusedError) as caught:
        place.source(uri, **arguments)
    assert not caught.value.retryable
    return caught.value


def test_a_source_below_mlflows_own_artifacts_is_read(place: Place, tmp_path: Path) -> None:
    source = place.source(f"{place.settings.artifacts_destination}/model")
    assert names(source) == ["a.onnx"]
    assert source.model_folder.fetch("a.onnx", tmp_path).read_text() == "model"


@pytest.mark.parametrize(
    "form", ["{root}/model", "file://{root}/model", "file://localhost{root}/model", "file:{root}/model/"]
)
def test_every_way_to_write_a_local_path_is_understood(place: Place, form: str) -> None:
    assert names(place.source(form.format(root=place.settings.artifacts_destination))) == ["a.onnx"]


@pytest.mark.parametrize(
    "form",
    [
        "{secret}/model",
        "file://{secret}/model",
        "file:{secret}/model",
        "FILE://{secret}/model",
        "file://localhost{secret}/model",
        "file://elsewhere{secret}/model",
        "file://{root}/../../secret/model",
        "file://{root}/%2e%2e/%2e%2e/secret/model",
        "{root}/../../secret/model",
        "{root}/model/../../../secret/model",
        "{root}x/model",
        "{root}/..",
        "/",
        "/etc",
        "/proc/self",
        ".",
        "",
    ],
)
def test_a_local_path_outside_the_roots_is_refused(place: Place, form: str) -> None:
    root = place.settings.artifacts_destination
    Path(root + "x/model").mkdir(parents=True)
    refused(place, form.format(root=root, secret=place.secret))


@pytest.mark.parametrize("link", ["model link", "link/model"])
def test_a_link_that_leaves_the_root_is_refused(place: Place, link: str) -> None:
    first = link.split("/")[0]
    target = place.secret if "/" in link else place.secret / "model"
    (Path(place.settings.artifacts_destination) / first).symlink_to(target)
    refused(place, f"{place.settings.artifacts_destination}/{link}")


def test_a_link_among_the_files_is_not_read(place: Place, tmp_path: Path) -> None:
    model = Path(place.settings.artifacts_destination) / "model"
    (model / "b.onnx").symlink_to(place.secret / "model" / "a.onnx")
    files = {file.path: file for file in place.source(str(model)).model_folder.files()}
    with pytest.raises(SourceRefusedError):
        files["b.onnx"].folder.fetch("b.onnx", tmp_path)


def test_a_link_among_the_folders_is_not_even_listed(place: Place) -> None:
    model = Path(place.settings.artifacts_destination) / "model"
    (model / "folder").symlink_to(place.secret / "model")
    folder = place.source(str(model)).model_folder
    with pytest.raises(SourceRefusedError):
        folder.files()


@pytest.mark.parametrize(
    "uri",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/model",
        "ftp://example.com/model",
        "s3://other/model",
        "gs://other/model",
        "dbfs:/model",
        "supabase://other-bucket/two_tower",
        "supabase://models-other/two_tower",
        "supabase://models/../other/two_tower",
        "supabase://models/%2e%2e/other",
        "supabase:/models/x",
        "nosuchscheme://x",
    ],
)
def test_a_place_that_nobody_allowed_is_refused_before_it_is_asked(place: Place, uri: str) -> None:
    error = refused(place, uri)
    assert error.source == uri
    assert "allowed_sources" in str(error)


def test_the_bucket_of_the_releases_is_allowed(place: Place) -> None:
    uri = "supabase://models/two_tower/20251031T093831Z"
    assert place.source(uri).model_folder.uri == uri
    refused(place, "supabase://research-models/x", workspaces={"research": "research-models"})


def test_a_bucket_for_artifacts_is_allowed_by_name(place: Place) -> None:
    refused(place, "supabase://artifacts/x")
    assert place.source("supabase://artifacts/x", artifact_buckets=("artifacts",)).model_folder.uri


@pytest.mark.parametrize("form", ["{secret}", "file://{secret}", "{secret}/"])
def test_a_root_that_the_settings_allow_is_read(place: Place, form: str) -> None:
    allowed = (form.format(secret=place.secret),)
    assert names(place.source(f"{place.secret}/model", allowed_sources=allowed)) == ["a.onnx"]
    refused(place, f"{place.secret}-other/model", allowed_sources=allowed)


def test_a_remote_root_that_the_settings_allow_is_a_folder_and_not_a_prefix(place: Place) -> None:
    allowed = ("https://host/models",)
    assert place.source("https://host/models/a", allowed_sources=allowed).model_folder.uri == "https://host/models/a"
    for outside in (
        "https://host/models-other/a",
        "https://host/models/../secret",
        "https://host/models/%2E%2E/secret",
        "https://host",
        "https://host.evil/models/a",
        "https://host@evil/models/a",
        "http://host/models/a",
    ):
        refused(place, outside, allowed_sources=allowed)


def test_artifacts_that_the_server_serves_are_read_where_it_keeps_them(place: Place) -> None:
    assert names(place.source("mlflow-artifacts:/model")) == ["a.onnx"]
    assert names(place.source("mlflow-artifacts://any-host:5000/model")) == ["a.onnx"]


@pytest.mark.parametrize("path", ["/../../secret/model", "/%2e%2e/%2e%2e/secret/model", "/model/../../../secret/model"])
def test_a_served_path_that_climbs_out_is_refused(place: Place, path: str) -> None:
    refused(place, f"mlflow-artifacts:{path}")
    refused(place, f"mlflow-artifacts:{path}", tracking_uri="http://mlflow.internal:5000")


def test_served_artifacts_come_from_the_tracking_server_where_one_is_set(place: Place) -> None:
    source = place.source("mlflow-artifacts:/1/x/artifacts/model", tracking_uri="http://mlflow.internal:5000")
    assert source.model_folder.uri == "mlflow-artifacts:/1/x/artifacts/model"


@pytest.mark.parametrize("host", ["169.254.169.254:80", "evil.example", "mlflow.internal:5001"])
def test_no_other_host_is_asked_for_served_artifacts(place: Place, host: str) -> None:
    refused(place, f"mlflow-artifacts://{host}/model", tracking_uri="http://mlflow.internal:5000")


@pytest.mark.parametrize("server", [None, "http://mlflow.internal:5000"])
def test_artifacts_behind_a_server_that_keeps_them_in_the_project_are_found_there(
    place: Place, server: str | None
) -> None:
    kept: dict[str, Any] = {
        "artifacts_destination": "supabase://artifacts/mlflow",
        "artifact_buckets": ("artifacts",),
    }
    source = place.source("mlflow-artifacts:/1/x/artifacts/model", tracking_uri=server, **kept)
    assert source.model_folder.uri == "supabase://artifacts/mlflow/1/x/artifacts/model"
    elsewhere = "mlflow-artifacts://other.example/1/x/artifacts/model"
    if server is not None:
        refused(place, elsewhere, tracking_uri=server, **kept)


def test_the_destination_that_the_server_recorded_is_trusted(place: Place, tmp_path: Path) -> None:
    recorded = ArtifactRoots(artifacts_destination=str(place.secret))
    source = place.source("mlflow-artifacts:/model", recorded=recorded)
    assert source.model_folder.fetch("a.onnx", tmp_path).read_text() == "secret"
    assert names(place.source(f"{place.settings.artifacts_destination}/model", recorded=recorded)) == ["a.onnx"]


def test_the_default_root_that_the_server_recorded_is_trusted(place: Place) -> None:
    recorded = ArtifactRoots(default_artifact_root=place.secret.as_uri())
    assert names(place.source(f"{place.secret}/model", recorded=recorded)) == ["a.onnx"]


def test_a_destination_in_the_settings_comes_before_the_recorded_one(place: Place, tmp_path: Path) -> None:
    (tmp_path / "told" / "model").mkdir(parents=True)
    recorded = ArtifactRoots(artifacts_destination=str(place.secret))
    source = place.source("mlflow-artifacts:/model", recorded=recorded, artifacts_destination=str(tmp_path / "told"))
    assert names(source) == []
    refused(place, f"{place.secret}/model", recorded=recorded, artifacts_destination=str(tmp_path / "told"))


def test_a_root_that_is_not_there_is_waited_for_and_named(place: Place) -> None:
    recorded = ArtifactRoots(artifacts_destination="/nowhere/mlartifacts")
    with pytest.raises(
        RootMissingError, match="the directory /nowhere/mlartifacts does not exist on this machine"
    ) as e:
        place.source("mlflow-artifacts:/model", recorded=recorded)
    assert e.value.retryable


def test_the_location_of_an_experiment_is_a_clients_text_and_not_trusted(place: Place) -> None:
    experiment = place.registry.client.create_experiment("own", artifact_location=str(place.secret))
    run = place.registry.client.create_run(experiment)
    refused(place, f"{run.info.artifact_uri}/model", run_id=run.info.run_id)


def test_a_reference_is_followed_to_where_the_files_are(place: Place) -> None:
    run_id = place.run()
    place.rewrite(
        f"UPDATE runs SET artifact_uri = :value WHERE run_uuid = '{run_id}'", place.settings.artifacts_destination
    )
    assert names(place.source(f"runs:/{run_id}/model")) == ["a.onnx"]


@pytest.mark.parametrize("below", ["../../secret/model", "%2e%2e/%2e%2e/secret/model"])
def test_a_reference_that_climbs_out_is_refused(place: Place, below: str) -> None:
    run_id = place.run()
    place.rewrite(
        f"UPDATE runs SET artifact_uri = :value WHERE run_uuid = '{run_id}'", place.settings.artifacts_destination
    )
    refused(place, f"runs:/{run_id}/{below}")


def test_a_reference_to_a_place_outside_is_refused(place: Place) -> None:
    run_id = place.run()
    place.rewrite(f"UPDATE runs SET artifact_uri = :value WHERE run_uuid = '{run_id}'", str(place.secret))
    refused(place, f"runs:/{run_id}/model")
    place.registry.client.create_registered_model("outside")
    place.registry.client.create_model_version("outside", str(place.secret / "model"))
    refused(place, "models:/outside/1")
    refused(place, "models:/outside/1", stored="models:/outside/1")


def test_a_chain_of_references_without_an_end_is_refused(place: Place) -> None:
    run_id = place.run()
    place.rewrite(f"UPDATE runs SET artifact_uri = :value WHERE run_uuid = '{run_id}'", f"runs:/{run_id}/x")
    refused(place, f"runs:/{run_id}/model")
    place.registry.client.create_registered_model("circle")
    place.registry.client.create_model_version("circle", "/anywhere")
    place.rewrite("UPDATE model_versions SET storage_location = :value WHERE name = 'circle'", "models:/circle/1")
    with pytest.raises(SourceRefusedError):
        Sources(place.registry, place.settings).locate(place.registry.version("circle", 1))


def test_the_runs_artifacts_are_bounded_too(place: Place) -> None:
    run_id = place.run()
    place.rewrite(f"UPDATE runs SET artifact_uri = :value WHERE run_uuid = '{run_id}'", str(place.secret))
    refused(place, f"{place.settings.artifacts_destination}/model", run_id=run_id)


def test_a_run_that_is_gone_is_a_refusal_that_is_not_tried_again(place: Place) -> None:
    with pytest.raises(RegistryRefusedError):
        place.source("runs:/0123456789abcdef0123456789abcdef/model")


def test_what_is_known_of_the_training_comes_from_the_run(place: Place) -> None:
    client = place.registry.client
    run_id = place.run(start_time=1_761_903_000_000, tags={"supabase.run_id": "20251031T093831Z"})
    place.rewrite(
        f"UPDATE runs SET artifact_uri = :value WHERE run_uuid = '{run_id}'", place.settings.artifacts_destination
    )
    client.log_param(run_id, "lr", 0.1)
    client.log_metric(run_id, "recall_at_20", 0.695)
    dataset = MlflowDataset(name="reviews", digest="5f3a", source_type="local", source='{"uri": "reviews.csv"}')
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    running = place.source(f"{place.settings.artifacts_destination}/model", run_id=run_id)
    client.set_terminated(run_id, end_time=1_761_903_511_999)
    ended = place.source(f"{place.settings.artifacts_destination}/model", run_id=run_id)
    assert (running.running, ended.running) == (True, False)
    assert ended.facts.ended_at == datetime(2025, 10, 31, 9, 38, 31, tzinfo=timezone.utc)
    assert (ended.facts.params, ended.facts.metrics) == ({"lr": "0.1"}, {"recall_at_20": 0.695})
    assert ended.facts.tags["supabase.run_id"] == "20251031T093831Z"
    assert ended.facts.datasets == (Dataset(name="reviews", digest="5f3a", source="reviews.csv", context="training"),)
    assert ended.run_folder is not None
    assert [file.path for file in ended.run_folder.files()] == ["model/a.onnx"]


def test_a_version_without_a_run_was_trained_when_it_was_registered(place: Place) -> None:
    source = place.source(f"{place.settings.artifacts_destination}/model")
    assert (source.run_folder, source.running) == (None, False)
    assert source.facts.ended_at.tzinfo is timezone.utc
    assert source.facts.ended_at.microsecond == 0


def test_a_refusal_is_an_error_of_the_bridge() -> None:
    assert issubclass(SourceRefusedError, BridgeError)


if hasattr(MlflowClient, "create_logged_model"):

    def test_a_source_in_the_versions_own_logged_model_is_read(place: Place) -> None:
        client = place.registry.client
        run_id = place.run()
        own = client.create_logged_model("0", source_run_id=run_id)
        directory = f"{place.settings.artifacts_destination}/models/{own.model_id}/artifacts"
        Path(directory).mkdir(parents=True)
        Path(directory, "a.onnx").write_text("model")
        for table, column, where in (
            ("logged_models", "artifact_location", f"model_id = '{own.model_id}'"),
            ("runs", "artifact_uri", f"run_uuid = '{run_id}'"),
        ):
            value = directory if table == "logged_models" else f"{place.settings.artifacts_destination}/x"
            place.rewrite(f"UPDATE {table} SET {column} = :value WHERE {where}", value)
        assert names(place.source(directory, run_id=run_id)) == ["a.onnx"]
        reference = f"models:/{own.model_id}"
        assert names(place.source(directory, run_id=run_id, stored=reference)) == ["a.onnx"]
        refused(place, directory, run_id=place.run())
