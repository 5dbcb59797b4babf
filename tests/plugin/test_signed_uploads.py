"""Uploads past MLflow's server, by URLs that the project signs."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from mlflow import environment_variables
from mlflow.environment_variables import _BooleanEnvironmentVariable as BooleanVariable
from mlflow.exceptions import MlflowException
from mlflow.store.artifact import artifact_repo
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_supabase.signed_urls import SigningArtifactRepository
from tests.support.databases import copy_server_database
from tests.support.processes import mlflow_command, run, serving, surroundings
from tests.support.scene import supabase_environment, tiny_onnx
from tests.support.simulators.storage import StorageSimulator

BUCKET = "artifacts"
ROOT = f"supabase://{BUCKET}/root"
ONLY = "MLFLOW_ARTIFACTS_PRESIGNED_ONLY"


@pytest.fixture
def project(tmp_path: Path, simulator: StorageSimulator, monkeypatch: pytest.MonkeyPatch) -> StorageSimulator:
    """Settings of a server with the project's key."""
    for name, value in supabase_environment(simulator).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SUPABASE_BRIDGE_ARTIFACT_BUCKETS", BUCKET)
    return simulator


def put(url: str, headers: dict[str, str], data: bytes) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, data, headers, method="PUT"), timeout=60):
        pass


def test_a_client_with_a_signed_url_and_no_key_writes_one_file_and_may_write_it_again(
    project: StorageSimulator,
) -> None:
    repository: Any = get_artifact_repository(ROOT)
    signed = repository.create_presigned_upload_url("deep/a file?.json", expiration=900)
    for data in (b"{}", b"[]"):
        put(signed.presigned_url, signed.headers, data)
    assert project.object_bytes(BUCKET, "root/deep/a file?.json") == b"[]"
    assert [(item.path, item.file_size) for item in repository.list_artifacts("deep")] == [("deep/a file?.json", 2)]
    with pytest.raises(urllib.error.HTTPError) as refused:
        put(signed.presigned_url.replace("/a%20file%3F.json", "/another.json"), signed.headers, b"{}")
    refused.value.close()
    assert project.object_keys(BUCKET) == ["root/deep/a file?.json"]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("uri", "path", "expiration", "problem"),
    [
        (ROOT, "../other", 900, "A path has parts"),
        (ROOT, "a", 0, "expiration must be 1 to 7200 seconds"),
        (ROOT, "a", 7201, "expiration must be 1 to 7200 seconds"),
        ("supabase://models/two_tower", "a", 900, "holds releases, which only the worker writes"),
        ("supabase://other/a", "a", 900, "other"),
    ],
)
def test_an_upload_url_that_the_settings_do_not_allow_is_not_signed(
    uri: str, path: str, expiration: int, problem: str
) -> None:
    repository: Any = get_artifact_repository(uri)
    with pytest.raises(MlflowException, match=problem):
        repository.create_presigned_upload_url(path, expiration=expiration)


def test_a_file_of_several_parts_goes_through_the_server_or_is_refused_with_the_variable_to_set(
    project: StorageSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = SigningArtifactRepository(ROOT)
    with pytest.raises(MlflowException, match="Multipart upload is not supported") as caught:
        repository.create_multipart_upload("model.onnx", 2, "model")
    # MLflow's client takes this answer as the request to send the file through the server.
    assert caught.value.get_http_status_code() == 501
    monkeypatch.setattr(environment_variables, ONLY, BooleanVariable(ONLY, True), raising=False)
    with pytest.raises(MlflowException, match="MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE"):
        repository.create_multipart_upload("model.onnx", 2, "model")
    created = repository.create_multipart_upload("model.onnx", 1, "model")
    with pytest.raises(MlflowException, match="no object"):
        repository.complete_multipart_upload("model.onnx", created.upload_id, [], "model")
    (part,) = created.credentials
    put(part.url, part.headers, b"onnx")
    repository.complete_multipart_upload("model.onnx", created.upload_id, [], "model")
    assert project.object_bytes(BUCKET, "root/model/model.onnx") == b"onnx"


_CLIENT = """
import json, os, sys, mlflow, onnx
from mlflow.artifacts import download_artifacts
source, model, target = sys.argv[1:]
with mlflow.start_run() as run:
    mlflow.log_artifacts(source, "data")
    mlflow.onnx.log_model(onnx.load(model), name="model", registered_model_name="two_tower")
listed = {item.path: item.file_size for item in mlflow.MlflowClient().list_artifacts(run.info.run_id, "data")}
download_artifacts(run_id=run.info.run_id, artifact_path="data", dst_path=target)
loaded = mlflow.onnx.load_model("models:/two_tower/1")
try:
    mlflow.pyfunc.load_model("models:/two_tower/1")
except mlflow.MlflowException as error:
    refusal = str(error)
print(json.dumps({"listed": listed, "graph": loaded.graph.name, "refusal": refusal}))
"""


@pytest.mark.exhaustive
def test_a_server_that_passes_no_files_through_serves_its_clients_by_signed_urls(
    empty_database: Path, simulator: StorageSimulator, tmp_path: Path, tiny_model: Path
) -> None:
    home, server, client, source, target = (tmp_path / name for name in ("home", "server", "client", "source", "out"))
    for directory in (home, server, client, source, target):
        directory.mkdir()
    copy_server_database(empty_database, home / "mlflow.db")
    (source / "small.txt").write_text("small")
    (source / "large.bin").write_bytes(bytes(range(256)) * 20_000)
    (source / "empty").touch()
    command = mlflow_command(
        "server",
        f"--backend-store-uri=sqlite:///{home}/mlflow.db",
        f"--artifacts-destination=supabase://{BUCKET}/mlflow",
        "--artifacts-presigned-only",
        "--workers=1",
    )
    settings = {"SUPABASE_BRIDGE_HOME": str(home), "SUPABASE_BRIDGE_ARTIFACT_BUCKETS": BUCKET}
    environment = surroundings(server, **settings, **supabase_environment(simulator))
    with serving(command, cwd=server, env=environment) as url:
        client_environment = surroundings(client, MLFLOW_TRACKING_URI=url, MLFLOW_ALLOW_MODEL_CODE_EXECUTION="false")
        program = [sys.executable, "-c", _CLIENT, str(source), str(tiny_model), str(target)]
        said = json.loads(run(program, cwd=client, env=client_environment).splitlines()[-1])
    # Reading an ONNX model by its own flavor executes no code of the model; pyfunc might.
    assert "MLFLOW_ALLOW_MODEL_CODE_EXECUTION" in said.pop("refusal")
    listed = {"data/empty": None, "data/large.bin": 5_120_000, "data/small.txt": 5}
    assert said == {"listed": listed, "graph": "two_tower"}
    found = {path.name: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert found == {path.name: path.read_bytes() for path in source.iterdir()}
    assert simulator.count("PUT", f"/object/upload/sign/{BUCKET}/mlflow/") >= 4


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """An ONNX file."""
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_onnx())
    return path


# An older MLflow asks for no upload URLs, and before 3.18 every server passes files through.
if not hasattr(artifact_repo, "PresignedUploadMixin"):
    del test_a_client_with_a_signed_url_and_no_key_writes_one_file_and_may_write_it_again
    del test_an_upload_url_that_the_settings_do_not_allow_is_not_signed
if not hasattr(environment_variables, ONLY):
    del test_a_server_that_passes_no_files_through_serves_its_clients_by_signed_urls
