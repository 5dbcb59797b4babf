"""Proxy mode: an MLflow server that keeps its clients' artifacts in Supabase, so that it alone has the key."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.store.artifact import artifact_repo

from tests.support.databases import copy_server_database
from tests.support.processes import mlflow_command, run, serving, surroundings
from tests.support.scene import supabase_environment
from tests.support.simulators.storage import StorageSimulator

BUCKET = "artifacts"

_CLIENT = """
import json, sys, mlflow
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
source, target = sys.argv[1:]
with mlflow.start_run() as run:
    mlflow.log_artifacts(source, "data")
client, run_id = mlflow.MlflowClient(), run.info.run_id
def listed(path):
    return {item.path: item.file_size for item in client.list_artifacts(run_id, path)}
logged = listed("data")
mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="data", dst_path=target)
get_artifact_repository(run.info.artifact_uri).delete_artifacts("data")
print(json.dumps({"logged": logged, "left": listed(None)}))
"""
"""All that a client does, in one process: each one would import MLflow."""


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A server, and a client's environment that knows its URL and nothing else."""

    url: str
    simulator: StorageSimulator | None
    client: dict[str, str]
    directory: Path

    def run(self, program: str, *arguments: str) -> str:
        """What a Python program of the client prints."""
        return run([sys.executable, "-c", program, *arguments], cwd=self.directory, env=self.client)


@pytest.fixture(scope="module", params=[pytest.param("embedded", marks=pytest.mark.exhaustive), "project"])
def proxy(
    request: pytest.FixtureRequest, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """A server for all tests of one kind: MLflow takes seconds to start."""
    home, server, client = (tmp_path_factory.mktemp(name) for name in ("home", "server", "client"))
    copy_server_database(empty_database, home / "mlflow.db")
    settings = {"SUPABASE_BRIDGE_HOME": str(home), "SUPABASE_BRIDGE_ARTIFACT_BUCKETS": BUCKET}
    destination = f"--artifacts-destination=supabase://{BUCKET}/mlflow"
    command = mlflow_command("server", f"--backend-store-uri=sqlite:///{home}/mlflow.db", destination, "--workers=1")
    with ExitStack() as stack:
        simulator = stack.enter_context(StorageSimulator()) if request.param == "project" else None
        project = {} if simulator is None else supabase_environment(simulator)
        url = stack.enter_context(serving(command, cwd=server, env=surroundings(server, **settings, **project)))
        # What a client must not do without is a URL; a key it never sees.
        environment = surroundings(client, MLFLOW_TRACKING_URI=url)
        yield Proxy(url=url, simulator=simulator, client=environment, directory=client)


@pytest.mark.exhaustive
def test_a_client_without_a_key_logs_lists_downloads_and_deletes(proxy: Proxy) -> None:
    large = bytes(range(256)) * 4096
    source = proxy.directory / "source"
    source.mkdir()
    (source / "small.txt").write_text("small")
    (source / "large.bin").write_bytes(large)
    (source / "empty").touch()
    target = proxy.directory / "target"
    target.mkdir()
    said = json.loads(proxy.run(_CLIENT, str(source), str(target)).splitlines()[-1])
    # MLflow's server leaves the size out of its answer where it is 0 (`FileInfo.to_proto`).
    assert said["logged"] == {"data/empty": None, "data/large.bin": len(large), "data/small.txt": 5}
    assert said["left"] == {}
    found = {path.name: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert found == {"small.txt": b"small", "large.bin": large, "empty": b""}

    if proxy.simulator is not None and hasattr(artifact_repo, "MultipartDownloadMixin"):
        # Past the server, by signed URLs; an empty file has no part to ask for.
        assert proxy.simulator.count("GET", f"/object/sign/{BUCKET}/mlflow/") == 2


@pytest.mark.parametrize("proxy", ["project"], indirect=True)
def test_a_path_that_leaves_the_destination_is_refused(proxy: Proxy) -> None:
    for path in ("%2e%2e/other", "a/%2e%2e/%2e%2e/other"):
        request = urllib.request.Request(
            f"{proxy.url}/api/2.0/mlflow-artifacts/artifacts/{path}", b"data", method="PUT"
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        assert refused.value.code == 400
        refused.value.close()
