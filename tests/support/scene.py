"""A real MLflow registry on SQLite that is quick to make, with trainings and a worker."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest

# Warnings are errors in our tests; what MLflow warns of while it is imported, or opens a database, is not ours to mend.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient
    from mlflow.store.db import utils as mlflow_databases

from onnx import TensorProto, helper

from supabase_bridge.app.runtime import Runtime, open_runtime
from supabase_bridge.core.documents import Manifest
from supabase_bridge.core.events import Event
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.releases.channel import Channel
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.storage.factory import open_store
from supabase_bridge.worker.worker import EventResult, Worker
from tests.support.databases import copy_sqlite
from tests.support.machine import made_once
from tests.support.simulators.storage import StorageSimulator
from tests.support.simulators.storage_tokens import DIGEST_KEY
from tests.support.torch_save import torch_save

# Each store that MLflow opens would read its sixty migration files again to learn which one is the newest.
mlflow_databases._get_latest_schema_revision = cache(mlflow_databases._get_latest_schema_revision)

MODEL = "two_tower"
BUCKET = "models"
EXPERIMENT = "trainings"
FIRST_TRAINING = datetime(2025, 10, 31, 9, 38, 31, tzinfo=timezone.utc)
MLMODEL = b"flavors:\n  onnx:\n    data: model.onnx\n"

MakeScene: TypeAlias = "Callable[..., Scene]"


def tiny_onnx(scale: float = 1.0) -> bytes:
    """Return an ONNX model with two inputs and two outputs; each scale gives other bytes."""
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
    """Return a file that torch.load reads and that imports nothing."""
    return torch_save(pickle.dumps({"scale": scale}, protocol=2))


def model_files(scale: float = 1.0) -> dict[str, bytes]:
    """Return the files of a training: a model directory as mlflow.onnx writes it, and a state_dict beside it."""
    return {
        "model/MLmodel": MLMODEL,
        "model/model.onnx": tiny_onnx(scale),
        "two_tower_latest.pt": state_dict(scale),
    }


class Clock:
    """The real time plus an offset that a test advances, so that a backoff of days takes no time."""

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
        clock: The worker's clock.
        trained: The number of trainings; each ends a minute after the one before.
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
        """Return the experiment of the trainings, with artifacts in the home; with workspaces, MLflow decides where."""
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

    def work(self) -> list[EventResult]:
        """Let a worker process all due events; return their results.

        Its clock stands still meanwhile, so an event that is postponed for a second is not due again on a slow machine.
        """
        handled: list[EventResult] = []
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

    def work_later(self, by: timedelta | None = None) -> list[EventResult]:
        """Let a worker process all events that are due later, by default after the longest pause of a retry."""
        self.clock.advance(by or self.settings.retry_cap)
        return self.work()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Move the directory of the bucket away for the length of a block."""
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
        """Return all objects below a prefix with their bytes."""
        return {info.key: self.store.read(info.key, limit_bytes=10**7) for info in self.store.list(prefix)}

    def head(self, channel: str = "latest", *, key: str = MODEL) -> Manifest | None:
        """Return the newest entry of a channel's log, which must equal the manifest; None: the log is empty."""
        state = Channel(self.store, ChannelPaths(model_key=key, channel=channel)).read_head()
        assert state.manifest_is_current
        return state.head

    def current(self, channel: str = "latest", *, key: str = MODEL) -> int | None:
        """Return the version that a channel points to."""
        head = self.head(channel, key=key)
        return None if head is None else head.current.model_version

    def tags(self, version: int, model: str = MODEL) -> dict[str, str]:
        """Return our tags of a version, without their prefix `supabase.`."""
        tags = dict(self.client.get_model_version(model, str(version)).tags)
        return {name.removeprefix("supabase."): tags[name] for name in tags if name.startswith("supabase.")}

    def events(self) -> list[Event]:
        """Return all events of the outbox, the oldest first."""
        return list(self.runtime.outbox.events())


def registry_client(settings: Settings) -> MlflowClient:
    """Return MLflow's client of a home; make its database if it is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = MlflowClient(tracking_uri=settings.database_url, registry_uri=settings.registry_uri)
        client.search_registered_models()
        client.search_experiments()
    return client


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty database of MLflow to copy, because MLflow needs seconds to make one."""

    def make(home: Path) -> None:
        registry_client(Settings.load(home=home, environ={}))

    return made_once(tmp_path_factory, "mlflow", make) / "mlflow.db"


@pytest.fixture
def simulator() -> Iterator[StorageSimulator]:
    with StorageSimulator() as running:
        yield running


@pytest.fixture
def directory_settings(tmp_path: Path) -> Settings:
    """Return the settings of a home with releases in a directory."""
    return Settings.load(home=tmp_path / "home", environ={})


@pytest.fixture
def supabase_settings(tmp_path: Path, simulator: StorageSimulator) -> Settings:
    """Return the settings of a home with releases in a Supabase project."""
    return Settings.load(home=tmp_path / "home", environ=supabase_environment(simulator))


@pytest.fixture(params=["directory", pytest.param("supabase", marks=pytest.mark.exhaustive)])
def settings(request: pytest.FixtureRequest) -> Settings:
    """Return the settings of a home on each store, one after the other."""
    found: Settings = request.getfixturevalue(f"{request.param}_settings")
    return found


@pytest.fixture
def make_scene(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeScene]:
    """Return a function that makes a scene of settings, changed by keyword."""
    # MLflow makes ./mlruns wherever it is.
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:

        def make(settings: Settings, **changes: Any) -> Scene:
            settings = settings.with_changes(**changes)
            fill_home(settings, empty_database)
            client = MlflowClient(tracking_uri=settings.database_url, registry_uri=settings.registry_uri)
            return Scene(settings=settings, runtime=stack.enter_context(open_runtime(settings)), client=client)

        yield make


@pytest.fixture
def scene(make_scene: MakeScene, settings: Settings) -> Scene:
    """Return a scene on each store."""
    return make_scene(settings)


@pytest.fixture
def directory_scene(make_scene: MakeScene, directory_settings: Settings) -> Scene:
    """Return a scene for tests that do not depend on the store."""
    return make_scene(directory_settings)


@pytest.fixture
def supabase_scene(make_scene: MakeScene, supabase_settings: Settings) -> Scene:
    """Return a scene on the simulator, for tests of its failures."""
    return make_scene(supabase_settings)


def fill_home(settings: Settings, empty_database: Path) -> None:
    """Copy MLflow's empty database into a home that has none."""
    settings.home.mkdir(parents=True, exist_ok=True)
    if not (settings.home / "mlflow.db").exists():
        copy_sqlite(empty_database, settings.home / "mlflow.db")


def supabase_environment(simulator: StorageSimulator) -> dict[str, str]:
    """Return the variables that name a simulator as the Supabase project, and the secret of digests."""
    return {
        "SUPABASE_URL": simulator.url,
        "SUPABASE_SECRET_KEY": simulator.service_key,
        "SUPABASE_BRIDGE_DIGEST_KEY": DIGEST_KEY,
    }


def files_below(directory: Path) -> dict[str, bytes]:
    """Return all files below a directory with their bytes."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def store_objects(settings: Settings) -> dict[str, bytes]:
    """Return all objects of a home's bucket with their bytes."""
    store = open_store(settings, settings.bucket)
    try:
        return {info.key: store.read(info.key, limit_bytes=10**7) for info in store.list("")}
    finally:
        store.close()


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000)
