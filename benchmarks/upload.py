"""What verification and resumability add to an upload: a 54 + 54 MB release through our store, against bare POSTs.

    python -m benchmarks.upload [--rounds 9] [--at-once 4] [--threshold 50000000] [--limit 1.15]

Ours hashes on the way, uploads to a temporary key, compares what arrived and moves it, with several files
at once; bare is one httpx POST after the other, nothing checked. They take turns. Exit code 1: the ratio of the medians
is above the limit. SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY name another server than the simulator.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from benchmarks.target import random_file, target
from supabase_bridge.config import RESUMABLE_THRESHOLD_BYTES
from supabase_bridge.object_store import PutOptions
from supabase_bridge.object_store.digest import file_sha256
from supabase_bridge.object_store.supabase import SupabaseStore

SIZES = {"m.onnx": 54_000_000, "m.pt": 54_000_000, "metrics.json": 900, "summary.md": 2_000, "model_meta.json": 1_500}
WARM_UP = 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upload", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="uploads of each kind (default: 9)")
    parser.add_argument("--at-once", type=int, default=4, help="files on their way at the same time (default: 4)")
    parser.add_argument(
        "--threshold",
        type=int,
        default=RESUMABLE_THRESHOLD_BYTES,
        help="send larger files in chunks (default: that of the settings)",
    )
    parser.add_argument("--limit", type=float, default=1.15, help="highest ratio that passes (default: 1.15)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory, target() as place:
        files = {name: random_file(Path(directory, name), size) for name, size in SIZES.items()}
        start = time.perf_counter()
        digests = {name: file_sha256(path) for name, path in files.items()}
        hashing_ms = (time.perf_counter() - start) * 1000
        store = place.store(threshold_bytes=options.threshold, uploads=Path(directory, "uploads"))
        with place.bare() as client, ThreadPoolExecutor(options.at_once) as pool:
            bare_ms, ours_ms = _medians_ms(
                [_bare(client, files), _ours(store, pool, files, digests)],
                store,
                rounds=options.rounds,
            )
        store.close()
    ratio = ours_ms / bare_ms
    print(
        f"54 + 54 MB release to {place}: bare {bare_ms:.0f} ms, ours {ours_ms:.0f} ms, ratio {ratio:.2f} "
        f"(limit {options.limit:.2f}); their SHA-256, which the mirror finds before that: {hashing_ms:.0f} ms"
    )
    return int(ratio > options.limit)


def _bare(client: httpx.Client, files: Mapping[str, Path]) -> Callable[[str], None]:
    def run(prefix: str) -> None:
        for name, path in files.items():
            with path.open("rb") as file:
                client.post(prefix + name, content=file).raise_for_status()

    return run


def _ours(
    store: SupabaseStore, pool: ThreadPoolExecutor, files: Mapping[str, Path], digests: Mapping[str, str]
) -> Callable[[str], None]:
    def run(prefix: str) -> None:
        def create(name: str) -> None:
            store.create(prefix + name, files[name], PutOptions(sha256=digests[name]))

        *payload, commit_record = files
        list(pool.map(create, payload))
        create(commit_record)

    return run


def _medians_ms(runs: Sequence[Callable[[str], None]], store: SupabaseStore, *, rounds: int) -> list[float]:
    """The median time of each kind; the order within a round changes from round to round."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(WARM_UP + rounds):
        turns = list(enumerate(runs))
        for index, run in turns if number % 2 else reversed(turns):
            prefix = f"{uuid.uuid4().hex}/"
            start = time.perf_counter()
            run(prefix)
            times[index].append((time.perf_counter() - start) * 1000)
            store.delete([prefix + name for name in SIZES])
    return [statistics.median(measured[WARM_UP:]) for measured in times]


if __name__ == "__main__":
    raise SystemExit(main())
