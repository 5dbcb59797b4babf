"""Measure `supabase-bridge history` on a long log, the first time and again.

    python -m benchmarks.history [--entries 2000] [--rounds 5] [--limit 1.0]

Each entry has a release and metrics of its own. Commands run in a process of their own, against the storage simulator
in another process. Exit code 1: the median of the further readings is above the limit (seconds), they read an entry
again, or `--at` needs more than two requests for each doubling of the log, and five.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from supabase_bridge.core.text import format_time
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.factory import open_store
from tests.support.logs import write_log
from tests.support.scene import MODEL, registry_client
from tests.support.simulators.storage import StorageSimulator
from tests.support.small_releases import NOON


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, default=2_000, help="length of the log (default: 2000)")
    parser.add_argument("--rounds", type=int, default=5, help="readings after the first (default: 5)")
    parser.add_argument("--limit", type=float, default=1.0, help="longest median that passes, in s (default: 1.0)")
    options = parser.parse_args(arguments)
    with StorageSimulator() as simulator, tempfile.TemporaryDirectory() as directory:
        home = Path(directory) / "home"
        home.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "SUPABASE_"))}
        environ = {
            **kept,
            "SUPABASE_URL": simulator.url,
            "SUPABASE_SECRET_KEY": simulator.service_key,
            "XDG_CACHE_HOME": str(home / "cache"),
        }
        settings = Settings.load(home=home, environ=environ)
        registry_client(settings).create_registered_model(MODEL)
        store = open_store(settings, settings.bucket)
        store.ensure_bucket()
        write_log(store, range(1, options.entries + 1))
        store.close()

        def run(*more: str) -> tuple[float, int, str]:
            simulator.reset_calls()
            command = [sys.executable, "-m", "supabase_bridge.cli", "history", f"{MODEL}@latest", *more]
            start = time.perf_counter()
            said = subprocess.run(
                [*command, "--home", str(home)], env=environ, check=True, capture_output=True, text=True, timeout=600
            )
            return time.perf_counter() - start, len(simulator.calls()), said.stdout

        first, read, _ = run()
        further = [run() for _ in range(options.rounds)]
        seconds = statistics.median(item[0] for item in further)
        again = max(item[1] for item in further)
        shown = sum(" -> " in line and "(event " in line for line in further[-1][2].splitlines())
        middle = NOON + timedelta(minutes=options.entries // 3, seconds=30)
        at_seconds, at_requests, at = run("--at", format_time(middle))
    most = 2 * math.log2(options.entries) + 5
    print(f"history of {shown} entries: first {first:.2f} s ({read} requests)")
    print(f"  again {seconds:.2f} s ({again} requests; limit {options.limit:.2f} s)")
    print(f"  --at: {at_seconds:.2f} s, {at_requests} requests (limit {most:.0f})")
    right = f"entry {options.entries // 3})" in at and shown == options.entries
    return int(seconds > options.limit or again > 5 or at_requests > most or not right)


if __name__ == "__main__":
    sys.exit(main())
