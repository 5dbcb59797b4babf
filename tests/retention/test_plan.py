"""No plan holds what the policy keeps: random registries, logs, stages, aliases, events and folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import assume, given
from hypothesis import strategies as st

from supabase_bridge.core.documents import Cause, CurrentRelease, Manifest
from supabase_bridge.core.events import EventKind, EventState
from supabase_bridge.core.layout import ARCHIVED_META_NAME, META_NAME, METRICS_NAME, ChannelPaths, ReleasePaths, RunId
from supabase_bridge.core.release_log import next_entry
from supabase_bridge.outbox.queue import open_outbox
from supabase_bridge.registry.tables import mlflow_tables
from supabase_bridge.retention.plan import ForeignFolders, Planner
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectInfo, PutOptions
from tests.support.databases import copy_sqlite
from tests.support.simulators.memory_store import MemoryStore

PLAIN = PutOptions()
KEEP, MIN_AGE = 3, timedelta(days=30)
_FIRST = datetime(2025, 1, 1, tzinfo=timezone.utc)
_TABLES = "model_version_tags registered_model_aliases model_versions registered_model_tags registered_models"
_EVENT_KINDS = ("version_created", "stage_changed", "alias_set", "alias_removed", "version_deleted", "model_renamed")
_STAGES = {"Production": "latest", "Staging": "staging"}
_ALIASES = {"champion": "latest", "challenger": "staging"}


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version, and the folder of its release."""

    number: int
    run: int | None
    stage: str
    status: str | None
    changed_days: int
    folder: str


@dataclass(frozen=True, kw_only=True)
class Log:
    """A channel: the releases that were activated in it, and whether its manifest is an entry behind."""

    channel: str
    runs: Sequence[int]
    behind: bool


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event of the outbox."""

    kind: str
    version: int | None
    previous: int | None
    state: str
    lost: bool


@dataclass(frozen=True, kw_only=True)
class Model:
    """A registered model and its folder, as drawn."""

    name: str
    key: str
    versions: Sequence[Version]
    aliases: Mapping[str, int]
    events: Sequence[Event]
    logs: Sequence[Log]


def _versions() -> st.SearchStrategy[list[Version]]:
    one: st.SearchStrategy[dict[str, Any]] = st.builds(
        dict,
        run=st.sampled_from(["own", "own", "own", "own", "another", "none"]),
        stage=st.sampled_from(["None", "None", "Archived", "Archived", "Production", "Staging"]),
        status=st.sampled_from([None, "superseded", "mirrored", "archived", "weird"]),
        changed_days=st.sampled_from([0, 29, 31, 31, 31, 90]),
        folder=st.sampled_from(["complete"] * 6 + ["removed", "held", "both", "incomplete", "gone"]),
    )

    def numbered(drawn: list[dict[str, Any]]) -> list[Version]:
        return [
            Version(
                number=number,
                run={"own": number, "another": max(1, number - 1), "none": None}[item.pop("run")],
                **item,
            )
            for number, item in enumerate(drawn, 1)
        ]

    return st.lists(one, min_size=1, max_size=9).map(numbered)


_NUMBERS = st.integers(1, 9)
_MODELS = st.builds(
    Model,
    name=st.just("ranker"),
    key=st.sampled_from(["ranker", "two_tower"]),
    versions=_versions(),
    aliases=st.dictionaries(st.sampled_from(["champion", "challenger", "noted"]), _NUMBERS, max_size=2),
    events=st.lists(
        st.builds(
            Event,
            kind=st.sampled_from(_EVENT_KINDS),
            version=st.none() | _NUMBERS,
            previous=st.none() | _NUMBERS,
            state=st.sampled_from(["done", "done", "pending", "dead", "superseded", "discarded"]),
            lost=st.booleans(),
        ),
        max_size=2,
    ),
    logs=st.lists(
        st.builds(
            Log,
            channel=st.sampled_from(["latest", "staging", "blue"]),
            runs=st.lists(_NUMBERS, min_size=1, max_size=4),
            behind=st.booleans(),
        ),
        max_size=2,
        unique_by=lambda log: log.channel,
    ),
)


class AgedStore(MemoryStore):
    """A bucket whose objects were written forty days ago; holds are new."""

    def list(self, prefix: str, *, bucket_exists: bool = False) -> Iterator[ObjectInfo]:
        for item in super().list(prefix, bucket_exists=bucket_exists):
            age = timedelta(0) if "/hold-" in item.key else timedelta(days=40)
            yield replace(item, modified_at=item.modified_at - age)


def paths_of(key: str, run: int) -> ReleasePaths:
    return ReleasePaths(model_key=key, run_id=RunId.at(_FIRST + timedelta(minutes=run)))


@pytest.fixture(scope="module")
def settings(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("planned")
    copy_sqlite(empty_database, home / "mlflow.db")
    table = {"then": "delete", "keep": KEEP, "min_age_days": MIN_AGE.days}
    return Settings.load(home=home, environ={}, retention=table)


@pytest.fixture(scope="module")
def engine(settings: Settings) -> Iterator[sa.Engine]:
    with open_outbox(settings) as outbox:
        yield outbox.engine


@given(other=_MODELS, mine=_MODELS)
def test_a_plan_holds_exactly_what_nothing_uses(
    other: Model, mine: Model, settings: Settings, engine: sa.Engine
) -> None:
    mine = Model(**{**vars(mine), "name": "two_tower", "key": "two_tower"})
    # Two models share a folder only where both have releases in it.
    assume(other.key != mine.key or all(any(v.run is not None for v in model.versions) for model in (other, mine)))
    models, store, now = [other, mine], AgedStore(), datetime.now(timezone.utc)
    _fill(engine, models, now)
    for model in models:
        _lay(store, model)
    tables = mlflow_tables(engine)
    planner = Planner(settings=settings, engine=engine, tables=tables, open_store=lambda _: store)
    planned = [item for item in planner.plan(now=now) if not isinstance(item, ForeignFolders)]
    going = {item.paths.prefix for releases in planned for item in releases if item.goes}
    assert going == set(_unused(models))


def _unused(models: Sequence[Model]) -> Iterator[str]:
    """What may go, found out in another way than the planner's."""
    shared = models[0].key == models[1].key
    for model in models:
        named = {run for log in model.logs for run in _named(log)}
        by_run: dict[int, list[Version]] = {}
        for version in model.versions:
            if version.run is not None:
                by_run.setdefault(version.run, []).append(version)
        folders = {version.number: version.folder for version in model.versions}
        complete = {run for run, folder in folders.items() if folder in {"complete", "held"}}
        newest = sorted((max(v.number for v in by_run[run]), run) for run in complete if run in by_run)[-KEEP:]
        changes = [event for event in model.events if event.state == "pending" and event.kind != "version_created"]
        about = {number for event in model.events if _open(event) for number in (event.version, event.previous)}
        for run, versions in by_run.items():
            (version, *others) = versions
            moves = version.stage in _STAGES or version.number in {
                number for alias, number in model.aliases.items() if alias in _ALIASES and number in folders
            }
            used = run in named or others or moves or changes or version.number in about or shared
            young = folders[run] in {"complete", "held"} and version.changed_days < MIN_AGE.days
            kept = young or run in {found for _, found in newest} or folders[run] == "held"
            if folders[run] in {"complete", "both"} and not used and not kept:
                yield paths_of(model.key, run).prefix


def _open(event: Event) -> bool:
    return event.state in {"pending", "dead"} or (event.lost and event.state != "done")


def _named(log: Log) -> set[int]:
    """The releases that the newest entry of a log, and the manifest, name."""
    order: list[list[int]] = []
    for run in log.runs:
        before = order[-1] if order else []
        if before[:1] != [run]:
            order.append([run, *(other for other in before if other != run)][:3])
    shown = order[-2] if log.behind and len(order) > 1 else order[-1]
    return {*order[-1], *shown}


def _fill(engine: sa.Engine, models: Sequence[Model], now: datetime) -> None:
    """Replace the registry by these models."""
    milliseconds = int(now.timestamp() * 1_000)
    with engine.begin() as connection:
        for table in (*_TABLES.split(), "supabase_outbox"):
            connection.execute(sa.text(f"DELETE FROM {table}"))

        def insert(table: str, **values: Any) -> None:
            columns, names = ", ".join(values), ", ".join(f":{name}" for name in values)
            connection.execute(sa.text(f"INSERT INTO {table} ({columns}) VALUES ({names})"), values)

        for model in models:
            insert("registered_models", name=model.name)
            insert("registered_model_tags", name=model.name, key="supabase.key", value=model.key)
            for version in model.versions:
                named = {"name": model.name, "version": version.number}
                changed = milliseconds - version.changed_days * 86_400_000
                insert("model_versions", **named, current_stage=version.stage, last_updated_time=changed)
                if version.run is not None:
                    run_id = str(paths_of(model.key, version.run).run_id)
                    insert("model_version_tags", **named, key="supabase.run_id", value=run_id)
                if version.status is not None:
                    insert("model_version_tags", **named, key="supabase.status", value=version.status)
            for alias, number in model.aliases.items():
                insert("registered_model_aliases", name=model.name, alias=alias, version=number)
            for event in model.events:
                finished = None if event.state == "pending" else milliseconds - 60_000
                insert(
                    "supabase_outbox",
                    created_ms=1,
                    kind=EventKind(event.kind).value,
                    workspace="default",
                    model=model.name,
                    version=event.version,
                    previous_version=event.previous,
                    model_deleted=False,
                    state=EventState(event.state).value,
                    attempts=0,
                    not_before_ms=0,
                    finished_ms=finished,
                    takeovers=int(event.lost),
                )


def _lay(store: MemoryStore, model: Model) -> None:
    """Write the folders of a model's releases and channels; two models may share them."""
    for version in model.versions:
        paths = paths_of(model.key, version.number)
        names = {
            "complete": (META_NAME, METRICS_NAME, paths.onnx_name),
            "held": (META_NAME, METRICS_NAME, paths.onnx_name, "hold-x.json"),
            "both": (META_NAME, ARCHIVED_META_NAME, METRICS_NAME, paths.onnx_name),
            "removed": (ARCHIVED_META_NAME, METRICS_NAME),
            "incomplete": (METRICS_NAME, paths.onnx_name),
            "gone": (),
        }[version.folder]
        for name in names:
            store.overwrite(paths.file(name), b"x", PLAIN)
    for log in model.logs:
        channel = ChannelPaths(model_key=model.key, channel=log.channel)
        entries: list[Manifest] = []
        for run in log.runs:
            paths = paths_of(model.key, run)
            current = CurrentRelease(
                run_id=str(paths.run_id),
                published_at=_FIRST,
                onnx_path=paths.onnx,
                meta_path=paths.meta,
                metrics_path=paths.metrics,
            )
            head = entries[-1] if entries else None
            entry = next_entry(head, channel, current=current, cause=Cause(), release_notes=None)
            entries += [] if entry is None else [entry]
        for entry in entries:
            store.overwrite(channel.history(entry.sequence), entry.to_bytes(), PLAIN)
        shown = entries[-2] if log.behind and len(entries) > 1 else entries[-1]
        store.overwrite(channel.manifest, shown.to_bytes(), PLAIN)
