"""Measure the time from MLflow's answer to a promotion until a consumer reads the new manifest, with an idle worker.

    python -m benchmarks.latency [--database sqlite] [--rounds 100] [--median 60] [--p99 250]

A real MLflow server, a real worker, the storage that SUPABASE_URL names or the simulator, each in a process of its own.
Exit code 1: the median or the 99th percentile is above its limit, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx

from benchmarks.registries import (
    bridge_command,
    database_server,
    environment,
    mlflow_server,
    process,
    scene,
    transition,
)
from benchmarks.target import BUCKET, Target, target
from tests.support.scene import MODEL

WARM_UP = 3
_IDLE_SECONDS = 0.5
_LOOK_SECONDS = 0.002
_LIMIT_SECONDS = 60


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__.partition("\n")[0])
    parser.add_argument("--database", choices=("sqlite", "postgresql", "mariadb"), default="sqlite")
    parser.add_argument("--rounds", type=int, default=100, help="promotions (default: 100)")
    parser.add_argument("--median", type=float, default=60, help="highest median that passes (default: 60)")
    parser.add_argument("--p99", type=float, default=250, help="highest 99th percentile that passes (default: 250)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory, target() as place:
        times_ms = sorted(_measure(Path(directory), place, options.database, rounds=options.rounds))
    median, p99 = statistics.median(times_ms), times_ms[min(len(times_ms) - 1, round(len(times_ms) * 0.99))]
    print(
        f"answer to manifest on {options.database}, {place}, {len(times_ms)} promotions: median {median:.0f} ms "
        f"(limit {options.median:.0f}), 99th percentile {p99:.0f} ms (limit {options.p99:.0f}), "
        f"most {times_ms[-1]:.0f} ms"
    )
    return int(median > options.median or p99 > options.p99)


def _measure(directory: Path, place: Target, database: str, *, rounds: int) -> list[float]:
    home = directory / "home"
    with ExitStack() as stack:
        server = stack.enter_context(database_server(database))
        environ = environment(place, server.create() if server else None)
        environ["SUPABASE_BRIDGE_BUCKET"] = BUCKET
        with scene(home, environ) as made:
            versions = [made.train(), made.train()]
            made.work()
            backend, registry = made.settings.database_url, made.settings.registry_uri
        client = stack.enter_context(mlflow_server(home, environ, backend=backend, registry=registry))
        stack.enter_context(process(bridge_command("worker", "--home", str(home)), home, environ))
        bare = stack.enter_context(place.bare())
        times_ms: list[float] = []
        for number in range(WARM_UP + rounds):
            transition(client, MODEL, versions[number % 2], "Production")
            start = time.perf_counter()
            wait_for_manifest(bare, number + 1)
            times_ms.append((time.perf_counter() - start) * 1_000)
            time.sleep(_IDLE_SECONDS)
    return times_ms[WARM_UP:]


def wait_for_manifest(bare: httpx.Client, sequence: int) -> None:
    """Read the manifest as a consumer does, until it has this sequence."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    while True:
        answer = bare.get(f"{MODEL}/latest/manifest.json")
        if answer.status_code == 200 and json.loads(answer.content)["sequence"] >= sequence:
            return
        assert time.monotonic() < deadline, f"manifest {sequence} does not come: {answer.text[:200]}"
        time.sleep(_LOOK_SECONDS)


if __name__ == "__main__":
    raise SystemExit(main())
