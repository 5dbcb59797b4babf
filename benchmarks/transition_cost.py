"""What capture adds to a stage transition: our registry store against MLflow's own, on SQLite.

    python -m benchmarks.transition_cost [--rounds 400] [--limit 1.25]

The two take turns, so that what else the machine does strikes both alike. Exit code 1: the ratio of the medians is
above the limit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from mlflow_supabase.registry_store import build

MODEL = "two_tower"
STAGES = ("Production", "Staging")
WARM_UP = 20


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transition_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=400, help="transitions of each store (default: 400)")
    parser.add_argument("--limit", type=float, default=1.25, help="highest ratio that passes (default: 1.25)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        stock = SqlAlchemyStore(f"sqlite:///{Path(directory, 'stock.db')}")
        ours = build(f"supabase+sqlite:///{Path(directory, 'ours.db')}")
        stock_ms, ours_ms = _medians_ms([stock, ours], rounds=options.rounds)
        for store in (stock, ours):
            store.engine.dispose()
    ratio = ours_ms / stock_ms
    print(
        f"transition on SQLite: stock {stock_ms:.2f} ms, ours {ours_ms:.2f} ms, ratio {ratio:.2f} "
        f"(limit {options.limit:.2f})"
    )
    return int(ratio > options.limit)


def _medians_ms(stores: Sequence[Any], *, rounds: int) -> list[float]:
    """The median time of a transition, by store; the order within a round changes from round to round."""
    for store in stores:
        store.create_registered_model(MODEL)
        store.create_model_version(MODEL, "s3://bucket/model")
    times: list[list[float]] = [[] for _ in stores]
    for number in range(WARM_UP + rounds):
        turns = list(enumerate(stores))
        for index, store in turns if number % 2 else reversed(turns):
            start = time.perf_counter()
            store.transition_model_version_stage(MODEL, 1, STAGES[number % 2], archive_existing_versions=False)
            times[index].append((time.perf_counter() - start) * 1000)
    return [statistics.median(measured[WARM_UP:]) for measured in times]


if __name__ == "__main__":
    raise SystemExit(main())
