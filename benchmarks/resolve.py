"""Measure the requests of a resolve, and the import of the resolver.

    python -m benchmarks.resolve [--rounds 15] [--limit 0.25]

Exit code 1: a first resolve needs more than one request, a resolve of an unchanged manifest more than one 304, the
fastest import takes longer than the limit (seconds), or it loads MLflow, SQLAlchemy or ONNX.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from supabase_bridge import Resolver
from tests.support.consumers import BUCKET, MODEL, Bucket
from tests.support.simulators.storage import StorageSimulator

_IMPORT = """
import sys, time
start = time.perf_counter()
from supabase_bridge import Resolver
seconds = time.perf_counter() - start
heavy = [name for name in ("mlflow", "sqlalchemy", "onnx") if name in sys.modules]
print(seconds, *heavy)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resolve", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="imports and resolves (default: 15)")
    parser.add_argument("--limit", type=float, default=0.25, help="longest import that passes, in s (default: 0.25)")
    options = parser.parse_args(arguments)
    first, unchanged, changed_ms, unchanged_ms = _requests(options.rounds)
    seconds, heavy = _import(options.rounds)
    print(f"resolve: answered {first}, {changed_ms:.1f} ms; unchanged: answered {unchanged}, {unchanged_ms:.1f} ms")
    print(
        f"import of the resolver: {seconds:.3f} s (limit {options.limit:.2f} s), loads {', '.join(heavy) or 'none'} of"
    )
    print("  MLflow, SQLAlchemy, ONNX")
    return int(first != [200] or unchanged != [304] or seconds > options.limit or bool(heavy))


def _requests(rounds: int) -> tuple[list[int], list[int], float, float]:
    """Return the statuses of a first resolve and of an unchanged one, and the median time of each in ms."""
    with StorageSimulator() as simulator, tempfile.TemporaryDirectory() as directory:
        bucket = Bucket.of_simulator(simulator)
        with Resolver(
            url=simulator.url, key=simulator.service_key, bucket=BUCKET, cache_dir=Path(directory)
        ) as resolver:
            answers: list[list[int]] = [[], []]
            times: list[list[float]] = [[], []]
            for _ in range(rounds):
                bucket.promote()
                for index in range(2):
                    simulator.reset_calls()
                    start = time.perf_counter()
                    resolver.resolve(MODEL)
                    times[index].append((time.perf_counter() - start) * 1000)
                    answers[index] = max(answers[index], [call.status for call in simulator.calls()], key=len)
    return answers[0], answers[1], statistics.median(times[0]), statistics.median(times[1])


def _import(rounds: int) -> tuple[float, list[str]]:
    """Return the time of the fastest import in its own process, in seconds, and the heavy packages that were loaded."""
    seconds, heavy = list[float](), set[str]()
    for _ in range(rounds):
        done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True)
        taken, *loaded = done.stdout.split()
        seconds.append(float(taken))
        heavy.update(loaded)
    return min(seconds), sorted(heavy)


if __name__ == "__main__":
    raise SystemExit(main())
