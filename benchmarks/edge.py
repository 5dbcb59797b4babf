"""Measure the Edge Function that recommends: CPU time and memory of its process, in Deno, at the specified widths.

    python -m benchmarks.edge [--items 2000]

A cold start is everything from the start of Deno to the first recommendation: the signed manifest, the user tower of
8.9 MB and the vocabulary are fetched, verified and opened, and `match_items` answers. Then come requests with the tower
in memory, and a switch to another release. Supabase ends a function at 256 MB, and at 2 s of CPU time a request. Exit
code 1: a figure misses its limit.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psycopg

from supabase_bridge.client.release import Release
from supabase_bridge.core.layout import ReleasePaths, RunId
from supabase_bridge.embeddings.sets import EmbeddingSets
from tests.support.consumers import BUCKET, FIRST, MODEL, SECOND, Bucket, new_signer, record
from tests.support.databases import running_pgvector
from tests.support.edge_function import EdgeFunction, pem, serving
from tests.support.embedding_sets import rows
from tests.support.machine import peak_bytes
from tests.support.simulators.postgrest import Postgrest
from tests.support.simulators.storage import StorageSimulator
from tests.support.two_tower import USER_WIDTH, user_tower

CPU_LIMIT_SECONDS = 2.0
MEMORY_LIMIT_MB = 256.0
HIDDEN, WIDTH, TAGS = 512, 256, 4096
WARM_REQUESTS = 50
_GRANTS = """
grant usage on schema supabase_bridge to service_role;
grant execute on all functions in schema supabase_bridge to service_role;
"""
_HISTORY = [
    {"item": str(n), "rating": 1 + n % 5, "tags": [f"subjects:m.{n:06}{tag}" for tag in range(20)]} for n in range(100)
]
_FEATURES = {
    "features/tag_vocab.json": {f"subjects:m.{n // 20:06}{n % 20}": n for n in range(TAGS)},
    "features/schema.json": {"user_width": USER_WIDTH, "tags_of_a_user": 48},
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edge", description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=2_000, help="items of a release (default: 2,000)")
    options = parser.parse_args(arguments)
    signer, passed = new_signer(), True

    def report(name: str, value: float, limit: float) -> None:
        nonlocal passed
        passed = passed and value <= limit
        print(f"{name}: {value:.3g} (limit {limit:g}){'' if value <= limit else '  MISSED'}")

    with running_pgvector() as server, StorageSimulator() as project, tempfile.TemporaryDirectory() as home:
        url = server.create().replace("postgresql+psycopg://", "postgresql://")
        project.serve_rest(Postgrest(url).handle)
        bucket = Bucket.of_simulator(project, signer=signer)
        _load(url, options.items)
        _promote(bucket, FIRST)
        project.let_anon_read(BUCKET)
        environment = {
            "SUPABASE_URL": project.url,
            "SUPABASE_PUBLISHABLE_KEY": project.anon_key,
            "SUPABASE_SECRET_KEY": project.service_key,
            "MODEL_TRUSTED_KEY": pem(signer),
            "MODEL_MAX_AGE_SECONDS": str(10**10),
        }
        with serving("recommend.ts", Path(home), environment) as function:
            started = _cpu_seconds(function)
            _recommend(function, FIRST)
            cold = _cpu_seconds(function)
            report("cold start to the first recommendation, CPU s", cold, CPU_LIMIT_SECONDS)
            print(f"of that the start of Deno and the function's modules: {started:.2f}")
            report("memory of a cold start, MB", _memory_mb(function), MEMORY_LIMIT_MB)
            for _ in range(WARM_REQUESTS):
                _recommend(function, FIRST)
            warm = (_cpu_seconds(function) - cold) / WARM_REQUESTS
            report("a request with the tower in memory, CPU s", warm, CPU_LIMIT_SECONDS)
            _promote(bucket, SECOND)
            before = _cpu_seconds(function)
            _recommend(function, SECOND)
            report("the first request after a switch, CPU s", _cpu_seconds(function) - before, CPU_LIMIT_SECONDS)
            print(f"memory with both releases' towers: {_memory_mb(function):.0f} MB")
    return 0 if passed else 1


def _load(url: str, count: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        sets = EmbeddingSets(connection)
        sets.init(MODEL, dimension=WIDTH)
        for seed, run_id in enumerate((FIRST, SECOND)):
            paths = ReleasePaths(model_key=MODEL, run_id=RunId.parse(run_id))
            release = Release(model=MODEL, run_id=run_id, files={paths.onnx_name: record(b"whole")}, signed=False)
            sets.load(release, items=rows(count, seed=seed, width=WIDTH))
        connection.execute(_GRANTS)


def _promote(bucket: Bucket, run_id: str) -> None:
    features = {name: json.dumps(value, indent=1).encode() for name, value in _FEATURES.items()}
    tower = user_tower(int(run_id == SECOND), hidden=HIDDEN, width=WIDTH)
    bucket.promote(run_id, onnx=b"whole", more={**features, f"{MODEL}_{run_id}.user.onnx": tower})


def _recommend(function: EdgeFunction, run_id: str) -> None:
    status, answer = function.ask({"history": _HISTORY, "k": 10})
    assert status == 200, answer
    assert (answer["run_id"], len(answer["items"])) == (run_id, 10), answer


def _cpu_seconds(function: EdgeFunction) -> float:
    """Return the CPU time of all threads of the process since its start."""
    fields = Path(f"/proc/{function.process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mb(function: EdgeFunction) -> float:
    """Return the largest resident size that the process had."""
    found = peak_bytes(function.process.pid)
    assert found > 0
    return found / 1e6


if __name__ == "__main__":
    raise SystemExit(main())
