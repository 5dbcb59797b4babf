"""Runs a worker once for each of its side effects, killed before or after it, and each time one more to the end.

python -m tests.crash.driver HOME RUNS [--every N]: HOME has a database with versions 1 and 2 registered; each run has
a directory of its own below RUNS with a copy of it. A line of JSON on stdout says how each run ended. The processes
are forked from this one, which has imported MLflow: importing it for each would take minutes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from supabase_bridge.config import Settings
from supabase_bridge.object_store import Body, ObjectInfo, ObjectStore, Progress, PutOptions
from supabase_bridge.object_store.opening import open_store
from supabase_bridge.outbox.events import Event, EventState
from supabase_bridge.outbox.queue import Outbox

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient

    for _needed in ("mlflow.store.tracking.sqlalchemy_store", "mlflow_supabase.capturing_store", "alembic.command"):
        importlib.import_module(_needed)

from supabase_bridge.processing import Processor
from supabase_bridge.registry import Registry
from supabase_bridge.worker import Worker
from tests.databases import copy_sqlite

MODEL = "two_tower"
LEASE = timedelta(milliseconds=300)
STARTED_AT = datetime(2025, 11, 1, 12, 0, 0, tzinfo=timezone.utc)
RECOVERED_AT = STARTED_AT + timedelta(milliseconds=900)
"""After the killed worker's lease, and in the same second: so every document has the same time in it."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Kill:
    """When a worker dies: before or after its n-th side effect, from 1."""

    number: int
    moment: str


class Effects:
    """Counts side effects, writes their names to a file, and kills this process at one of them."""

    def __init__(self, log: Path, kill: Kill | None) -> None:
        self._log = log
        self._kill = kill
        self._count = 0
        self._counting = threading.Lock()  # Several files are placed at once.

    def __call__(self, name: str, act: Callable[[], _T]) -> _T:
        with self._counting, self._log.open("a") as log:
            self._count += 1
            number = self._count
            log.write(f"{name}\n")
        self._reached(number, "before")
        result = act()
        self._reached(number, "after")
        return result

    def _reached(self, number: int, moment: str) -> None:
        if self._kill == Kill(number, moment):
            os.kill(os.getpid(), signal.SIGKILL)


class CountedStore:
    """An object store whose every change is a side effect."""

    def __init__(self, store: ObjectStore, effects: Effects) -> None:
        self._store = store
        self._effects = effects

    @property
    def name(self) -> str:
        return self._store.name

    def ensure_bucket(self) -> None:
        self._effects("ensure_bucket", self._store.ensure_bucket)

    def create(self, key: str, body: Body, options: PutOptions, progress: Progress | None = None) -> None:
        self._effects(f"create {key}", lambda: self._store.create(key, body, options, progress))

    def overwrite(self, key: str, body: Body, options: PutOptions, progress: Progress | None = None) -> None:
        self._effects(f"overwrite {key}", lambda: self._store.overwrite(key, body, options, progress))

    def read(self, key: str, *, limit_bytes: int) -> bytes:
        return self._store.read(key, limit_bytes=limit_bytes)

    def stream(self, key: str) -> Iterator[bytes]:
        return self._store.stream(key)

    def read_part(self, info: ObjectInfo, *, start: int, size_bytes: int) -> bytes:
        return self._store.read_part(info, start=start, size_bytes=size_bytes)

    def stat(self, key: str) -> ObjectInfo:
        return self._store.stat(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._store.list(prefix)

    def copy(self, source: str, destination: str) -> None:
        self._effects(f"copy {source}", lambda: self._store.copy(source, destination))

    def copy_in(self, bucket: str, info: ObjectInfo, key: str, options: PutOptions) -> None:
        self._effects(f"copy in {key}", lambda: self._store.copy_in(bucket, info, key, options))

    def delete(self, keys: Sequence[str]) -> None:
        self._effects(f"delete {keys}", lambda: self._store.delete(keys))

    def close(self) -> None:
        self._store.close()


class CountedOutbox(Outbox):
    """An outbox whose every change is a side effect; lease renewals aside, which come by the clock on the wall."""

    def __init__(self, engine: sa.Engine, effects: Effects) -> None:
        super().__init__(engine)
        self._effects = effects

    def claim(self, worker: str, *, lease: timedelta, now: datetime | None = None) -> Event | None:
        return self._effects("claim", lambda: super(CountedOutbox, self).claim(worker, now=now, lease=lease))

    def finish(
        self, event: Event, worker: str, state: EventState, outcome: str, *, now: datetime | None = None
    ) -> None:
        finish = super().finish
        self._effects(f"finish {event.id}", lambda: finish(event, worker, state, outcome, now=now))

    def postpone(self, event: Event, worker: str, reason: str, *, until: datetime) -> None:
        postpone = super().postpone
        self._effects(f"postpone {event.id}: {reason}", lambda: postpone(event, worker, reason, until=until))


class CountedClient(MlflowClient):
    """MLflow's client; every tag it writes is a side effect."""

    def count(self, effects: Effects) -> None:
        self._effects = effects

    def set_model_version_tag(self, *arguments: Any, **more: Any) -> Any:
        write = super().set_model_version_tag
        return self._effects(f"tag {arguments[1:3]}", lambda: write(*arguments, **more))

    def delete_model_version_tag(self, *arguments: Any, **more: Any) -> Any:
        delete = super().delete_model_version_tag
        return self._effects(f"untag {arguments[1:3]}", lambda: delete(*arguments, **more))

    def set_registered_model_tag(self, *arguments: Any, **more: Any) -> Any:
        write = super().set_registered_model_tag
        return self._effects(f"tag model {arguments[1]}", lambda: write(*arguments, **more))


def tell_story(settings: Settings, effects: Effects, now: datetime) -> None:
    """Mirror both versions, promote 1, then 2, a worker after each; what happened already is not done again."""
    uris = {"tracking_uri": settings.database_url, "registry_uri": settings.registry_uri}
    registry = Registry(**uris)
    registry.client = client = CountedClient(**uris)
    client.count(effects)
    with ExitStack() as stack:
        engine = sa.create_engine(settings.database_url, connect_args={"timeout": 30})
        stack.callback(engine.dispose)
        store = CountedStore(stack.enter_context(closing(open_store(settings, settings.bucket))), effects)
        store.ensure_bucket()
        outbox = CountedOutbox(engine, effects)
        stores = {settings.bucket: store}
        for bucket in settings.artifact_buckets:
            stores[bucket] = CountedStore(stack.enter_context(closing(open_store(settings, bucket))), effects)
        processor = Processor(settings=settings, registry=registry, outbox=outbox, open_store=stores.__getitem__)
        name = f"worker {os.getpid()}"
        worker = Worker(name=name, settings=settings, outbox=outbox, processor=processor, clock=lambda: now)
        worker.drain()
        for version in (1, 2):
            if registry.version(MODEL, version).stage == "None":
                registry.promote(MODEL, version, "Production")
            worker.drain()


def forked(act: Callable[[], None]) -> int:
    """Do something in a process of its own; returns its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(home: Path, runs: Path, name: str, kill: Kill | None) -> None:
    """One run: a worker, killed if so asked, and then another one; says their exit codes."""
    # Always the same place while it runs, so that MLflow's stores of it are made once; then a place of its own.
    directory = runs / "running"
    directory.mkdir(parents=True)
    copy_sqlite(home / "mlflow.db", directory / "mlflow.db")
    # A bucket of its own: the simulator is shared. The artifacts are too, which are only read.
    settings = Settings.load(home=directory, artifacts_destination=str(home / "artifacts"), bucket=name, lease=LEASE)

    def work(log: str, kill: Kill | None, now: datetime) -> int:
        return forked(lambda: tell_story(settings, Effects(directory / log, kill), now))

    if name == "rehearsal":
        # In this process: what MLflow, SQLAlchemy and ONNX load and remember at first use, the forked ones have too.
        tell_story(settings, Effects(directory / "effects", None), STARTED_AT)
        codes = [0]
    elif kill is None:
        codes = [work("effects", None, STARTED_AT)]
    else:
        codes = [work("effects", kill, STARTED_AT), work("recovery", None, RECOVERED_AT)]
    directory.rename(runs / name)
    sys.stdout.write(json.dumps({"name": name, "codes": codes}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run undisturbed, then once for each point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take only every n-th point")
    asked = parser.parse_args()
    # No connection of this process is there to be shared with the forked ones.
    os.environ["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(asked.home, asked.runs, "rehearsal", None)
        run(asked.home, asked.runs, "undisturbed", None)
        count = len((asked.runs / "undisturbed" / "effects").read_text().splitlines())
        points = [Kill(number, moment) for number in range(1, count + 1) for moment in ("before", "after")]
        for kill in points[:: asked.every]:
            run(asked.home, asked.runs, f"{kill.moment}-{kill.number:03d}", kill)


if __name__ == "__main__":
    main()
