"""A real MLflow registry on SQLite, cheap to make, with trainings to log and a worker that follows it.

A conftest.py takes the fixtures by importing them.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeAlias

import pytest

# Warnings are errors in our tests; what MLflow warns of while it is imported, or opens a database, is not ours to mend.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient

from onnx import TensorProto, helper

from supabase_bridge.channel_log import ChannelLog
from supabase_bridge.config import Settings
from supabase_bridge.documents import Manifest
from supabase_bridge.layout import ChannelKeys
from supabase_bridge.object_store import ObjectStore
from supabase_bridge.object_store.opening import open_store
from supabase_bridge.outbox.events import Event
from supabase_bridge.runtime import Runtime, runtime
from supabase_bridge.worker import Handled, Worker
from tests.databases import copy_sqlite
from tests.simulators.storage import StorageSimulator

MODEL = "two_tower"
BUCKET = "models"
EXPERIMENT = "trainings"
FIRST_TRAINING = datetime(2025, 10, 31, 9, 38, 31, tzinfo=timezone.utc)
MLMODEL = b"flavors:\n  onnx:\n    data: model.onnx\n"

MakeScene: TypeAlias = "Callable[..., Scene]"


def tiny_onnx(scale: float = 1.0) -> bytes:
    """An ONNX model with two inputs and two outputs; each scale gives other bytes."""
    towers = ("user", "item")
    nodes = [helper.make_node("Mul", [f"{name}_features", "scale"], [f"{name}_embedding"]) for name in towers]

    def rows(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2])

    graph = helper.make_graph(
        nodes,
        "two_tower",
        [rows(f"{name}_features") for name in towers],
        [rows(f"{name}_embedding") for name in towers],
        [helper.make_tensor("scale", TensorProto.FLOAT, [], [scale])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def state_dict(scale: float = 1.0) -> bytes:
    """A file that torch.load reads, with nothing in it to import."""
    return pickle.dumps({"scale": scale}, protocol=2)


def model_files(scale: float = 1.0) -> dict[str, bytes]:
    """What a training logs: a model directory as mlflow.onnx writes one, and a state_dict beside it."""
    return {
        "model/MLmodel": MLMODEL,
        "model/model.onnx": tiny_onnx(scale),
        "two_tower_latest.pt": state_dict(scale),
    }


class Clock:
    """The real time, and as much later as a test has asked for: a backoff of days takes no time."""

    def __init__(self) -> None:
        self._ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(timezone.utc) + self._ahead

    def advance(self, by: timedelta) -> None:
        self._ahead += by


@dataclass(kw_only=True)
class Scene:
    """An MLflow registry, the object store of its releases, and a worker.

    Attributes:
        clock: The worker's.
        trained: How many trainings there were: each ends a minute after the one before.
    """

    settings: Settings
    runtime: Runtime
    client: MlflowClient
    clock: Clock = field(default_factory=Clock)
    trained: int = 0

    def log_run(
        self,
        *,
        files: Mapping[str, bytes] | None = None,
        params: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        ended_at: datetime | None = None,
        running: bool = False,
    ) -> str:
        """Log one training run, ended unless `running`; returns MLflow's id of it."""
        ended_at = ended_at or FIRST_TRAINING + timedelta(minutes=self.trained)
        self.trained += 1
        started = _milliseconds(ended_at - timedelta(seconds=30))
        run = self.client.create_run(self._experiment(), start_time=started, tags=dict(tags or {}))
        run_id: str = run.info.run_id
        for name, value in (params or {}).items():
            self.client.log_param(run_id, name, value)
        for name, number in (metrics or {}).items():
            self.client.log_metric(run_id, name, number)
        for path, data in (model_files(self.trained) if files is None else files).items():
            target = Path(run.info.artifact_uri or "") / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        if not running:
            self.client.set_terminated(run_id, end_time=_milliseconds(ended_at))
        return run_id

    def _experiment(self) -> str:
        """The trainings' experiment, its artifacts in the home; with workspaces on, MLflow alone says where."""
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        workspaces = os.environ.get("MLFLOW_ENABLE_WORKSPACES") == "true"
        location = None if workspaces else f"{self.settings.artifacts_destination}/trainings"
        return str(self.client.create_experiment(EXPERIMENT, artifact_location=location))

    def register(
        self, run_id: str, *, model: str = MODEL, source: str | None = None, description: str | None = None
    ) -> int:
        """Register what a run logged under `model/`, or `source`, as the next version of a model."""
        if not self.client.search_registered_models(filter_string=f"name = '{model}'"):
            self.client.create_registered_model(model)
        source = source or f"{self.client.get_run(run_id).info.artifact_uri}/model"
        made = self.client.create_model_version(model, source, run_id, description=description)
        return int(made.version)

    def train(self, *, model: str = MODEL, **arguments: Any) -> int:
        """Log a run (see `log_run`) and register its model; returns the version."""
        return self.register(self.log_run(**arguments), model=model)

    def promote(self, version: int, stage: str = "Production", *, archive: bool = False, model: str = MODEL) -> None:
        """Move a version to a stage as MLflow's client does."""
        with warnings.catch_warnings():
            # Deprecated in the Python client only; the registry and its UI go on with stages.
            warnings.simplefilter("ignore", FutureWarning)
            self.client.transition_model_version_stage(model, str(version), stage, archive_existing_versions=archive)

    def work(self) -> list[Handled]:
        """Let a worker do what is due; returns what it took up.

        Its clock stands meanwhile: what is put off for a second is not due again, however slow the machine is.
        """
        handled: list[Handled] = []
        now = self.clock() + timedelta(milliseconds=1)
        now = now.replace(microsecond=now.microsecond // 1_000 * 1_000)  # the outbox counts in whole ones
        worker = Worker(
            name="worker",
            settings=self.settings,
            outbox=self.runtime.outbox,
            processor=self.runtime.processor,
            on_handled=handled.append,
            clock=lambda: now,
        )
        worker.drain()
        return handled

    def work_later(self, by: timedelta | None = None) -> list[Handled]:
        """Let a worker do what is due after a while, by default after the longest pause between two attempts."""
        self.clock.advance(by or self.settings.retry_cap)
        return self.work()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """For a directory: the bucket is not there, and the worker's connection to it is gone."""
        bucket = self.settings.home / "supabase" / BUCKET
        aside = bucket.with_name("aside")
        self.store.ensure_bucket()
        bucket.rename(aside)
        yield
        aside.rename(bucket)

    @property
    def store(self) -> ObjectStore:
        return self.runtime.stores(BUCKET)

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Every object below a prefix, with its bytes."""
        return {info.key: self.store.read(info.key, limit_bytes=10**7) for info in self.store.list(prefix)}

    def head(self, channel: str = "latest", *, key: str = MODEL) -> Manifest | None:
        """The newest entry of a channel's log, which must be what consumers see; None: the log is empty."""
        state = ChannelLog(self.store, ChannelKeys(model_key=key, channel=channel)).look()
        assert state.in_step
        return state.head

    def current(self, channel: str = "latest", *, key: str = MODEL) -> int | None:
        """The version that a channel points to."""
        head = self.head(channel, key=key)
        return None if head is None else head.current.model_version

    def tags(self, version: int, model: str = MODEL) -> dict[str, str]:
        """Our tags of a version, without their common `supabase.`."""
        tags = dict(self.client.get_model_version(model, str(version)).tags)
        return {name.removeprefix("supabase."): tags[name] for name in tags if name.startswith("supabase.")}

    def events(self) -> list[Event]:
        """Every event of the outbox, the oldest first."""
        return list(self.runtime.outbox.events())


def registry_client(settings: Settings) -> MlflowClient:
    """MLflow's client of a home: its database is made where it is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = MlflowClient(tracking_uri=settings.database_url, registry_uri=settings.registry_uri)
        client.search_registered_models()
        client.search_experiments()
    return client


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database with nothing in it, to copy: MLflow takes seconds to make one."""
    home = tmp_path_factory.mktemp("mlflow")
    registry_client(Settings.load(home=home, environ={}))
    return home / "mlflow.db"


@pytest.fixture
def simulator() -> Iterator[StorageSimulator]:
    with StorageSimulator() as running:
        yield running


@pytest.fixture
def directory_settings(tmp_path: Path) -> Settings:
    """A home whose releases go to a directory."""
    return Settings.load(home=tmp_path / "home", environ={})


@pytest.fixture
def supabase_settings(tmp_path: Path, simulator: StorageSimulator) -> Settings:
    """A home whose releases go to a Supabase project."""
    return Settings.load(home=tmp_path / "home", environ=supabase_environment(simulator))


@pytest.fixture(params=["directory", "supabase"])
def settings(request: pytest.FixtureRequest) -> Settings:
    """A home on every store there is, one after the other."""
    found: Settings = request.getfixturevalue(f"{request.param}_settings")
    return found


@pytest.fixture
def make_scene(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeScene]:
    """Makes the scene of some settings, changed by keyword."""
    # MLflow makes ./mlruns wherever it is.
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:

        def make(settings: Settings, **changes: Any) -> Scene:
            settings = replace(settings, **changes)
            fill_home(settings, empty_database)
            client = registry_client(settings)
            return Scene(settings=settings, runtime=stack.enter_context(runtime(settings)), client=client)

        yield make


@pytest.fixture
def scene(make_scene: MakeScene, settings: Settings) -> Scene:
    """A scene on every store there is."""
    return make_scene(settings)


@pytest.fixture
def directory_scene(make_scene: MakeScene, directory_settings: Settings) -> Scene:
    """A scene for what does not depend on the store."""
    return make_scene(directory_settings)


@pytest.fixture
def supabase_scene(make_scene: MakeScene, supabase_settings: Settings) -> Scene:
    """A scene on the simulator, for what goes wrong there."""
    return make_scene(supabase_settings)


def fill_home(settings: Settings, empty_database: Path) -> None:
    """Give a home MLflow's database."""
    settings.home.mkdir(parents=True, exist_ok=True)
    copy_sqlite(empty_database, settings.home / "mlflow.db")


def supabase_environment(simulator: StorageSimulator) -> dict[str, str]:
    """The variables that name a simulator as the Supabase project."""
    return {"SUPABASE_URL": simulator.url, "SUPABASE_SERVICE_ROLE_KEY": simulator.service_key}


def files_below(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, with its bytes."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def store_objects(settings: Settings) -> dict[str, bytes]:
    """Every object of a home's bucket, with its bytes."""
    store = open_store(settings, settings.bucket)
    try:
        return {info.key: store.read(info.key, limit_bytes=10**7) for info in store.list("")}
    finally:
        store.close()


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000)
