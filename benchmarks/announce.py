"""Measure the time from a visible manifest to the webhook that announces it, with an idle worker.

    python -m benchmarks.announce [--database sqlite] [--rounds 20] [--median 1000]

A real MLflow server, a real worker, the storage that SUPABASE_URL names or the simulator, each in a process of its own,
and a receiver on a socket. Exit code 1: the median is above its limit, in milliseconds, or a switch was not announced.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.latency import wait_for_manifest
from benchmarks.registries import (
    bridge_command,
    database_server,
    environment,
    mlflow_server,
    process,
    scene,
    transition,
)
from benchmarks.target import BUCKET, Target, target
from supabase_bridge.settings.model import FILE_NAME
from tests.support.announcing import SECRET
from tests.support.receivers import Receiver, receiving
from tests.support.scene import MODEL
from tests.support.served import until

WARM_UP = 2
_IDLE_SECONDS = 0.5
_LIMIT_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.announce", description=__doc__.partition("\n")[0])
    parser.add_argument("--database", choices=("sqlite", "postgresql", "mariadb"), default="sqlite")
    parser.add_argument("--rounds", type=int, default=20, help="switches (default: 20)")
    parser.add_argument("--median", type=float, default=1_000, help="highest median that passes (default: 1000)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory, target() as place, receiving() as receiver:
        times_ms = sorted(_measure(Path(directory), place, options.database, receiver, rounds=options.rounds))
    median = statistics.median(times_ms)
    print(
        f"manifest to webhook on {options.database}, {place}, {len(times_ms)} switches: median {median:.0f} ms "
        f"(limit {options.median:.0f}), most {times_ms[-1]:.0f} ms"
    )
    return int(median > options.median)


def _measure(directory: Path, place: Target, database: str, receiver: Receiver, *, rounds: int) -> list[float]:
    home = directory / "home"
    with ExitStack() as stack:
        server = stack.enter_context(database_server(database))
        environ = environment(place, server.create() if server else None)
        environ |= {"SUPABASE_BRIDGE_BUCKET": BUCKET, "WEBHOOK_SECRET": SECRET}
        with scene(home, environ) as made:
            versions = [made.train(), made.train()]
            made.work()
            backend, registry = made.settings.database_url, made.settings.registry_uri
        table = f'[announce.bench]\nurl = "{receiver.url}"\nsecret_env = "WEBHOOK_SECRET"\n'
        (home / FILE_NAME).write_text(table)
        client = stack.enter_context(mlflow_server(home, environ, backend=backend, registry=registry))
        stack.enter_context(process(bridge_command("worker", "--home", str(home)), home, environ))
        bare = stack.enter_context(place.bare())
        times_ms: list[float] = []
        for number in range(WARM_UP + rounds):
            transition(client, MODEL, versions[number % 2], "Production")
            wait_for_manifest(bare, number + 1)
            visible = time.time()
            until(lambda: len(receiver.taken) > number, "the announcement", limit_seconds=_LIMIT_SECONDS)  # noqa: B023
            times_ms.append(max(receiver.taken[number].at - visible, 0.0) * 1_000)
            time.sleep(_IDLE_SECONDS)
        found = [one.message["data"]["sequence"] for one in receiver.taken]
        assert found == list(range(1, WARM_UP + rounds + 1)), found
    return times_ms[WARM_UP:]


if __name__ == "__main__":
    raise SystemExit(main())
