"""The demonstration: two trainings logged, released one after the other, and the first brought back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import mlflow

from supabase_bridge.activate import verify_release
from supabase_bridge.channel_log import ChannelLog
from supabase_bridge.config import Settings
from supabase_bridge.demo.interactions import Interactions
from supabase_bridge.demo.onnx_export import max_difference, to_onnx
from supabase_bridge.demo.scenario import FIRST, SECOND, interactions
from supabase_bridge.demo.training_run import log_training
from supabase_bridge.demo.two_tower import Hyperparameters, evaluate, train
from supabase_bridge.documents import Manifest
from supabase_bridge.errors import DemoFailedError
from supabase_bridge.identity import model_key
from supabase_bridge.layout import ChannelKeys, ReleaseKeys, RunId
from supabase_bridge.outbox.events import DEFAULT_WORKSPACE, EventState
from supabase_bridge.rolling_back import roll_back
from supabase_bridge.runtime import Runtime
from supabase_bridge.worker import Handled

_EXPERIMENT = "supabase-bridge demo"
_TOLERANCE = 1e-4
"""How far the ONNX model may be from the trained weights; float32 leaves about 1e-6."""


def prepare(settings: Settings) -> None:
    """Make MLflow's database and the demo's experiment where they are missing, and let MLflow's client use them."""
    settings.home.mkdir(parents=True, exist_ok=True)
    tracking_uri = settings.tracking_uri or settings.database_url
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(settings.registry_uri)
    client = mlflow.MlflowClient()
    if client.get_experiment_by_name(_EXPERIMENT) is None:
        client.create_experiment(_EXPERIMENT, artifact_location=f"{settings.artifacts_destination}/demo")


def run(runtime: Runtime, model: str, say: Callable[[str], None]) -> Manifest:
    """Train, log, register, promote version by version, roll back; returns the manifest in the end.

    Raises:
        DemoFailedError: a step did not lead where it should.
    """
    data = interactions()
    for hyperparameters in (FIRST, SECOND):
        version = _train(runtime, model, hyperparameters, data, say)
        runtime.registry.promote(model, version, "Production")
        _work(runtime)
        say(f"promoted version {version} to Production in MLflow")
        say(f"  {_current(runtime, model)}")
    target = roll_back(runtime, model, channel="latest", run_id=None)
    say(f"rolled back to {target}: nothing was uploaded again")
    say(f"  {_current(runtime, model)}")
    return _manifest(runtime, model)


def _train(
    runtime: Runtime, model: str, hyperparameters: Hyperparameters, data: Interactions, say: Callable[[str], None]
) -> int:
    """Train once, log and register the result, and let the worker mirror it."""
    trained = train(data, hyperparameters)
    difference = max_difference(trained, to_onnx(trained))
    if difference > _TOLERANCE:
        raise DemoFailedError("checking the ONNX model against the weights", f"they differ by {difference}")
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
    say(f"trained version {version}: recall@20 {scores.recall_at_20:.3f}, auc {scores.auc:.3f}")
    _work(runtime)
    run_id = runtime.registry.version(model, int(version)).tags["supabase.run_id"]
    keys = ReleaseKeys(model_key=_latest(runtime, model).model_key, run_id=RunId.parse(run_id))
    files = verify_release(runtime.stores(runtime.settings.bucket), keys).files
    size = sum(record.size_bytes for record in files.values())
    say(f"  mirrored as {runtime.settings.bucket}/{keys.prefix} ({len(files)} files, {size / 1000:.0f} kB)")
    return int(version)


def _work(runtime: Runtime) -> None:
    """Let a worker carry over what has changed."""
    handled: list[Handled] = []
    runtime.worker(on_handled=handled.append).drain()
    for item in handled:
        if item.state not in {EventState.DONE, EventState.SUPERSEDED}:
            raise DemoFailedError(f"event {item.event.id}", item.outcome)


def _current(runtime: Runtime, model: str) -> str:
    """What consumers see now, in one line."""
    manifest = _manifest(runtime, model)
    before = ", ".join(pointer.run_id for pointer in manifest.previous) or "nothing"
    return f"latest/manifest.json: current {manifest.current.run_id}, previous {before}"


def _manifest(runtime: Runtime, model: str) -> Manifest:
    state = ChannelLog(runtime.stores(runtime.settings.bucket), _latest(runtime, model)).look()
    if state.head is None or not state.in_step:
        raise DemoFailedError("reading the manifest", "it differs from the release log")
    return state.head


def _latest(runtime: Runtime, model: str) -> ChannelKeys:
    store = runtime.stores(runtime.settings.bucket)
    return ChannelKeys(model_key=model_key(runtime.registry, store, model, DEFAULT_WORKSPACE), channel="latest")
