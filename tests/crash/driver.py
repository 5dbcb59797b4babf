"""Runs a worker once for each of its side effects, killed before or after it, and each time one more to the end.

python -m tests.crash.driver HOME RUNS: HOME has a database with versions 1 to 3 registered; each run has a directory
of its own below RUNS and a copy of the database. A line of JSON on stdout says how each run ended. The processes are
forked from this one, which has imported MLflow: importing it for each would take minutes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from supabase_bridge.settings.model import Settings
from supabase_bridge.settings.steps import StepSettings
from supabase_bridge.storage.factory import open_store

with warnings.catch_warnings():
    warnings.simplefilter("ignore")

    for _needed in ("mlflow.store.tracking.sqlalchemy_store", "mlflow_supabase.store", "alembic.command"):
        importlib.import_module(_needed)

from supabase_bridge.core.events import EventKind
from supabase_bridge.mirror.checks import server as check_server
from supabase_bridge.registry.client import Registry
from supabase_bridge.worker.context import Services
from supabase_bridge.worker.processor import Processor
from supabase_bridge.worker.worker import Worker
from tests.crash.effects import CountedClient, CountedOutbox, CountedStore, Effects, Kill, count_steps
from tests.support.databases import copy_sqlite, create_database

MODEL = "two_tower"
ALIAS = "champion"
"""Moves the channel of the same name."""
UNMOUNTED = "unmounted"
"""A directory of the home that is not there: version 3 lies below it."""
LEASE = timedelta(milliseconds=300)
STARTED_AT = datetime(2025, 11, 1, 12, 0, 0, tzinfo=timezone.utc)
RECOVERED_AT = STARTED_AT + timedelta(milliseconds=900)
"""After the killed worker's lease, and in the same second: so every document has the same time in it."""

QUERIES = {
    "events": "SELECT id, kind, version, stage, state, outcome FROM supabase_outbox ORDER BY id",
    "tags of versions": (
        "SELECT version, key, value FROM model_version_tags "
        "WHERE NOT (version = 3 AND value IN ('failed', 'retrying')) ORDER BY version, key"
    ),
    "tags of models": "SELECT name, key, value FROM registered_model_tags ORDER BY name, key",
    "stages": "SELECT version, current_stage FROM model_versions ORDER BY version",
}
"""What is compared of a database.

The status of the blocked version is `failed` once its promotion is superseded, and `retrying` after the next attempt to
mirror it, which a killed worker's successor may make.
"""
STEP_QUERIES = {
    "steps": "SELECT model_key, run_id, step FROM supabase_bridge_steps ORDER BY run_id",
    "activations": "SELECT event_id, channel FROM supabase_bridge_activations ORDER BY event_id",
}
"""What is compared besides where the model has a step."""


def step_of(home: Path) -> StepSettings:
    """A step that writes a file for each release; its check looks for that file."""
    made = f"{home}/loaded/$SUPABASE_BRIDGE_RUN_ID"
    load, check = f"mkdir -p {home}/loaded && echo whole > {made}.part && mv {made}.part {made}", f"test -e {made}"
    return StepSettings(name="load", command=("/bin/sh", "-c", load), check=("/bin/sh", "-c", check))


# The forked processes use the server of the rehearsal, so it must not end after a rest.
check_server.REST_SECONDS = 3600.0


STORY = (
    (1, "Production"),
    (3, "Production"),
    (2, "Production"),
    (1, "Production"),
    (1, "None"),
)
"""Which version moves to which stage, in this order, and workers have ended in between.

Version 3 is blocked, because its files are on a disk that is not mounted; version 2 goes past it, then the channel is
rolled back to 1.
"""


def tell_story(settings: Settings, effects: Effects, now: datetime) -> None:
    """Mirror the versions, make the changes of `STORY`, and give version 1 an alias in the middle; a worker after each.

    What happened already is not done again.
    """
    if settings.steps:
        count_steps(effects)
    uris = {"tracking_uri": settings.database_url, "registry_uri": settings.registry_uri}
    registry = Registry(**uris)
    registry.client = client = CountedClient(**uris)
    client.count(effects)
    with ExitStack() as stack:
        engine = sa.create_engine(settings.database_url)
        stack.callback(engine.dispose)
        store = CountedStore(stack.enter_context(closing(open_store(settings, settings.bucket))), effects)
        store.ensure_bucket()
        outbox = CountedOutbox(engine, effects)
        stores = {settings.bucket: store}
        for bucket in settings.artifact_buckets:
            stores[bucket] = CountedStore(stack.enter_context(closing(open_store(settings, bucket))), effects)
        services = Services(settings=settings, registry=registry, outbox=outbox, open_store=stores.__getitem__)
        name = f"worker {os.getpid()}"
        worker = Worker(name=name, settings=settings, outbox=outbox, processor=Processor(services), clock=lambda: now)
        worker.drain()
        for number, (version, stage) in enumerate(STORY):
            moved = [event for event in outbox.events() if event.kind is EventKind.STAGE_CHANGED]
            recorded = Counter((event.version, event.stage) for event in moved)
            if recorded[version, stage] < STORY[: number + 1].count((version, stage)):
                archive = stage == "Production"
                client.transition_model_version_stage(MODEL, str(version), stage, archive_existing_versions=archive)
            worker.drain()
            if version == 2 and ALIAS not in registry.version(MODEL, 1).aliases:
                registry.set_alias(MODEL, ALIAS, 1)
                worker.drain()


def forked(act: Callable[[], None]) -> int:
    """Do something in a process of its own; returns its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        # The checks of a version run in processes that the rehearsal's server forks; that server is not our child.
        vars(forkserver._forkserver)["ensure_running"] = lambda: None
        try:
            act()
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where runs take place: always the same place, so that MLflow's stores of it are made once.

    Attributes:
        home: Has the artifacts, which are only read, and for SQLite the database to copy.
        runs: Gets each run's directory.
        template: The PostgreSQL database to copy; None: the home's SQLite database.
        admin_url: Of its server.
        steps: Whether the model has a step before each activation.
    """

    home: Path
    runs: Path
    template: str | None
    admin_url: str
    steps: bool = False

    def settings(self, name: str) -> Settings:
        """A directory and a database for a run, and a bucket of its own: the simulator is shared."""
        directory = self.runs / f"running-{os.getpid()}"
        directory.mkdir(parents=True)
        known: dict[str, Any] = {"artifacts_destination": str(self.home / "artifacts"), "bucket": name, "lease": LEASE}
        known |= {"aliases": {ALIAS: ALIAS}, "allowed_sources": (str(self.home / UNMOUNTED),)}
        if self.steps:
            known["steps"] = {MODEL: (step_of(directory),)}
        if self.template is None:
            copy_sqlite(self.home / "mlflow.db", directory / "mlflow.db")
        else:
            name_here = f"running_{os.getpid()}"
            known["database_url"] = create_database(self.admin_url, template=self.template, name=name_here)
        return Settings.load(home=directory, **known)

    def run(self, name: str, kill: Kill | None) -> None:
        """One run: a worker, killed if so asked, and then another one; says their exit codes, and what is recorded."""
        settings = self.settings(name)

        def work(log: str, kill: Kill | None, now: datetime) -> int:
            return forked(lambda: tell_story(settings, Effects(settings.home / log, kill), now))

        if name.startswith("rehearsal"):
            # In this process: what MLflow, SQLAlchemy and ONNX load and remember at first use, the forked ones have.
            tell_story(settings, Effects(settings.home / "effects", None), STARTED_AT)
            codes = [0]
        elif kill is None:
            codes = [work("effects", None, STARTED_AT)]
        else:
            codes = [work("effects", kill, STARTED_AT), work("recovery", None, RECOVERED_AT)]
        queries = {**QUERIES, **(STEP_QUERIES if self.steps else {})}
        said = {"name": name, "codes": codes, "rows": recorded(settings.database_url, queries)}
        settings.home.rename(self.runs / name)
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()

    def effects(self, name: str) -> list[str]:
        """The side effects of a run, in their order."""
        return (self.runs / name / "effects").read_text().splitlines()


def recorded(database_url: str, queries: Mapping[str, str] = QUERIES) -> dict[str, list[list[Any]]]:
    """What a run leaves in the database."""
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return {name: [list(row) for row in connection.execute(sa.text(query))] for name, query in queries.items()}


def main() -> None:
    """Run undisturbed, then once for each point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--template", help="the PostgreSQL database to copy instead of HOME's SQLite database")
    parser.add_argument("--admin-url", default="", help="of its server")
    parser.add_argument("--first", type=int, default=0, help="leave out so many points")
    parser.add_argument("--every", type=int, default=1, help="from there take only every n-th point")
    parser.add_argument("--steps", action="store_true", help="the model has a step before each activation")
    asked = parser.parse_args()
    # No connection of this process is there to be shared with the forked ones.
    os.environ["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"
    stage = Stage(
        home=asked.home, runs=asked.runs, template=asked.template, admin_url=asked.admin_url, steps=asked.steps
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stage.run(f"rehearsal-{asked.first}", None)
        stage.run(f"undisturbed-{asked.first}", None)
        count = len(stage.effects(f"undisturbed-{asked.first}"))
        points = [Kill(number, moment) for number in range(1, count + 1) for moment in ("before", "after")]
        for kill in points[asked.first :: asked.every]:
            stage.run(f"{kill.moment}-{kill.number:03d}", kill)


if __name__ == "__main__":
    main()
