"""Measure the command `retention plan`, on SQLite and the storage simulator.

    python -m benchmarks.retention [--versions 10000] [--models 100] [--seconds 60] [--growth-mb 20]

There are two registries, the second with ten times as many models. The command runs as its own process, the simulator
in this one; the memory is the highest resident size of the command. Exit code 1: the larger plan takes longer than its
limit, or holds more than the limit above the smaller one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.reconcile import fill
from benchmarks.registries import bridge_command
from mlflow_supabase.store import build
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.factory import open_store
from tests.support.machine import peak_bytes
from tests.support.simulators.storage import StorageSimulator

_POLICY = '[retention]\nthen = "delete"\nkeep = 3\nmin_age_days = 0\n'
_KEEP = 3
_LOOK_SECONDS = 0.02


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
        f"highest resident size: {large.peak_mb:.1f} MB, {small.peak_mb:.1f} MB; growth {growth_mb:.1f} MB "
        f"(limit {options.growth_mb:.0f})"
    )
    return int(large.seconds > options.seconds or growth_mb > options.growth_mb)


def _measure(*, versions: int, models: int) -> Measured:
    with tempfile.TemporaryDirectory() as directory, StorageSimulator() as simulator:
        home = Path(directory)
        (home / "supabase-bridge.toml").write_text(_POLICY)
        environ = {"SUPABASE_URL": simulator.url, "SUPABASE_SECRET_KEY": simulator.service_key}
        settings = Settings.load(home=home, environ=environ)
        registry = build(settings.registry_uri)
        store = open_store(settings, settings.bucket)
        store.ensure_bucket()
        store.close()
        fill(registry.engine, partial(simulator.put_object, settings.bucket), versions=versions, models=models)
        registry.engine.dispose()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "SUPABASE_"))}
        start = time.perf_counter()
        with (home / "plan").open("wb") as output:
            command = bridge_command("retention", "plan", "--home", str(home))
            process = subprocess.Popen(command, env={**kept, **environ}, stdout=output, stderr=output)
            peak = 0
            while process.poll() is None:
                peak = peak_bytes(process.pid) or peak
                time.sleep(_LOOK_SECONDS)
        seconds = time.perf_counter() - start
        assert process.returncode == 0
        assert f"{versions - models * _KEEP} releases would go" in (home / "plan").read_text()
    return Measured(seconds=seconds, peak_mb=peak / 1e6)


if __name__ == "__main__":
    raise SystemExit(main())
