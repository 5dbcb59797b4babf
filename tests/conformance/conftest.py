"""Object stores to hold to their protocol: each one empty, its bucket made, and a way to look behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from supabase_bridge.object_store import ObjectStore, PutOptions
from supabase_bridge.object_store.directory import DirectoryStore
from supabase_bridge.object_store.supabase import SupabaseStore
from supabase_bridge.secret import Secret
from tests.simulators.faults import Respond
from tests.simulators.memory_store import MemoryStore
from tests.simulators.storage import StorageSimulator

BUCKET = "models"
ARTIFACTS = "artifacts"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A store under test.

    Attributes:
        store: Its bucket exists and is empty.
        without_bucket: Another store at the same place, whose bucket does not exist.
        artifacts: Another store at the same place, its bucket (`ARTIFACTS`) there and empty.
        fill: Puts objects there without going through the store.
        records_sha256: Whether `stat` gives back the SHA-256 an object was written with.
    """

    store: ObjectStore
    without_bucket: ObjectStore
    artifacts: ObjectStore
    fill: Callable[[Mapping[str, bytes]], None]
    records_sha256: bool


def supabase_store(
    simulator: StorageSimulator, *, bucket: str = BUCKET, key: str | None = None, timeout: float = 10.0
) -> SupabaseStore:
    """The adapter on a simulator; its pauses between tries take no time."""
    return SupabaseStore(
        url=simulator.url,
        key=Secret(key or simulator.service_key),
        bucket=bucket,
        timeout=timedelta(seconds=timeout),
        pause=lambda _seconds: None,
    )


def info_answer(*, size: int = 4, etag: str = "0" * 32) -> Respond:
    """What the server says of an object, in place of the truth."""
    facts = {"size": size, "etag": f'"{etag}"', "last_modified": "2026-11-22T16:55:19.318Z", "metadata": {}}
    return Respond(200, json.dumps(facts).encode(), {"content-type": "application/json"})


@pytest.fixture
def simulator() -> Iterator[StorageSimulator]:
    with StorageSimulator() as running:
        yield running


@contextmanager
def _directory(tmp_path: Path) -> Iterator[Bench]:
    root = tmp_path / "supabase" / BUCKET

    def fill(objects: Mapping[str, bytes]) -> None:
        for key, data in objects.items():
            path = root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    store, other = DirectoryStore(root), DirectoryStore(tmp_path / "supabase" / "missing")
    artifacts = DirectoryStore(tmp_path / "supabase" / ARTIFACTS)
    yield Bench(store=store, without_bucket=other, artifacts=artifacts, fill=fill, records_sha256=False)


@contextmanager
def _supabase(simulator: StorageSimulator) -> Iterator[Bench]:
    def fill(objects: Mapping[str, bytes]) -> None:
        for key, data in objects.items():
            simulator.put_object(BUCKET, key, data)

    store, other = supabase_store(simulator), supabase_store(simulator, bucket="missing")
    artifacts = supabase_store(simulator, bucket=ARTIFACTS)
    try:
        yield Bench(store=store, without_bucket=other, artifacts=artifacts, fill=fill, records_sha256=True)
    finally:
        for opened in (store, other, artifacts):
            opened.close()


@contextmanager
def _memory() -> Iterator[Bench]:
    artifacts = MemoryStore()
    store = MemoryStore(beside={ARTIFACTS: artifacts})

    def fill(objects: Mapping[str, bytes]) -> None:
        for key, data in objects.items():
            store.overwrite(key, data, PutOptions())

    yield Bench(store=store, without_bucket=store, artifacts=artifacts, fill=fill, records_sha256=True)


@pytest.fixture(params=["directory", "supabase"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Every store there is, one after the other; tests may ask for "memory" too, whose bucket cannot be missing."""
    if request.param == "directory":
        open_bench = _directory(tmp_path)
    elif request.param == "supabase":
        open_bench = _supabase(request.getfixturevalue("simulator"))
    else:
        open_bench = _memory()
    with open_bench as made:
        made.store.ensure_bucket()
        made.artifacts.ensure_bucket()
        yield made


@pytest.fixture
def store(bench: Bench) -> ObjectStore:
    return bench.store
