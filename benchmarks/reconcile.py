"""Measure a reconcile pass over unchanged versions, on SQLite and the storage simulator.

    python -m benchmarks.reconcile [--versions 10000] [--models 100] [--seconds 2] [--growth-mb 20] [--full]

There are two registries, the second ten times as large as the first. The time is that of a periodic pass over the
larger one; the memory is the difference of Python's peaks. Exit code 1: one of them is above its limit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from mlflow_supabase.store import build
from supabase_bridge.app.runtime import open_runtime
from supabase_bridge.core.documents import FileRecord, Manifest, ModelMeta
from supabase_bridge.core.layout import METRICS_NAME, ReleasePaths, RunId
from supabase_bridge.reconcile.release_check import Scope
from supabase_bridge.settings.model import Settings
from tests.support.simulators.storage import StorageSimulator

_FILES = 9
_RECORD = FileRecord.of(b"x")
_FIRST = datetime(2025, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measure a pass of one registry after all manifests were read once, and a full pass."""

    seconds: float
    full_seconds: float | None
    peak_mb: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reconcile", description=__doc__)
    parser.add_argument("--versions", type=int, default=10_000, help="versions of the larger registry")
    parser.add_argument("--models", type=int, default=100, help="registered models of the larger registry")
    parser.add_argument("--seconds", type=float, default=2.0, help="longest periodic pass that passes")
    parser.add_argument("--growth-mb", type=float, default=20.0, help="highest growth of the peak that passes")
    parser.add_argument("--full", action="store_true", help="measure a pass that lists every release, too")
    options = parser.parse_args(arguments)
    small = _measure(versions=options.versions // 10, models=max(1, options.models // 10), full=options.full)
    large = _measure(versions=options.versions, models=options.models, full=options.full)
    growth_mb = large.peak_mb - small.peak_mb
    print(
        f"reconcile pass over {options.versions} unchanged versions of {options.models} models: {large.seconds:.2f} s "
        f"(limit {options.seconds:.1f}); over {options.versions // 10}: {small.seconds:.2f} s\n"
        f"peak of Python's memory: {large.peak_mb:.1f} MB, {small.peak_mb:.1f} MB; growth {growth_mb:.1f} MB "
        f"(limit {options.growth_mb:.0f})"
    )
    if large.full_seconds is not None:
        print(f"full pass (every release listed): {large.full_seconds:.2f} s, {small.full_seconds:.2f} s")
    return int(large.seconds > options.seconds or growth_mb > options.growth_mb)


def _measure(*, versions: int, models: int, full: bool) -> Measured:
    with tempfile.TemporaryDirectory() as directory, StorageSimulator() as simulator:
        environment = {"SUPABASE_URL": simulator.url, "SUPABASE_SECRET_KEY": simulator.service_key}
        settings = Settings.load(home=Path(directory), environ=environment)
        build(settings.registry_uri).engine.dispose()
        with open_runtime(settings) as made:
            made.stores(settings.bucket)
            fill(made.outbox.engine, partial(simulator.put_object, "models"), versions=versions, models=models)
            reconciler = made.reconciler(made.stores)
            assert list(reconciler.run(now=_now(), scope=Scope.INCREMENTAL)) == []
            start = time.perf_counter()
            assert list(reconciler.run(now=_now(), scope=Scope.INCREMENTAL)) == []
            seconds = time.perf_counter() - start
            start = time.perf_counter()
            assert not full or list(reconciler.run(now=_now(), scope=Scope.FULL)) == []
            full_seconds = time.perf_counter() - start if full else None
            tracemalloc.start()
            assert list(reconciler.run(now=_now(), scope=Scope.INCREMENTAL)) == []
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    return Measured(seconds=seconds, full_seconds=full_seconds, peak_mb=peak / 1e6)


def fill(
    engine: sa.Engine, put: Callable[[str, bytes], None], *, versions: int, models: int, files: int = _FILES
) -> None:
    """Make a registry in which all versions are mirrored and the newest of each model is current, with its objects."""
    each = versions // models
    names = [f"model-{number:04d}" for number in range(models)]
    rows = [(name, number) for name in names for number in range(1, each + 1)]
    facts: list[dict[str, Any]] = [
        {
            "name": name,
            "version": number,
            "stage": "Production" if number == each else "Archived",
            "run_id": str(RunId.at(_FIRST + timedelta(minutes=number))),
            "status": "active" if number == each else "superseded",
        }
        for name, number in rows
    ]
    event = (
        "INSERT INTO supabase_outbox (created_ms, kind, workspace, model, version, stage, previous_stage, "
        "model_deleted, state, attempts, not_before_ms, finished_ms) VALUES "
    )
    tag = "INSERT INTO model_version_tags (name, version, key, value"
    statements: dict[str, list[dict[str, Any]]] = {
        "INSERT INTO registered_models (name) VALUES (:name)": [{"name": name} for name in names],
        "INSERT INTO registered_model_tags (name, key, value) VALUES (:name, 'supabase.key', :name)": [
            {"name": name} for name in names
        ],
        "INSERT INTO model_versions (name, version, current_stage, last_updated_time) "
        "VALUES (:name, :version, :stage, 1)": facts,
        f"{tag}) VALUES (:name, :version, 'supabase.run_id', :run_id)": facts,
        f"{tag}) VALUES (:name, :version, 'supabase.status', :status)": facts,
        f"{tag}) VALUES (:name, :version, 'supabase.channel.latest', 'current since then')": facts[each - 1 :: each],
        f"{event}(1, 'version_created', 'default', :name, :version, 'None', NULL, FALSE, 'done', 1, 0, 1)": facts,
        f"{event}(2, 'stage_changed', 'default', :name, :version, :stage, 'None', FALSE, 'done', 1, 0, 2)": facts,
    }
    with engine.begin() as connection:
        for statement, parameters in statements.items():
            connection.execute(sa.text(statement), parameters)
    for fact in facts:
        paths = ReleasePaths(model_key=fact["name"], run_id=RunId.parse(fact["run_id"]))
        meta = ModelMeta(
            model_name=paths.model_key,
            run_id=fact["run_id"],
            embedding_dim=8,
            files=dict.fromkeys((METRICS_NAME, paths.onnx_name), _RECORD),
        )
        put(paths.meta, meta.to_bytes())
        for key in (paths.metrics, paths.onnx, *(paths.file(f"file-{number}") for number in range(files - 3))):
            put(key, b"x")
        if fact["status"] == "active":
            manifest = _manifest(paths)
            put(f"{paths.model_key}/latest/history/00000001.json", manifest)
            put(f"{paths.model_key}/latest/manifest.json", manifest)


def _manifest(paths: ReleasePaths) -> bytes:
    value = {
        "model_name": paths.model_key,
        "channel": "latest",
        "sequence": 1,
        "current": {
            "run_id": str(paths.run_id),
            "published_at": "2025-11-01T02:40:10Z",
            "onnx_path": paths.onnx,
            "meta_path": paths.meta,
            "metrics_path": paths.metrics,
            "files": {METRICS_NAME: _RECORD.to_object()},
        },
        "previous": [],
    }
    return Manifest.parse(json.dumps(value).encode()).to_bytes()


def _now() -> datetime:
    return datetime.now(timezone.utc)


if __name__ == "__main__":
    raise SystemExit(main())
