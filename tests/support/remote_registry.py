"""A stock MLflow server without our plugin, and a home that follows it over its REST API."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest
from mlflow import MlflowClient

from supabase_bridge.app.runtime import Runtime, open_runtime
from supabase_bridge.core.events import Event
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.releases.channel import Channel
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.factory import open_store
from tests.support.databases import DatabaseServer, copy_server_database
from tests.support.processes import mlflow_command, serving, surroundings
from tests.support.scene import model_files

_STOCK = ("--host", "127.0.0.1", "--workers", "1")


@dataclass(kw_only=True)
class Remote:
    """A stock server, and one home that follows it; each test has a model of its own."""

    url: str
    home: Path
    model: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.url, registry_uri=self.url)

    @property
    def settings(self) -> Settings:
        return Settings.load(home=self.home, environ=self.environment)

    def train(self, directory: Path, *, stage: str | None = None) -> int:
        """Log a run over HTTP and register its model."""
        experiment = self.client.get_experiment_by_name("trainings")
        identity = experiment.experiment_id if experiment else self.client.create_experiment("trainings")
        run = self.client.create_run(identity)
        for path, data in model_files(float(run.info.start_time % 1_000)).items():
            local = directory / Path(path).name
            local.write_bytes(data)
            # MLflow 2.22 asks the process, not its client, where to log.
            with patch.dict(os.environ, {"MLFLOW_TRACKING_URI": self.url}):
                self.client.log_artifact(run.info.run_id, str(local), str(Path(path).parent) if "/" in path else None)
        self.client.set_terminated(run.info.run_id)
        if not self.client.search_registered_models(filter_string=f"name = '{self.model}'"):
            self.client.create_registered_model(self.model)
        made = self.client.create_model_version(self.model, f"{run.info.artifact_uri}/model", run.info.run_id)
        if stage is not None:
            self.promote(int(made.version), stage)
        return int(made.version)

    def promote(self, version: int, stage: str = "Production", *, archive: bool = False) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.client.transition_model_version_stage(self.model, str(version), stage, archive)

    @contextmanager
    def watching(self) -> Iterator[Runtime]:
        with open_runtime(self.settings, remote=self.url) as made:
            yield made

    def follow(self, *, full: bool = False) -> list[Event]:
        """Poll once as a new process, let the worker process all due events, and return the new events."""
        with self.watching() as made:
            before = {event.id for event in self.events(made)}
            made.poller.poll(full=full)
            made.worker().drain()
            return [event for event in self.events(made) if event.id not in before]

    def events(self, made: Runtime) -> list[Event]:
        return list(made.outbox.events(model=self.model))

    def points_to(self, version: int) -> bool:
        return self.current() == version

    def current(self) -> int | None:
        store = open_store(self.settings, "models")
        store.ensure_bucket()
        head = Channel(store, ChannelPaths(model_key=self.model, channel="latest")).read_head().head
        return None if head is None else head.current.model_version


@contextmanager
def stock_server(home: Path) -> Iterator[str]:
    """Run MLflow's server with its own stores, without the plugin; its database is `mlflow.db` in `home`."""
    command = mlflow_command("server", *_STOCK, "--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}")
    command += ["--artifacts-destination", str(home / "artifacts")]
    with serving(command, cwd=home, env=surroundings(home)) as url:
        yield url


@pytest.fixture(scope="module")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield a stock server of a test module."""
    home = tmp_path_factory.mktemp("stock")
    copy_server_database(empty_database, home / "mlflow.db")
    with stock_server(home) as url:
        yield url


@pytest.fixture(params=["sqlite"])
def remote(
    server: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Remote]:
    """Make a home without a snapshot; it stores its snapshot in a file, or on PostgreSQL if a test requests that."""
    monkeypatch.chdir(tmp_path)
    # The follower sets it once for its process; here each test begins without it.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    environment = {}
    if request.param == "postgresql":
        database: DatabaseServer = request.getfixturevalue("postgresql")
        environment = {"SUPABASE_BRIDGE_WATCH_DATABASE_URL": database.create()}
    model = f"m{abs(hash(request.node.name)) % 10**8}"
    made = Remote(url=server, home=tmp_path / "home", model=model, environment=environment)
    yield made
    # Each new home mirrors whatever is registered.
    for left in made.client.search_registered_models():
        made.client.delete_registered_model(left.name)
    # Nothing is kept in the file where the database is elsewhere.
    assert not (environment and (tmp_path / "home" / "watch.db").exists())
