"""Measure what a gate adds to a stage transition: our registry store with and without criteria.

    python -m benchmarks.gate [--database postgresql] [--history 10000] [--rounds 400] [--limit-ms 5]

Three criteria evaluate each transition to Production, one of them against the current version, in a model with a
history: promotions of other versions, which a worker has carried out. The two stores take turns, so that other load on
the machine affects both alike. Exit code 1: the difference of the medians is above the limit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from mlflow.entities import Metric
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from benchmarks.registries import DATABASES, database_server
from mlflow_supabase import capture
from mlflow_supabase.gate import TransitionGate
from mlflow_supabase.store import build
from supabase_bridge.core.criteria import Gate, parse_gate
from supabase_bridge.core.events import EventState
from supabase_bridge.outbox.tables import OUTBOX
from supabase_bridge.settings.model import Settings

MODEL = "two_tower"
CRITERIA = ("recall@20 >= 0.65", "0.2 <= ctr <= 0.4", "recall@20 not worse than current by more than 0.01")
METRICS = {"recall_at_20": 0.7, "ctr": 0.3, "auc": 0.9}
WARM_UP = 20
EARLIER = (3, 4)
"""The versions of the history; the gate evaluates versions 1 and 2."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    parser.add_argument("--database", choices=DATABASES, default="sqlite")
    parser.add_argument("--history", type=int, default=1_000, help="events of the model before (default: 1,000)")
    parser.add_argument("--rounds", type=int, default=400, help="transitions of each store (default: 400)")
    parser.add_argument("--limit-ms", type=float, default=5.0, help="highest difference that passes (default: 5)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory, database_server(options.database) as server:
        files = [f"sqlite:///{Path(directory, name)}" for name in ("plain.db", "gated.db")]
        urls = files if server is None else [server.create() for _ in files]
        plain = _store(urls[0], Gate(), history=options.history)
        gated = _store(urls[1], parse_gate({"criteria": list(CRITERIA)}), history=options.history)
        plain_ms, gated_ms = _medians_ms([plain, gated], rounds=options.rounds)
        verdict = gated.get_model_version(MODEL, 1).tags.get("supabase.verdict", "none")
        for store in (plain, gated):
            store.engine.dispose()
    assert verdict.startswith("Production: passed"), verdict
    added_ms = gated_ms - plain_ms
    print(
        f"transition on {options.database} after {options.history} events: without criteria {plain_ms:.2f} ms, "
        f"with {len(CRITERIA)} criteria {gated_ms:.2f} ms, added {added_ms:.2f} ms (limit {options.limit_ms:.2f} ms)"
    )
    return int(added_ms > options.limit_ms)


def _store(url: str, gate: Gate, *, history: int) -> Any:
    """Make a registry with versions that have runs, and a history of promotions."""
    store: Any = build(f"supabase+{url}")
    tracking: Any = SqlAlchemyStore(url, "/nowhere")
    store.create_registered_model(MODEL)
    for _ in range(2 + len(EARLIER)):
        run_id = tracking.create_run("0", "ada", 0, [], "training").info.run_id
        for name, value in METRICS.items():
            tracking.log_metric(run_id, Metric(name, value, 0, 0))
        store.create_model_version(MODEL, "s3://bucket/model", run_id)
    tracking.engine.dispose()
    for version in EARLIER:
        store.transition_model_version_stage(MODEL, version, "Production", archive_existing_versions=False)
    _lengthen(store.engine, history)
    settings = Settings().with_changes(gates={MODEL: gate})
    capture.watch(store.engine, TransitionGate(lambda: settings))
    return store


def _lengthen(engine: sa.Engine, history: int) -> None:
    """Repeat the events of the outbox up to this length, as events that a worker has finished."""
    with engine.begin() as connection:
        rows = [dict(row._mapping) for row in connection.execute(OUTBOX.select().where(OUTBOX.c.version.in_(EARLIER)))]
        for row in rows:
            del row["id"]
        more = [rows[number % len(rows)] for number in range(history - len(rows))]
        if more:
            connection.execute(OUTBOX.insert(), more)
        connection.execute(OUTBOX.update().values(state=EventState.DONE.value, finished_ms=1))


def _medians_ms(stores: Sequence[Any], *, rounds: int) -> list[float]:
    """Return the median time of a transition, by store; the order within a round changes from round to round."""
    times: list[list[float]] = [[] for _ in stores]
    for number in range(WARM_UP + rounds):
        turns = list(enumerate(stores))
        for index, store in turns if number % 2 else reversed(turns):
            start = time.perf_counter()
            store.transition_model_version_stage(
                MODEL, 1 + number % 2, "Production", archive_existing_versions=bool(number % 3)
            )
            times[index].append((time.perf_counter() - start) * 1000)
    return [statistics.median(measured[WARM_UP:]) for measured in times]


if __name__ == "__main__":
    raise SystemExit(main())
