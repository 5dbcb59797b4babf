"""Measure the storage requests and database queries per second of an idle worker.

    python -m benchmarks.idle [--seconds 70]

The settings are the defaults, except for the reconcile pass, which is off: it has a benchmark of its own
(benchmarks.reconcile). Exit code 1: a storage request was made, or there was more than one query
per second; on PostgreSQL and SQLite, which wake a worker, more than one in ten seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa
from pydantic import SecretStr

from benchmarks.registries import DATABASES, database_server, environment, scene
from benchmarks.target import Target
from tests.support.simulators.storage import StorageSimulator

LIMITS = {"sqlite": 0.1, "postgresql": 0.1, "mariadb": 1.0}
_SETTLE_SECONDS = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=70, help="how long to watch it (default: 70)")
    options = parser.parse_args(arguments)
    passed = True
    for database in DATABASES:
        requests, queries, cpu = _per_second(database, options.seconds)
        limit = LIMITS[database]
        passed = passed and requests == 0 and queries <= limit
        print(
            f"idle on {database} for {options.seconds:.0f} s: {requests:.2f} requests/s, {queries:.3f} queries/s "
            f"(limit {limit:.1f}), {cpu * 100:.1f}% of a core"
        )
    return int(not passed)


def _per_second(database: str, seconds: float) -> tuple[float, float, float]:
    """Return the storage requests, queries and processor time of an idle worker, per second."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        simulator = stack.enter_context(StorageSimulator())
        server = stack.enter_context(database_server(database))
        place = Target(url=simulator.url, key=SecretStr(simulator.service_key), simulated=True)
        environ = environment(place, server.create() if server else None)
        made = stack.enter_context(scene(directory / "home", environ, reconcile_interval=timedelta(0)))
        made.train()
        made.work()
        queries: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            queries.append(statement)

        sa.event.listen(made.runtime.outbox.engine, "before_cursor_execute", note)
        stop = threading.Event()
        worker = threading.Thread(target=made.runtime.worker().run, args=(stop,))
        worker.start()
        try:
            time.sleep(_SETTLE_SECONDS)
            queries.clear()
            simulator.reset_calls()
            before = time.process_time()
            time.sleep(seconds)
            cpu = time.process_time() - before
            return len(simulator.calls()) / seconds, len(queries) / seconds, cpu / seconds
        finally:
            stop.set()
            worker.join()


if __name__ == "__main__":
    raise SystemExit(main())
