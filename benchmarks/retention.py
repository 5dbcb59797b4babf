"""Measure a retention plan, on SQLite and the storage simulator.

    python -m benchmarks.retention [--versions 10000] [--models 100] [--seconds 60] [--growth-mb 20]

There are two registries, the second with ten times as many models. The time is that of a plan of the larger one; the
memory is the difference of Python's peaks. Exit code 1: one of them is above its limit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.reconcile import fill
from mlflow_supabase.store import build
from supabase_bridge.app.retention import planner
from supabase_bridge.app.runtime import Runtime, open_runtime
from supabase_bridge.retention.plan import ForeignFolders
from supabase_bridge.settings.model import Settings
from tests.support.simulators.storage import StorageSimulator

_KEEP = 3


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The plan of one registry."""

    seconds: float
    peak_mb: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retention", description=__doc__)
    parser.add_argument("--versions", type=int, default=10_000, help="versions of the larger registry")
    parser.add_argument("--models", type=int, default=100, help="registered models of the larger registry")
    parser.add_argument("--seconds", type=float, default=60.0, help="longest plan that passes")
    parser.add_argument("--growth-mb", type=float, default=20.0, help="highest growth of the peak that passes")
    options = parser.parse_args(arguments)
    small = _measure(versions=options.versions // 10, models=max(1, options.models // 10))
    large = _measure(versions=options.versions, models=options.models)
    growth_mb = large.peak_mb - small.peak_mb
    print(
        f"retention plan of {options.versions} versions of {options.models} models: {large.seconds:.1f} s "
        f"(limit {options.seconds:.0f}); of {options.versions // 10}: {small.seconds:.1f} s\n"
        f"peak of Python's memory: {large.peak_mb:.1f} MB, {small.peak_mb:.1f} MB; growth {growth_mb:.1f} MB "
        f"(limit {options.growth_mb:.0f})"
    )
    return int(large.seconds > options.seconds or growth_mb > options.growth_mb)


def _measure(*, versions: int, models: int) -> Measured:
    with tempfile.TemporaryDirectory() as directory, StorageSimulator() as simulator:
        environment = {"SUPABASE_URL": simulator.url, "SUPABASE_SECRET_KEY": simulator.service_key}
        policy = {"then": "delete", "keep": _KEEP, "min_age_days": 0}
        settings = Settings.load(home=Path(directory), environ=environment, retention=policy)
        build(settings.registry_uri).engine.dispose()
        with open_runtime(settings) as runtime:
            runtime.stores(settings.bucket)
            fill(runtime.outbox.engine, partial(simulator.put_object, "models"), versions=versions, models=models)
            start = time.perf_counter()
            count = _planned(runtime)
            seconds = time.perf_counter() - start
            tracemalloc.start()
            assert _planned(runtime) == count == versions - models * _KEEP
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    return Measured(seconds=seconds, peak_mb=peak / 1e6)


def _planned(runtime: Runtime) -> int:
    """Return the number of releases that a plan lets go; no plan of a model is kept."""
    return sum(
        sum(release.goes for release in item)
        for item in planner(runtime).plan(now=runtime.outbox.now())
        if not isinstance(item, ForeignFolders)
    )


if __name__ == "__main__":
    raise SystemExit(main())
