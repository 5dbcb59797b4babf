"""Measure what capture adds to a stage transition over REST: our registry store against MLflow's own.

    python -m benchmarks.transition_cost [--database sqlite] [--rounds 300] [--limit 1.15]

The two servers take turns, so that other load on the machine affects both alike. Exit code 1: the ratio of the medians
is above the limit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx

from benchmarks.registries import database_server, mlflow_server, transition

MODEL = "two_tower"
STAGES = ("Production", "Staging")
WARM_UP = 20


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transition_cost", description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgresql", "mariadb"), default="sqlite")
    parser.add_argument("--rounds", type=int, default=300, help="transitions of each store (default: 300)")
    parser.add_argument("--limit", type=float, default=1.15, help="highest ratio that passes (default: 1.15)")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(database_server(options.database))
        clients: list[httpx.Client] = []
        for name, prefix in (("stock", ""), ("ours", "supabase+")):
            home = directory / name
            home.mkdir()
            url = server.create() if server else f"sqlite:///{home / 'mlflow.db'}"
            clients.append(stack.enter_context(mlflow_server(home, {}, backend=url, registry=f"{prefix}{url}")))
        stock_ms, ours_ms = _medians_ms(clients, rounds=options.rounds)
    ratio = ours_ms / stock_ms
    print(
        f"transition over REST on {options.database}: stock {stock_ms:.2f} ms, ours {ours_ms:.2f} ms, "
        f"ratio {ratio:.2f} (limit {options.limit:.2f})"
    )
    return int(ratio > options.limit)


def _medians_ms(clients: Sequence[httpx.Client], *, rounds: int) -> list[float]:
    """Return the median time of a transition, by server; the order within a round changes from round to round."""
    for client in clients:
        client.post("registered-models/create", json={"name": MODEL}).raise_for_status()
        version = {"name": MODEL, "source": "s3://bucket/model"}
        client.post("model-versions/create", json=version).raise_for_status()
    times: list[list[float]] = [[] for _ in clients]
    for number in range(WARM_UP + rounds):
        turns = list(enumerate(clients))
        for index, client in turns if number % 2 else reversed(turns):
            start = time.perf_counter()
            transition(client, MODEL, 1, STAGES[number % 2])
            times[index].append((time.perf_counter() - start) * 1000)
    return [statistics.median(measured[WARM_UP:]) for measured in times]


if __name__ == "__main__":
    raise SystemExit(main())
