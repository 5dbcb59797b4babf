"""Measure what the mirror adds to an upload: a 54 + 54 MB release against bare POSTs.

    python -m benchmarks.upload [--rounds 9] [--threshold 100000000] [--limit 1.15]

The mirror makes a private copy of each file and hashes it meanwhile, claims the release's folder, sends all files at
once straight to their keys, compares the result, and moves the commit record. The bare way is one httpx POST after the
other, without checks. A third way hashes the same bytes by MD5 and SHA-256 before the bare one, because every verified
upload needs that. They take turns. Exit code 1: the ratio of the medians is above the limit. SUPABASE_URL and
SUPABASE_SECRET_KEY name another server than the simulator.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx

from benchmarks.release import medians_ms, placed, release_files
from benchmarks.target import target
from supabase_bridge.settings.model import RESUMABLE_THRESHOLD_BYTES
from supabase_bridge.storage.hashing import hash_body


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upload", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="uploads of each kind (default: 9)")
    parser.add_argument(
        "--threshold",
        type=int,
        default=RESUMABLE_THRESHOLD_BYTES,
        help="send larger files in chunks (default: that of the settings)",
    )
    parser.add_argument("--limit", type=float, default=1.15, help="highest ratio that passes (default: 1.15)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory, target() as place:
        files = release_files(Path(directory, "source"))
        store = place.store(threshold_bytes=options.threshold, uploads=Path(directory, "uploads"))
        with place.bare() as client:
            bare = _bare(client, files)
            ours = placed(store, Path(directory, "source"), Path(directory, "scratch"))
            bare_ms, ours_ms, bound_ms = medians_ms([bare, ours, _hashed(bare, files)], store, rounds=options.rounds)
        store.close()
    ratio = ours_ms / bare_ms
    print(
        f"54 + 54 MB release to {place}: bare {bare_ms:.0f} ms, ours {ours_ms:.0f} ms, ratio {ratio:.2f} "
        f"(limit {options.limit:.2f}); hashed, then bare: {bound_ms:.0f} ms, ratio {bound_ms / bare_ms:.2f}"
    )
    return int(ratio > options.limit)


def _hashed(bare: Callable[[str], None], files: Mapping[str, Path]) -> Callable[[str], None]:
    def run(prefix: str) -> None:
        for path in files.values():
            hash_body(path)
        bare(prefix)

    return run


def _bare(client: httpx.Client, files: Mapping[str, Path]) -> Callable[[str], None]:
    def run(prefix: str) -> None:
        for name, path in files.items():
            with path.open("rb") as file:
                client.post(prefix + name, content=file).raise_for_status()

    return run


if __name__ == "__main__":
    raise SystemExit(main())
