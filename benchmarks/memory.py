"""Measure the memory of a large file: uploaded in one request, uploaded in chunks, downloaded.

    python -m benchmarks.memory [--size 2147483648] [--limit 48]

Each way runs in a process of its own. The figure is the peak of its resident set, minus the peak after a small
transfer; on Linux. Exit code 1: one of them is above the limit. SUPABASE_URL and
SUPABASE_SECRET_KEY name another server than the simulator; the file is sparse, but all its bytes are sent.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from benchmarks.target import target
from supabase_bridge.core.documents import FileRecord
from supabase_bridge.storage.base import ObjectStore, PutOptions
from supabase_bridge.storage.download import fetch
from supabase_bridge.storage.hashing import hash_body
from tests.support.machine import peak_bytes

MIB = 1024 * 1024
SMALL_BYTES = 8 * MIB
WAYS = ("post", "chunks", "download")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=2048 * MIB, help="bytes of the file (default: 2 GiB)")
    parser.add_argument("--limit", type=int, default=48, help="highest rise that passes, in MiB (default: 48)")
    parser.add_argument("--way", choices=WAYS, help="measure this way, in this process")
    options = parser.parse_args(arguments)
    if options.way is not None:
        print(json.dumps(_rise_bytes(options.way, options.size)))
        return 0
    worst = 0.0
    with target() as place:
        environ = {
            **os.environ,
            "SUPABASE_URL": place.url,
            "SUPABASE_SECRET_KEY": place.key.get_secret_value(),
        }
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.memory", "--way", way, "--size", str(options.size)]
            answer = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True)
            rise_mib = json.loads(answer.stdout) / MIB
            worst = max(worst, rise_mib)
            print(f"{options.size / MIB:.0f} MiB by {way}, {place}: memory rises by {rise_mib:.1f} MiB")
    print(f"highest rise {worst:.1f} MiB (limit {options.limit})")
    return int(worst > options.limit)


def _rise_bytes(way: str, size_bytes: int) -> int:
    with tempfile.TemporaryDirectory() as directory, target() as place:
        path, copy = Path(directory, "file"), Path(directory, "copy")
        store = place.store(threshold_bytes=0 if way == "chunks" else 2**63)
        prefix = uuid.uuid4().hex
        small, large = f"{prefix}/small", f"{prefix}/large"
        _transfer(way, store, _sparse(path, SMALL_BYTES), small, copy)
        before = peak_bytes()
        _transfer(way, store, _sparse(path, size_bytes), large, copy)
        rise = peak_bytes() - before
        store.delete([small, large])
        store.close()
    return rise


def _transfer(way: str, store: ObjectStore, path: Path, key: str, copy: Path) -> None:
    digests = hash_body(path)
    store.overwrite(key, path, PutOptions(sha256=digests.sha256))
    if way == "download":
        record = FileRecord(size_bytes=digests.size_bytes, sha256=digests.sha256)
        assert fetch(store, key, copy).record == record


def _sparse(path: Path, size_bytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


if __name__ == "__main__":
    raise SystemExit(main())
