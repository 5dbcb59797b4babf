"""Measure the commands on a large registry, on SQLite and PostgreSQL, with releases in a directory.

    python -m benchmarks.scale [--versions 20000] [--models 500] [--databases sqlite postgresql]

The registry is made by bulk SQL: first all versions are mirrored, except one in a thousand, which has failed; then no
version is, as in a registry before the plugin was installed. Each command runs three times as its own process; the
figures are medians. Exit code 1: one of them is above its limit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from benchmarks.reconcile import fill
from benchmarks.registries import bridge_command, database_server
from mlflow_supabase.store import build
from supabase_bridge.settings.model import Settings

_LIMITS = {
    ("status",): ("CPU", 1.0),
    ("status", "model-0007"): ("time", 0.5),
    ("sync", "--dry-run"): ("time", 5.0),
    ("outbox", "list", "--limit", "50"): ("time", 0.5),
}
_SCREEN = 24
_RUNS = 3
_EACH_FAILED = 1_000


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of a command."""

    seconds: float
    cpu_seconds: float
    lines: int


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--versions", type=int, default=20_000, help="versions of the registry")
    parser.add_argument("--models", type=int, default=500, help="registered models of the registry")
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"], help="kinds of databases")
    options = parser.parse_args(arguments)
    results = [_measure(kind, versions=options.versions, models=options.models) for kind in options.databases]
    return int(not all(results))


def _measure(kind: str, *, versions: int, models: int) -> bool:
    """Measure each command on one kind of database; False: one is above its limit."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(database_server(kind))
        environ = {} if server is None else {"SUPABASE_BRIDGE_DATABASE_URL": server.create()}
        settings = Settings.load(home=home, environ=environ)
        store = build(settings.registry_uri)
        bucket = home / "supabase" / settings.bucket

        def put(key: str, data: bytes) -> None:
            path = bucket / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

        fill(store.engine, put, versions=versions, models=models, files=3)
        _fail(store.engine)
        _analyze(store.engine)
        subject = f"{versions} versions of {models} models on {kind}"
        in_step = [_passes(command, home, environ, f"{subject}, in step") for command in _LIMITS]
        _forget(store.engine)
        _analyze(store.engine)
        shutil.rmtree(bucket)
        existing = [_passes(command, home, environ, f"{subject}, none mirrored") for command in _LIMITS]
        store.engine.dispose()
    return all([*in_step, *existing])


def _passes(command: Sequence[str], home: Path, environ: Mapping[str, str], subject: str) -> bool:
    runs = [_run([*command, "--home", str(home)], environ) for _ in range(_RUNS)]
    seconds = statistics.median(run.seconds for run in runs)
    cpu_seconds = statistics.median(run.cpu_seconds for run in runs)
    what, limit = _LIMITS[tuple(command)]
    print(
        f"{' '.join(command)}, {subject}: {seconds:.2f} s, {cpu_seconds:.2f} s CPU (limit: {what} {limit} s), "
        f"{runs[0].lines} lines",
        flush=True,
    )
    one_screen = tuple(command) != ("status",) or runs[0].lines <= _SCREEN
    return (cpu_seconds if what == "CPU" else seconds) <= limit and one_screen


def _forget(engine: sa.Engine) -> None:
    """Delete all events and tags, as in a registry before the plugin was installed."""
    with engine.begin() as connection:
        for table in ("supabase_outbox", "model_version_tags", "registered_model_tags"):
            connection.execute(sa.table(table).delete())


def _analyze(engine: sa.Engine) -> None:
    """Collect PostgreSQL's statistics now; its autovacuum does so within a minute of a change of this size."""
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")


def _fail(engine: sa.Engine) -> None:
    """Let one version in a thousand fail, with a failed event."""
    failed = (
        "INSERT INTO supabase_outbox (created_ms, kind, workspace, model, version, stage, model_deleted, state, "
        "attempts, not_before_ms, finished_ms, outcome) SELECT 3, 'version_created', 'default', model, version, stage, "
        "FALSE, 'dead', 1, 0, 3, 'no ONNX file' FROM supabase_outbox WHERE kind = 'stage_changed' AND id % :each = 0"
    )
    tags = (
        "UPDATE model_version_tags SET value = 'failed' WHERE key = 'supabase.status' AND EXISTS (SELECT 1 FROM "
        "supabase_outbox o WHERE o.state = 'dead' AND o.model = name AND o.version = model_version_tags.version)"
    )
    with engine.begin() as connection:
        connection.execute(sa.text(failed), {"each": _EACH_FAILED})
        connection.execute(sa.text(tags))


def _run(arguments: Sequence[str], environ: Mapping[str, str]) -> Measured:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "SUPABASE_"))}
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(bridge_command(*arguments), env={**kept, **environ}, capture_output=True, check=False)
    seconds, after = time.perf_counter() - start, os.times()
    assert done.returncode in {0, 1}, done.stderr.decode()
    cpu_seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return Measured(seconds=seconds, cpu_seconds=cpu_seconds, lines=len(done.stdout.splitlines()))


if __name__ == "__main__":
    raise SystemExit(main())
