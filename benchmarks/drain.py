"""Measure how much faster two workers process a backlog of small versions than one worker.

    python -m benchmarks.drain [--database postgresql] [--versions 1000] [--delay 0.03] [--limit 1.7]

Each worker is a process of its own. A run's time lasts from the first claim to the last finished event, by the
database's clock, so the start of processes does not count. The simulator answers every request after a delay, like a
server across a network; on few cores the workers share the processors for the rest of the time. Exit code 1: the ratio
is below the limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import sqlalchemy as sa

from benchmarks.registries import bridge_command, database_server, environment, process, scene
from benchmarks.target import Target, simulator
from supabase_bridge.outbox.tables import OUTBOX
from tests.support.databases import copy_sqlite
from tests.support.scene import model_files
from tests.support.simulators.storage import Delay, Fault, StorageSimulator

MODELS = 20
_ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drain", description=__doc__.partition("\n")[0])
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="postgresql")
    parser.add_argument("--versions", type=int, default=1_000, help="versions in the backlog (default: 1000)")
    parser.add_argument("--delay", type=float, default=0.03, help="seconds before each answer (default: 0.03)")
    parser.add_argument("--limit", type=float, default=1.7, help="lowest ratio that passes (default: 1.7)")
    parser.add_argument("--simulator", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.simulator:
        _simulate(options.delay)
        return 0
    slow = ("-m", "benchmarks.drain", "--simulator", "--delay", str(options.delay))
    with tempfile.TemporaryDirectory() as directory, simulator(*slow) as place:
        one, two = _seconds(Path(directory), place, options.database, options.versions)
    print(
        f"{options.versions} versions on {options.database}, {options.delay * 1_000:.0f} ms before each answer: "
        f"one worker {one:.1f} s, two {two:.1f} s, ratio {one / two:.2f} (limit {options.limit:.2f})"
    )
    return int(one / two < options.limit)


def _simulate(delay: float) -> None:
    with StorageSimulator() as simulator:
        simulator.inject(Fault(action=Delay(delay)))
        print(json.dumps({"url": simulator.url, "service_key": simulator.service_key}), flush=True)
        sys.stdin.read()


def _seconds(directory: Path, place: Target, database: str, versions: int) -> list[float]:
    """Return the time of one worker for the backlog, and the time of two workers for a copy of it."""
    home = directory / "home"
    with ExitStack() as stack:
        server = stack.enter_context(database_server(database))
        backlog = server.create() if server else f"sqlite:///{home / 'mlflow.db'}"
        with scene(home, environment(place, backlog)) as made:
            files = model_files()
            for number in range(versions):
                made.train(model=f"tower_{number % MODELS}", files=files)
        times: list[float] = []
        for workers in (1, 2):
            if server:
                url = server.create(template=backlog)
            else:
                url = f"sqlite:///{directory / f'{workers}.db'}"
                copy_sqlite(home / "mlflow.db", directory / f"{workers}.db")
            environ = {**environment(place, url), "SUPABASE_BRIDGE_BUCKET": f"drained-by-{workers}"}
            times.append(_drain(home, url, environ, workers))
    return times


def _drain(home: Path, url: str, environ: dict[str, str], workers: int) -> float:
    command = bridge_command("worker", "--once", "--home", str(home))
    with ExitStack() as stack:
        running = [stack.enter_context(process(command, home, environ)) for _ in range(workers)]
        codes = [worker.wait() for worker in running]
    assert codes == [0] * workers, f"the workers ended with {codes}"
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        span = sa.func.max(OUTBOX.c.finished_ms) - sa.func.min(OUTBOX.c.started_ms)
        milliseconds: int = connection.execute(sa.select(span)).scalar_one()
    engine.dispose()
    return milliseconds / 1_000


if __name__ == "__main__":
    raise SystemExit(main())
