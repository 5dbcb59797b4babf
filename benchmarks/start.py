"""How soon the worker of `supabase-bridge server` works after the server's first healthy answer, and what it holds.

    python -m benchmarks.start [--rounds 3] [--seconds 0.5] [--mebibytes 30] [--rest 20]

Each round starts the command, promotes a mirrored version at the first healthy answer, waits for its manifest, and
promotes two others, in the first round also one that is not mirrored yet. The memory (PSS) is that of the worker with
all processes that it has started, after a rest; beside it that of a process that has only imported MLflow's client and
opened its stores.
Exit code 1: the median is above the limit in seconds, or the worker holds more than the limit above the import.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from benchmarks.registries import bridge_command, environment, process, scene, transition
from benchmarks.target import BUCKET, target
from tests.support.machine import free_port
from tests.support.scene import MODEL

_IMPORT = """
import sys, mlflow
import mlflow.store.model_registry.sqlalchemy_store, mlflow.store.tracking.sqlalchemy_store
client = mlflow.MlflowClient(tracking_uri=sys.argv[1], registry_uri=sys.argv[1])
client.search_registered_models()
print("ready", flush=True)
sys.stdin.read()
"""
_LIMIT_SECONDS = 120
_LOOK_SECONDS = 0.005


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="starts (default: 3)")
    parser.add_argument("--seconds", type=float, default=0.5, help="highest median that passes (default: 0.5)")
    parser.add_argument("--mebibytes", type=float, default=30, help="highest memory above the import (default: 30)")
    parser.add_argument("--rest", type=float, default=20, help="seconds of rest before memory is read (default: 20)")
    options = parser.parse_args(arguments)
    first, second = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as directory, target() as place:
        home = Path(directory, "home")
        environ = {**environment(place), "SUPABASE_BRIDGE_BUCKET": BUCKET}
        with scene(home, environ) as made:
            versions = [made.train(), made.train()]
            made.work()
            versions.append(made.train())  # Not mirrored: the checks start their processes.
            database = made.settings.database_url
        imported = _imported(database)
        with place.bare() as bare:
            for number in range(options.rounds):
                channel = f"{MODEL}/latest/"
                last = number + 1 == options.rounds
                times, held = _round(home, environ, bare, channel, versions, options.rest if last else 0)
                first.append(times[0])
                second.append(times[1])
    over = (held - imported) / 2**20
    median, later = statistics.median(first), statistics.median(second)
    print(
        f"first healthy answer, promotion, manifest: {median:.2f} s after MLflow's answer (limit {options.seconds}), "
        f"the next one {later:.2f} s, ratio {median / later:.1f}; {place}, {options.rounds} starts"
    )
    print(
        f"at rest: worker {held / 2**20:.0f} MiB, MLflow's import {imported / 2**20:.0f} MiB, "
        f"difference {over:.0f} MiB (limit {options.mebibytes:.0f}), ratio {held / imported:.2f}"
    )
    return int(median > options.seconds or over > options.mebibytes)


def _round(
    home: Path, environ: dict[str, str], bare: httpx.Client, channel: str, versions: Sequence[int], rest: float
) -> tuple[list[float], int]:
    """Start the command; the seconds from MLflow's answer to the manifest for three promotions; the memory at rest."""
    port, times, held = free_port(), list[float](), 0
    sequence = _sequence(bare, channel)
    with process(bridge_command("server", "--home", str(home), "--port", str(port)), home, environ) as server:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=f"{url}/api/2.0/mlflow/", timeout=60) as client:
            _wait(lambda: _is_healthy(client, f"{url}/health"))
            for version in versions:
                transition(client, MODEL, version, "Production")
                start = time.perf_counter()
                sequence += 1
                wanted = sequence
                _wait(lambda: _sequence(bare, channel) >= wanted)  # noqa: B023 - called here
                times.append(time.perf_counter() - start)
        if rest:
            time.sleep(rest)
            held = sum(map(_pss, _descendants(_worker_of(server.pid))))
    return times, held


def _is_healthy(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).is_success
    except httpx.TransportError:
        return False


def _wait(reached: object) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    assert callable(reached)
    while not reached():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(_LOOK_SECONDS)


def _sequence(bare: httpx.Client, channel: str) -> int:
    answer = bare.get(f"{channel}manifest.json")
    return int(json.loads(answer.content)["sequence"]) if answer.status_code == 200 else 0


def _imported(database: str) -> int:
    """The memory of a process that has imported MLflow and opened its stores."""
    with subprocess.Popen(
        [sys.executable, "-c", _IMPORT, database], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as importing:
        assert importing.stdin is not None
        assert importing.stdout is not None
        importing.stdout.readline()
        held = _pss(importing.pid)
        importing.stdin.close()
        importing.wait()
    return held


def _children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def _descendants(pid: int) -> list[int]:
    return [pid, *(found for child in _children(pid) for found in _descendants(child))]


def _worker_of(server: int) -> int:
    return next(pid for pid in _children(server) if b"\0worker\0" in Path(f"/proc/{pid}/cmdline").read_bytes())


def _pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])


if __name__ == "__main__":
    raise SystemExit(main())
