"""How many round trips to storage a promotion and a new release need, and what a late promotion costs.

    python -m benchmarks.round_trips [--latency 0.05] [--limit 5] [--release-limit 8] [--promotions 2000] [--growth 1.2]

The simulator answers each request after the latency, and notes when each began and ended: round trips that follow each
other are counted, and the time from MLflow's answer to the manifest is compared with so many latencies. Of a new
release of small files those count until its commit record is readable. Then, without latency, one model is promoted
again and again: requests, queries that read, queries that write and time of the last ten against those of the tenth to
the twentieth, and the peak of Python's memory during four promotions behind each. Exit code 1: a promotion or a release
takes more serial round trips than its limit (one more is allowed for the first promotion after a start), or the late
promotions need more requests or queries, or more time or memory than the limit of growth.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa
from pydantic import SecretStr

from benchmarks.registries import environment, scene
from benchmarks.target import Target
from supabase_bridge.worker.processor import Processor
from supabase_bridge.worker.worker import Worker
from tests.support.round_trips import serial, until_complete, until_published
from tests.support.scene import Scene
from tests.support.simulators.storage import Delay, Fault, StorageSimulator


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one promotion took: serial round trips and seconds until the manifest; requests, queries, seconds in all.

    Attributes:
        reads: Queries that read; `writes` are the others.
    """

    serial: int
    published: float
    requests: int
    reads: int
    writes: int
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.round_trips", description=__doc__.partition("\n")[0])
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer (default: 0.05)")
    parser.add_argument("--limit", type=int, default=5, help="most serial round trips that pass (default: 5)")
    parser.add_argument("--release-limit", type=int, default=8, help="the same for a new release (default: 8)")
    parser.add_argument("--promotions", type=int, default=2_000, help="promotions of one model (default: 2000)")
    parser.add_argument("--growth", type=float, default=1.2, help="highest ratio of times that passes (default: 1.2)")
    options = parser.parse_args(arguments)
    with _scene() as (made, simulator):
        passed = _serial(made, simulator, options.latency, options.limit)
    with _scene() as (made, simulator):
        passed = _released(made, simulator, options.latency, options.release_limit) and passed
    with _scene() as (made, simulator):
        return int(not _late(made, simulator, options.promotions, options.growth) or not passed)


@contextmanager
def _scene() -> Iterator[tuple[Scene, StorageSimulator]]:
    """Two mirrored versions."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        simulator = stack.enter_context(StorageSimulator())
        place = Target(url=simulator.url, key=SecretStr(simulator.service_key), simulated=True)
        made = stack.enter_context(scene(directory / "home", environment(place), reconcile_interval=timedelta(0)))
        made.train()
        made.train()
        made.work()
        yield made, simulator


def _serial(made: Scene, simulator: StorageSimulator, latency: float, limit: int) -> bool:
    simulator.inject(Fault(action=Delay(latency)))
    started, passed = made.runtime.processor, True
    for name, version, allowed in [
        ("the first promotion of a model", 1, limit),
        ("a promotion", 2, limit),
        ("a rollback", 1, limit),
        ("the first promotion after a start of the worker", 2, limit + 1),
    ]:
        processor = Processor(replace(started._services)) if "start" in name else started
        cost = _promote(made, simulator, version, processor)
        passed = passed and cost.serial <= allowed
        print(
            f"{name}, {latency * 1_000:.0f} ms before each answer: {cost.serial} serial round trips (limit {allowed}), "
            f"manifest after {cost.published * 1_000:.0f} ms, {cost.published / latency:.1f} latencies; "
            f"{cost.requests} requests in all"
        )
    return passed


def _released(made: Scene, simulator: StorageSimulator, latency: float, limit: int) -> bool:
    """Make releases of new versions, before and after the first promotion of their model."""
    simulator.inject(Fault(action=Delay(latency)))
    passed = True
    for name in ("a new release, no release is current", "a new release that is compared with the current one"):
        made.train()
        simulator.reset_calls()
        start = time.monotonic()
        made.work()
        chain = until_complete(simulator.calls())
        took = chain[-1].ended - start
        passed = passed and len(chain) <= limit
        print(
            f"{name}, {latency * 1_000:.0f} ms before each answer: {len(chain)} serial round trips (limit {limit}), "
            f"complete after {took * 1_000:.0f} ms; {len(serial(simulator.calls()))} serial round trips and "
            f"{len(simulator.calls())} requests in all"
        )
        made.promote(1)
        made.work()
    return passed


def _late(made: Scene, simulator: StorageSimulator, promotions: int, growth: float) -> bool:
    def promote(first: int, behind: int) -> list[Cost]:
        return [_promote(made, simulator, 1 + number % 2, made.runtime.processor) for number in range(first, behind)]

    early = promote(0, 20)[10:]
    early_bytes = _peak_bytes(lambda: promote(20, 24))
    late = promote(24, promotions - 4)[-10:]
    late_bytes = _peak_bytes(lambda: promote(promotions - 4, promotions))
    ratio = statistics.median(cost.seconds for cost in late) / statistics.median(cost.seconds for cost in early)
    counts = {
        name: [statistics.median(getattr(cost, name) for cost in costs) for costs in (late, early)]
        for name in ("requests", "reads", "writes")
    }
    of_memory = late_bytes / early_bytes
    milliseconds = statistics.median(cost.seconds for cost in late) * 1_000
    print(
        f"promotion {promotions} against the 10th: "
        + ", ".join(f"{last:.0f} {name} (limit {first:.0f})" for name, (last, first) in counts.items())
        + f"; {milliseconds:.0f} ms, ratio {ratio:.2f} (limit {growth:.2f}); memory {late_bytes / 1e6:.2f} MB, "
        f"ratio {of_memory:.2f} (limit {growth:.2f})"
    )
    return all(last <= first for last, first in counts.values()) and max(ratio, of_memory) <= growth


def _peak_bytes(act: Callable[[], object]) -> int:
    """Return the peak of Python's memory during a call, above that at its begin."""
    tracemalloc.start()
    act()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def _promote(made: Scene, simulator: StorageSimulator, version: int, processor: Processor) -> Cost:
    """Promote a version, and let a worker carry it out."""
    outbox, queries = made.runtime.outbox, list[str]()
    worker = Worker(name="worker", settings=made.settings, outbox=outbox, processor=processor)
    made.promote(version, archive=True)

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        queries.append(statement)

    sa.event.listen(outbox.engine, "before_cursor_execute", note)
    simulator.reset_calls()
    start = time.monotonic()
    worker.drain()
    seconds = time.monotonic() - start
    sa.event.remove(outbox.engine, "before_cursor_execute", note)
    chain = until_published(simulator.calls())
    return Cost(
        serial=len(chain),
        published=chain[-1].ended - start,
        requests=len(simulator.calls()),
        reads=sum(query.startswith("SELECT") for query in queries),
        writes=sum(not query.startswith("SELECT") for query in queries),
        seconds=seconds,
    )


if __name__ == "__main__":
    # Otherwise each process of the checks imports this file and MLflow, which the bridge's command avoids.
    __spec__ = __file__ = None  # type: ignore[assignment]  # multiprocessing reads both
    raise SystemExit(main())
