"""Readers during switches and rollbacks: the items of an answer are of the release whose tower made the query."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import psycopg
import pytest

from supabase_bridge.client.release import Release
from supabase_bridge.client.resolver import Resolver
from supabase_bridge.core.layout import ReleasePaths
from supabase_bridge.embeddings.sets import EmbeddingSets
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.storage.directory import DirectoryStore
from tests.support.embedding_sets import MODEL, WIDTH, Connect, release, rows
from tests.support.small_releases import LATEST, NOON, event, keys_of, lay_out, run_id

SWITCHES = [1, 2, 3, 2, 4, 5, 6, 7, 8, 9, 10, 11, 10, 12, 13, 14, 15, 16, 17, 18, 19]
"""The first release, and twenty switches; two of them are rollbacks."""

_PAUSE_SECONDS = 0.02


class Index(Protocol):
    """Where the items of releases are stored."""

    def prepare(self, number: int) -> None:
        """Store the items of a release, before the pointer moves."""

    def clean(self, kept: set[str]) -> None:
        """Remove the items of other releases, after the pointer moved."""

    def reader(self) -> Callable[[Release, list[float]], list[str]]:
        """A reader's own connection: from the release and its query to the ids of the best items."""


@dataclass
class BySet:
    """Our sets: rows carry the run_id, and every query names it."""

    connect_sets: Connect

    def __post_init__(self) -> None:
        self._sets = self.connect_sets()
        self._sets.init(MODEL, dimension=WIDTH)

    def prepare(self, number: int) -> None:
        self._sets.load(release(number), items=rows(40, seed=number, prefix=f"{run_id(number)}"))

    def clean(self, kept: set[str]) -> None:
        for found in self._sets.list(MODEL):
            if found.run_id not in kept:
                self._sets.drop(MODEL, found.run_id)

    def reader(self) -> Callable[[Release, list[float]], list[str]]:
        own: EmbeddingSets = self.connect_sets()
        return lambda found, query: [match.id for match in own.match_items(MODEL, found.run_id, query)]


@dataclass
class InPlace:
    """The control: one table, whose rows a transaction replaces before each switch."""

    embeddings_url: str
    connections: list[psycopg.Connection] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._own = self._connect()
        self._own.execute("create extension if not exists vector")
        self._own.execute(f"create table items (place int primary key, id text, embedding halfvec({WIDTH}))".encode())

    def _connect(self) -> psycopg.Connection:
        self.connections.append(psycopg.connect(self.embeddings_url, autocommit=True))
        return self.connections[-1]

    def prepare(self, number: int) -> None:
        made = rows(40, seed=number, prefix=f"{run_id(number)}")
        with self._own.transaction():
            for place, (name, row) in enumerate(zip(made.ids, made.matrix, strict=True)):
                self._own.execute(
                    "insert into items values (%s, %s, %s) on conflict (place) do update "
                    "set id = excluded.id, embedding = excluded.embedding",
                    (place, name, str(row.tolist())),
                )

    def clean(self, kept: set[str]) -> None:
        """Nothing is left over."""

    def reader(self) -> Callable[[Release, list[float]], list[str]]:
        own = self._connect()
        query_text = "select id from items order by embedding <#> %s::halfvec limit 20"
        return lambda _, query: [name for (name,) in own.execute(query_text, (str(query),))]


@dataclass
class Reader(threading.Thread):
    """Resolves the manifest, makes a query with the release's tower, asks the index, and notes what is wrong."""

    directory: Path
    search: Callable[[Release, list[float]], list[str]]

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self.read = threading.Semaphore(0)
        self.count, self.mixed, self.empty = 0, 0, 0
        self.problem: Exception | None = None

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        try:
            with Resolver(directory=self.directory) as resolver:
                while not self.stop.is_set():
                    self._read(resolver)
                    self.read.release()
                    self.stop.wait(_PAUSE_SECONDS)
        except Exception as error:  # noqa: BLE001 - the test raises it
            self.problem = error
            self.read.release(1_000)

    def _read(self, resolver: Resolver) -> None:
        found = resolver.resolve(MODEL)
        # The tower of each release makes another query of the same user.
        tower = np.random.default_rng(int(found.run_id[:8])).standard_normal(WIDTH)
        names = self.search(found, (tower / np.linalg.norm(tower)).tolist())
        self.count += 1
        self.empty += not names
        self.mixed += any(not name.startswith(f"{found.run_id}-") for name in names)

    def next_read(self) -> None:
        """Wait until a read that begins now has ended; the one that runs now may have begun before."""
        while self.read.acquire(blocking=False):
            pass
        for _ in range(2):
            assert self.read.acquire(timeout=60)


def switch_all(index: Index, directory: Path, switches: Sequence[int] = SWITCHES) -> list[Reader]:
    """Switch under three readers, each of which reads before and after the pointer moves."""
    store = DirectoryStore(directory)
    store.ensure_bucket()
    channel = Channel(store, LATEST)
    readers = [Reader(directory, index.reader()) for _ in range(3)]
    for count, number in enumerate(switches):
        if number == max(switches[: count + 1]) and number not in switches[:count]:
            lay_out(store, number)
        index.prepare(number)
        if count:
            for reader in readers:
                reader.next_read()
        paths: ReleasePaths = keys_of(number)
        head = channel.read_head().head
        activation = channel.activate(
            verify_release(store, paths), head=head, cause=event(count + 1), published_at=NOON
        )
        for reader in readers:
            if count:
                reader.next_read()
            else:
                reader.start()
        index.clean({activation.head.current.run_id, *(item.run_id for item in activation.head.previous)})
    for reader in readers:
        reader.stop.set()
    for reader in readers:
        reader.join()
        if reader.problem is not None:
            raise reader.problem
    return readers


@pytest.mark.exhaustive
def test_no_answer_mixes_two_releases_in_twenty_switches(connect_sets: Connect, tmp_path: Path) -> None:
    readers = switch_all(BySet(connect_sets), tmp_path / "models")
    assert sum(reader.count for reader in readers) >= 3 * 40
    assert [(reader.mixed, reader.empty) for reader in readers] == [(0, 0)] * 3


def test_one_table_in_place_mixes_two_releases(embeddings_url: str, tmp_path: Path) -> None:
    index = InPlace(embeddings_url)
    readers = switch_all(index, tmp_path / "models", SWITCHES[:4])
    for connection in index.connections:
        connection.close()
    assert all(reader.mixed >= 3 for reader in readers)
