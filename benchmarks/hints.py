"""Measure the time from an activation to the callback of a watching consumer, with hints over Realtime.

    python -m benchmarks.hints [--rounds 20] [--median 300]

The time begins before the manifest is written, and ends in the callback of `Resolver.watch`, whose polls are an hour
apart. Storage and Realtime are simulated. Exit code 1: the median is above its limit, in milliseconds.
"""

from __future__ import annotations

import argparse
import queue
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timedelta, timezone

from supabase_bridge import Resolver
from supabase_bridge.core.layout import RunId
from supabase_bridge.releases.hints import HintSender
from supabase_bridge.releases.manual import activate_manually
from supabase_bridge.settings.model import Settings
from tests.support.consumers import BUCKET, FIRST, LATEST, MODEL, SECOND, Bucket
from tests.support.simulators.realtime import RealtimeProject
from tests.support.simulators.storage import StorageSimulator
from tests.support.stores import supabase_store

_INTERVAL = timedelta(hours=1)
_PAUSE_SECONDS = 1.1
"""Between two activations; a consumer polls once a second at most."""
_LIMIT_SECONDS = 30


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hints", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="activations (default: 20)")
    parser.add_argument("--median", type=float, default=300, help="highest median that passes (default: 300)")
    options = parser.parse_args(arguments)
    times_ms = sorted(_measure(options.rounds))
    median = statistics.median(times_ms)
    print(
        f"activation to callback with hints, {len(times_ms)} activations: median {median:.0f} ms "
        f"(limit {options.median:.0f}), most {times_ms[-1]:.0f} ms"
    )
    return int(median > options.median)


def _measure(rounds: int) -> list[float]:
    with StorageSimulator() as storage, closing(supabase_store(storage, bucket=BUCKET)) as store:
        bucket = Bucket.of_simulator(storage)
        bucket.release(FIRST)
        bucket.release(SECOND)
        storage.let_anon_read(BUCKET)
        called: queue.Queue[str] = queue.Queue()
        times_ms: list[float] = []

        def activate(run_id: str) -> None:
            activate_manually(store, LATEST, RunId.parse(run_id), now=datetime.now(timezone.utc))

        activate(SECOND)
        with RealtimeProject(storage) as project:
            environ = {"SUPABASE_URL": project.url, "SUPABASE_SECRET_KEY": storage.service_key}
            settings = Settings.load(environ=environ, realtime=True)
            with (
                closing(HintSender.of_settings(settings)) as hints,
                Resolver(url=project.url, key=storage.anon_key, realtime=True) as resolver,
                resolver.watch(MODEL, lambda release: called.put(release.run_id), interval=_INTERVAL),
            ):
                called.get(timeout=_LIMIT_SECONDS)
                project.wait_for_subscribers(1, LATEST.topic(BUCKET))
                for number in range(rounds):
                    time.sleep(_PAUSE_SECONDS)
                    run_id = (FIRST, SECOND)[number % 2]
                    start = time.perf_counter()
                    activate(run_id)
                    hints.send(BUCKET, LATEST)
                    assert called.get(timeout=_LIMIT_SECONDS) == run_id
                    times_ms.append((time.perf_counter() - start) * 1_000)
    return times_ms


if __name__ == "__main__":
    raise SystemExit(main())
