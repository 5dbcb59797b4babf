"""Measure what verification adds to a download: our hashed stream against a bare httpx stream.

    python -m benchmarks.download [--rounds 9] [--size 200000000] [--limit 1.15]

Both write to a file. They take turns. Exit code 1: the ratio of the medians is above the limit. SUPABASE_URL and
SUPABASE_SECRET_KEY name another server than the simulator.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from benchmarks.target import random_file, target
from supabase_bridge.core.documents import FileRecord
from supabase_bridge.storage.base import ObjectStore, PutOptions
from supabase_bridge.storage.download import fetch
from supabase_bridge.storage.hashing import hash_body

WARM_UP = 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.download", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="downloads of each kind (default: 9)")
    parser.add_argument("--size", type=int, default=200_000_000, help="bytes of the file (default: 200000000)")
    parser.add_argument("--limit", type=float, default=1.15, help="highest ratio that passes (default: 1.15)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory, target() as place:
        original, copy = random_file(Path(directory, "original"), options.size), Path(directory, "copy")
        store, key, digests = place.store(), uuid.uuid4().hex, hash_body(original)
        record = FileRecord(size_bytes=digests.size_bytes, sha256=digests.sha256)
        store.overwrite(key, original, PutOptions(sha256=digests.sha256))
        original.unlink()
        with place.bare() as client:
            bare_ms, ours_ms = _medians_ms(
                [lambda: _bare(client, key, copy), lambda: _ours(store, key, copy, record)], rounds=options.rounds
            )
        store.delete([key])
        store.close()
    ratio = ours_ms / bare_ms
    print(
        f"{options.size / 1e6:.0f} MB from {place}: bare {bare_ms:.0f} ms, verified {ours_ms:.0f} ms, "
        f"ratio {ratio:.2f} (limit {options.limit:.2f})"
    )
    return int(ratio > options.limit)


def _bare(client: httpx.Client, key: str, copy: Path) -> None:
    with client.stream("GET", key) as response, copy.open("wb") as file:
        response.raise_for_status()
        for piece in response.iter_raw():
            file.write(piece)


def _ours(store: ObjectStore, key: str, copy: Path, record: FileRecord) -> None:
    assert fetch(store, key, copy).record == record


def _medians_ms(runs: Sequence[Callable[[], None]], *, rounds: int) -> list[float]:
    """Return the median time of each kind; the order within a round changes from round to round."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(WARM_UP + rounds):
        turns = list(enumerate(runs))
        for index, run in turns if number % 2 else reversed(turns):
            start = time.perf_counter()
            run()
            times[index].append((time.perf_counter() - start) * 1000)
    return [statistics.median(measured[WARM_UP:]) for measured in times]


if __name__ == "__main__":
    raise SystemExit(main())
