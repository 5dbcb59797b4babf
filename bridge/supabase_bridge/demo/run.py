"""Run the demonstration: train twice, promote twice, roll back, and report each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import mlflow
import numpy as np

from supabase_bridge.app.errors import CommandError
from supabase_bridge.app.rollback import roll_back
from supabase_bridge.app.runtime import Runtime
from supabase_bridge.core.documents import Manifest
from supabase_bridge.core.events import EventState
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId
from supabase_bridge.core.tags import RUN_ID_TAG
from supabase_bridge.demo.model import Hyperparameters, Interactions, evaluate, generate_interactions, train
from supabase_bridge.demo.training import log_training, max_difference, to_onnx
from supabase_bridge.registry.naming import model_key
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.settings.model import Settings
from supabase_bridge.worker.worker import EventResult

FIRST = Hyperparameters(
    embedding_dim=12,
    hidden_dim=32,
    epochs=4,
    learning_rate=0.001,
    batch_size=128,
    use_price_feature=True,
    seed=20251015,
)
SECOND = replace(FIRST, embedding_dim=32, hidden_dim=64, epochs=8, use_price_feature=False, seed=20251031)

_EXPERIMENT = "supabase-bridge demo"
_TOLERANCE = 1e-4
"""Maximum difference between ONNX model and trained weights; float32 gives about 1e-6."""


def interactions() -> Interactions:
    """Return the data of both trainings, the same at each call."""
    return generate_interactions(np.random.default_rng(20251004))


def prepare(settings: Settings) -> None:
    """Create MLflow's database and the demo's experiment if missing, and configure MLflow's client for them."""
    settings.home.mkdir(parents=True, exist_ok=True)
    tracking_uri = settings.tracking_uri or settings.database_url
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(settings.registry_uri)
    client = mlflow.MlflowClient()
    if client.get_experiment_by_name(_EXPERIMENT) is None:
        client.create_experiment(_EXPERIMENT, artifact_location=f"{settings.artifacts_destination}/demo")


def run(
    runtime: Runtime, model: str, report: Callable[[str], None], progress: Callable[[str], None] = lambda _: None
) -> Manifest:
    """Train, log, register and promote two versions, roll back, and return the final manifest.

    Args:
        report: Called with each result.
        progress: Called with each step that takes a while, when it begins.

    Raises:
        CommandError: a step did not have the expected result.
    """
    data = interactions()
    for hyperparameters in (FIRST, SECOND):
        version = _train(runtime, model, hyperparameters, data, report, progress)
        # A stage and an alias of one channel are equal: the last assignment counts.
        if hyperparameters is FIRST:
            runtime.registry.promote(model, version, "Production")
            report(f"moved version {version} to stage Production in MLflow")
        else:
            runtime.registry.set_alias(model, "champion", version)
            report(f"gave version {version} the alias champion in MLflow")
        _work(runtime)
        report(f"  {_current(runtime, model)}")
    target = roll_back(runtime, model, channel="latest", run_id=None)
    report(f"rolled back to {target}: nothing was uploaded again")
    report(f"  {_current(runtime, model)}")
    return _manifest(runtime, model)


def _train(
    runtime: Runtime,
    model: str,
    hyperparameters: Hyperparameters,
    data: Interactions,
    report: Callable[[str], None],
    progress: Callable[[str], None],
) -> int:
    """Train once, log and register the result, and mirror it."""
    trained = train(data, hyperparameters, lambda epoch: progress(f"epoch {epoch} of {hyperparameters.epochs}"))
    progress("logging the model to MLflow")
    difference = max_difference(trained, to_onnx(trained))
    if difference > _TOLERANCE:
        raise CommandError(f"the demonstration stopped: ONNX model and weights differ by {difference}")
    scores = evaluate(trained, data)
    directory = runtime.settings.home / "demo"
    directory.mkdir(exist_ok=True)
    version = log_training(
        trained,
        scores,
        hyperparameters,
        interactions=data,
        trained_at=datetime.now(timezone.utc),
        directory=directory.relative_to(Path.cwd()) if directory.is_relative_to(Path.cwd()) else directory,
        registered_model_name=model,
        experiment=_EXPERIMENT,
    )
    report(f"trained version {version}: recall@20 {scores.recall_at_20:.3f}, auc {scores.auc:.3f}")
    _work(runtime)
    run_id = runtime.registry.version(model, int(version)).tags[RUN_ID_TAG]
    paths = ReleasePaths(model_key=_latest(runtime, model).model_key, run_id=RunId.parse(run_id))
    files = verify_release(runtime.stores(runtime.settings.bucket), paths).files
    size = sum(record.size_bytes for record in files.values())
    report(f"  mirrored as {runtime.settings.bucket}/{paths.prefix} ({len(files)} files, {size / 1000:.0f} kB)")
    return int(version)


def _work(runtime: Runtime) -> None:
    """Process the registry events."""
    handled: list[EventResult] = []
    runtime.worker(on_handled=handled.append).drain()
    for item in handled:
        if item.state not in {EventState.DONE, EventState.SUPERSEDED}:
            raise CommandError(f"the demonstration stopped: event {item.event.id}: {item.outcome}")


def _current(runtime: Runtime, model: str) -> str:
    """The manifest that consumers see, as a line of text."""
    manifest = _manifest(runtime, model)
    before = ", ".join(pointer.run_id for pointer in manifest.previous) or "nothing"
    return f"latest/manifest.json: current {manifest.current.run_id}, previous {before}"


def _manifest(runtime: Runtime, model: str) -> Manifest:
    state = Channel(runtime.stores(runtime.settings.bucket), _latest(runtime, model)).read_head()
    if state.head is None or not state.manifest_is_current:
        raise CommandError("the demonstration stopped: the manifest differs from the release log")
    return state.head


def _latest(runtime: Runtime, model: str) -> ChannelPaths:
    store = runtime.stores(runtime.settings.bucket)
    return ChannelPaths(model_key=model_key(runtime.registry, store, runtime.registry.model(model)), channel="latest")
