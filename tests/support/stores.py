"""Empty object stores for the conformance tests, each with its bucket and a way to write past the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from supabase_bridge.settings.model import RESUMABLE_THRESHOLD_BYTES
from supabase_bridge.storage.base import ObjectStore, PutOptions
from supabase_bridge.storage.directory import DirectoryStore
from supabase_bridge.storage.supabase.store import SupabaseStore
from tests.support.simulators.faults import Respond
from tests.support.simulators.memory_store import MemoryStore
from tests.support.simulators.storage import StorageSimulator
from tests.support.simulators.storage_tokens import DIGEST_KEY

BUCKET = "models"
ARTIFACTS = "artifacts"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A store under test.

    Attributes:
        store: Its bucket exists and is empty.
        without_bucket: Another store at the same place, whose bucket does not exist.
        artifacts: Another store at the same place; its bucket (`ARTIFACTS`) exists and is empty.
        fill: Writes objects without the store.
        records_sha256: True if `stat` returns the SHA-256 of an upload.
    """

    store: ObjectStore
    without_bucket: ObjectStore
    artifacts: ObjectStore
    fill: Callable[[Mapping[str, bytes]], None]
    records_sha256: bool


def supabase_store(
    simulator: StorageSimulator,
    *,
    bucket: str = BUCKET,
    key: str | None = None,
    timeout: float = 10.0,
    resumable_threshold_bytes: int = RESUMABLE_THRESHOLD_BYTES,
    uploads: Path | None = None,
    digest_key: str | None = DIGEST_KEY,
) -> SupabaseStore:
    """Return the adapter on a simulator; its pauses between attempts take no time."""
    return SupabaseStore(
        url=simulator.url,
        key=SecretStr(key or simulator.service_key),
        bucket=bucket,
        timeout=timedelta(seconds=timeout),
        resumable_threshold_bytes=resumable_threshold_bytes,
        uploads=uploads,
        digest_key=None if digest_key is None else SecretStr(digest_key),
        pause=lambda _seconds: None,
    )


def object_keys(store: ObjectStore, prefix: str = "") -> list[str]:
    """Return the keys of all objects below a prefix."""
    return [info.key for info in store.list(prefix)]


@contextmanager
def ready(store: SupabaseStore, simulator: StorageSimulator) -> Iterator[SupabaseStore]:
    """Create the store's bucket, forget the requests of that, and close the store at the end of the block."""
    with closing(store):
        store.ensure_bucket()
        simulator.reset_calls()
        yield store


def info_answer(*, size: int = 4, etag: str = "0" * 32) -> Respond:
    """Return a false response of the server about an object."""
    facts = {"size": size, "etag": f'"{etag}"', "last_modified": "2026-11-22T16:55:19.318Z", "metadata": {}}
    return Respond(200, json.dumps(facts).encode(), {"content-type": "application/json"})


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
    """Yield each kind of store; a test can also request "memory", whose bucket cannot be missing."""
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
