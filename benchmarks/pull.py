"""Measure what verification adds to a pull: a pull into an empty cache against a bare httpx download.

    python -m benchmarks.pull [--rounds 9] [--size 200000000] [--limit 1.10] [--round-trip-ms 50]

Both write to files; they take turns. A second pull from the cache follows, and its requests are counted. Exit code 1:
the ratio of the medians is above the limit, or the second pull downloaded a file. The simulator runs in its own
process; SUPABASE_URL and SUPABASE_SECRET_KEY name another server. With a round-trip time, both go through a proxy with
that time and the window that Linux gives a connection, 3 MB.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx

from benchmarks.target import BUCKET, Target, random_file, target
from supabase_bridge import Resolver
from supabase_bridge.core.documents import FileRecord
from supabase_bridge.storage.base import PutOptions
from supabase_bridge.storage.hashing import hash_file
from tests.support.consumers import MODEL, Bucket
from tests.support.distant import distant
from tests.support.simulators.storage import StorageSimulator

WARM_UP = 1
WINDOW_BYTES = 3_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pull", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="pulls of each kind (default: 9)")
    parser.add_argument("--size", type=int, default=200_000_000, help="bytes of the model (default: 200000000)")
    parser.add_argument("--limit", type=float, default=1.1, help="highest ratio that passes (default: 1.10)")
    parser.add_argument(
        "--round-trip-ms", type=float, default=0, help="of the connection (default: that to the server)"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory, target() as place, _released(place, options.size) as keys:
        cache, copies = Path(directory, "cache"), Path(directory, "copies")
        with _far(place, options.round_trip_ms) as far, far.bare() as client:
            bare_ms, ours_ms = _medians_ms(
                [lambda: _bare(client, keys, copies), lambda: _ours(far, cache)],
                before=lambda: _clear(cache, copies),
                rounds=options.rounds,
            )
        bodies, warm_ms = _warm(Path(directory, "small"))
    ratio = ours_ms / bare_ms
    distance = f", {options.round_trip_ms:.0f} ms away" if options.round_trip_ms else ""
    print(
        f"{options.size / 1e6:.0f} MB from {place}{distance}: bare {bare_ms:.0f} ms, cold pull {ours_ms:.0f} ms, "
        f"ratio {ratio:.2f} (limit {options.limit:.2f})"
    )
    print(f"warm pull of a small release: {warm_ms:.0f} ms, {bodies} file bodies over the network (limit 0)")
    return int(ratio > options.limit or bodies > 0)


@contextmanager
def _released(place: Target, size_bytes: int) -> Iterator[list[str]]:
    """Make a release with a model of this size current in `latest`; return the keys of its files."""
    store, keys = place.store(), list[str]()

    def put(key: str, data: bytes) -> None:
        store.overwrite(key, data, PutOptions())
        keys.append(key)

    bucket = Bucket(put)
    with tempfile.TemporaryDirectory() as directory:
        model = random_file(Path(directory, "model"), size_bytes)
        sha256 = hash_file(model).sha256
        bucket.release()
        made = bucket.manifest(sequence=1)
        onnx = made.current.onnx_path
        records = {**made.current.files, onnx.rpartition("/")[2]: FileRecord(size_bytes=size_bytes, sha256=sha256)}
        current = made.current.model_copy(update={"files": records})
        store.overwrite(onnx, model, PutOptions(sha256=sha256))
        files = list(keys)
        bucket.put("two_tower/latest/manifest.json", made.model_copy(update={"current": current}).to_bytes())
    try:
        yield files
    finally:
        store.delete(keys)
        store.close()


@contextmanager
def _far(place: Target, round_trip_ms: float) -> Iterator[Target]:
    """Yield the server as it is at the end of a long connection; as it is, if no time is given."""
    if not round_trip_ms:
        yield place
        return
    with distant(place.url, round_trip_ms=round_trip_ms, window_bytes=WINDOW_BYTES) as url:
        yield replace(place, url=url)


def _clear(*directories: Path) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _resolver(place: Target, cache: Path) -> Resolver:
    return Resolver(url=place.url, key=place.key, bucket=BUCKET, cache_dir=cache, timeout=timedelta(seconds=60))


def _bare(client: httpx.Client, keys: Sequence[str], copies: Path) -> None:
    copies.mkdir()
    for number, key in enumerate(keys):
        with client.stream("GET", key) as response, (copies / str(number)).open("wb") as file:
            response.raise_for_status()
            for piece in response.iter_raw():
                file.write(piece)


def _ours(place: Target, cache: Path) -> None:
    with _resolver(place, cache) as resolver:
        resolver.pull(MODEL)


def _warm(cache: Path) -> tuple[int, float]:
    """Return how many files a second pull of small files downloads, and its time in ms."""
    with StorageSimulator() as simulator:
        Bucket.of_simulator(simulator).promote()
        for _ in range(2):
            simulator.reset_calls()
            start = time.perf_counter()
            with Resolver(url=simulator.url, key=simulator.service_key, cache_dir=cache) as resolver:
                resolver.pull(MODEL)
            taken_ms = (time.perf_counter() - start) * 1000
        files = [call for call in simulator.calls() if not call.path.endswith("/manifest.json")]
        return len(files), taken_ms


def _medians_ms(runs: Sequence[Callable[[], None]], *, before: Callable[[], object], rounds: int) -> list[float]:
    """Return the median time of each kind; the order within a round changes from round to round."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(WARM_UP + rounds):
        turns = list(enumerate(runs))
        for index, run in turns if number % 2 else reversed(turns):
            before()
            start = time.perf_counter()
            run()
            times[index].append((time.perf_counter() - start) * 1000)
    return [statistics.median(measured[WARM_UP:]) for measured in times]


if __name__ == "__main__":
    raise SystemExit(main())
