"""Proxy mode: an MLflow server that keeps its clients' artifacts in Supabase, so that it alone has the key."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.store.artifact import artifact_repo

from tests.e2e.processes import mlflow_command, run, serving, surroundings
from tests.simulators.storage import StorageSimulator

BUCKET = "artifacts"

_START_RUN = """
import mlflow
with mlflow.start_run() as run:
    print(run.info.run_id)
"""
_DELETE_ALL = """
import sys, mlflow
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
uri = mlflow.get_run(sys.argv[1]).info.artifact_uri
get_artifact_repository(uri).delete_artifacts("data")
"""


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A server, and a client's environment that knows its URL and nothing else."""

    url: str
    simulator: StorageSimulator | None
    client: dict[str, str]
    directory: Path

    def mlflow(self, *arguments: str) -> str:
        return run(mlflow_command(*arguments), cwd=self.directory, env=self.client)

    def python(self, source: str, *arguments: str) -> str:
        return run([mlflow_command()[0], "-c", source, *arguments], cwd=self.directory, env=self.client)


@pytest.fixture(params=["embedded", "project"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Proxy]:
    home, server, client = tmp_path / "home", tmp_path / "server", tmp_path / "client"
    for directory in (home, server, client):
        directory.mkdir()
    settings = {"SUPABASE_BRIDGE_HOME": str(home), "SUPABASE_BRIDGE_ARTIFACT_BUCKETS": BUCKET}
    simulator: StorageSimulator | None = None
    if request.param == "project":
        simulator = request.getfixturevalue("simulator")
        assert simulator is not None
        settings |= {"SUPABASE_URL": simulator.url, "SUPABASE_SERVICE_ROLE_KEY": simulator.service_key}
    destination = f"--artifacts-destination=supabase://{BUCKET}/mlflow"
    command = mlflow_command("server", f"--backend-store-uri=sqlite:///{home}/mlflow.db", destination, "--workers=1")
    with serving(command, cwd=server, env=surroundings(server, **settings)) as url:
        # What a client must not do without is a URL; a key it never sees.
        environment = surroundings(client, MLFLOW_TRACKING_URI=url)
        yield Proxy(url=url, simulator=simulator, client=environment, directory=client)


def test_a_client_without_a_key_logs_lists_downloads_and_deletes(proxy: Proxy) -> None:
    large = bytes(range(256)) * 4096
    source = proxy.directory / "source"
    source.mkdir()
    (source / "small.txt").write_text("small")
    (source / "large.bin").write_bytes(large)
    (source / "empty").touch()
    run_id = proxy.python(_START_RUN).splitlines()[0]
    proxy.mlflow("artifacts", "log-artifacts", "-r", run_id, "-l", str(source), "-a", "data")
    listed = proxy.mlflow("artifacts", "list", "-r", run_id, "-a", "data")
    assert [name in listed for name in ("data/empty", "data/large.bin", "data/small.txt")] == [True] * 3
    assert f'"file_size": {len(large)}' in listed or f'"file_size": "{len(large)}"' in listed

    target = proxy.directory / "target"
    proxy.mlflow("artifacts", "download", "-r", run_id, "-a", "data", "-d", str(target))
    found = {path.name: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert found == {"small.txt": b"small", "large.bin": large, "empty": b""}

    if proxy.simulator is not None and hasattr(artifact_repo, "MultipartDownloadMixin"):
        # Past the server, by signed URLs; an empty file has no part to ask for.
        assert proxy.simulator.count("GET", f"/object/sign/{BUCKET}/mlflow/") == 2

    proxy.python(_DELETE_ALL, run_id)
    assert "data" not in proxy.mlflow("artifacts", "list", "-r", run_id)


@pytest.mark.parametrize("proxy", ["project"], indirect=True)
def test_a_path_that_leaves_the_destination_is_refused(proxy: Proxy) -> None:
    for path in ("%2e%2e/other", "a/%2e%2e/%2e%2e/other", "mod%C3%A8le"):
        request = urllib.request.Request(
            f"{proxy.url}/api/2.0/mlflow-artifacts/artifacts/{path}", b"data", method="PUT"
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        assert refused.value.code == 400
        refused.value.close()
