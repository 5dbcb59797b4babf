"""Derive the announcements of switches from the release logs: all entries after the last one that was announced."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.announce.deliveries import Deliveries
from supabase_bridge.core.announcement import Announcement, AnnouncementKind, moves_pointer, switch
from supabase_bridge.core.comparison import compare_metrics
from supabase_bridge.core.documents import Manifest, Metrics
from supabase_bridge.core.errors import InvalidDocumentError, InvalidNameError
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId
from supabase_bridge.outbox.database import DatabaseNow, database_errors, to_ms
from supabase_bridge.outbox.errors import ContentionError
from supabase_bridge.outbox.tables import ANNOUNCED
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.heads import in_parallel
from supabase_bridge.settings.announce import Destinations
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.storage.errors import ObjectNotFoundError, ObjectTooLargeError
from supabase_bridge.trust.signer import SigningPolicy

logger = logging.getLogger(__name__)

_PAGE = 10


@dataclass(frozen=True, kw_only=True)
class Marked:
    """A channel whose log may have new entries.

    Attributes:
        sequence, published_ms: The entry up to which it is announced; 0: none is.
        marked_ms: When it was marked.
    """

    bucket: str
    paths: ChannelPaths
    sequence: int
    published_ms: int
    marked_ms: int

    def is_at(self, entry: Manifest) -> bool:
        """Return whether the log is announced up to this entry; a log that was emptied has another one there."""
        return (entry.sequence, to_ms(entry.current.published_at)) == (self.sequence, self.published_ms)


class SwitchLog:
    """Remembers how far each channel is announced, and finds what is new. Any number of workers may run it.

    Raises (every method):
        RegistryUnavailableError: the database did not answer.
    """

    def __init__(
        self,
        engine: Engine,
        destinations: Destinations,
        open_store: Callable[[str], ObjectStore],
        signing: SigningPolicy,
    ) -> None:
        self._deliveries = Deliveries(engine)
        self._engine = engine
        self._destinations = destinations
        self._open_store = open_store
        self._signing = signing

    def mark(self, bucket: str, paths: ChannelPaths) -> None:
        """Remember in the database that a channel's log may have new entries."""
        with database_errors("record a switch to announce"):
            # Every mark differs from the one before it, so that none is cleared that was not looked at.
            later = sa.case((ANNOUNCED.c.marked_ms < DatabaseNow(), DatabaseNow()), else_=ANNOUNCED.c.marked_ms + 1)
            again = ANNOUNCED.update().where(_of(bucket, paths)).values(marked_ms=later)
            new = {"bucket": bucket, "model_key": paths.model_key, "channel": paths.channel}
            with self._engine.begin() as connection:
                if connection.execute(again).rowcount:
                    return
            try:
                with self._engine.begin() as connection:
                    at_start = {"sequence": 0, "published_ms": 0, "marked_ms": DatabaseNow()}
                    connection.execute(ANNOUNCED.insert().values(**new, **at_start))
            except sa.exc.IntegrityError:
                with self._engine.begin() as connection:
                    connection.execute(again)

    def marked(self, *, more: int = 0) -> Sequence[Marked]:
        """Return a few marked channels, the newest mark first; those that are left come with later calls.

        A reconcile pass may mark thousands, and a switch must not wait for them.

        Args:
            more: Return this many more, for channels that the caller leaves out.
        """
        newest = ANNOUNCED.c.marked_ms.desc()
        query = sa.select(ANNOUNCED).where(ANNOUNCED.c.marked_ms > 0).order_by(newest).limit(_PAGE + more)
        with database_errors("read the switches to announce"), self._engine.connect() as connection:
            return [
                Marked(
                    bucket=row.bucket,
                    paths=ChannelPaths(model_key=row.model_key, channel=row.channel),
                    sequence=row.sequence,
                    published_ms=row.published_ms,
                    marked_ms=row.marked_ms,
                )
                for row in connection.execute(query)
            ]

    def announce(self, marked: Marked) -> int:
        """Insert a delivery for each new switch and destination, and return the number of new switches.

        One transaction inserts them and moves the mark, so that each is inserted once, in the order of the log.

        Raises:
            ObjectStoreError, UntrustedLogError, InvalidDocumentError: the log cannot be read; nothing was inserted.
        """
        store = self._open_store(marked.bucket)
        known = self._deliveries.destinations()
        since = {name: known[name].since for name in self._destinations if name in known and known[name].ended is None}
        channel = Channel(store, marked.paths, self._signing, at_once=in_parallel)
        head = channel.read_head().head
        new = list(_new_entries(channel, store, head, marked, since))
        found: list[tuple[Announcement, list[str]]] = []
        metrics = _MetricsReader(store)
        for entry, before, committed_at in reversed(new):
            if not moves_pointer(entry, before):
                continue
            wanting = [
                name
                for name, item in self._destinations.items()
                if name in since and item.wants(AnnouncementKind.ACTIVATED, entry.model_name, entry.channel)
                if committed_at >= since[name]
            ]
            if wanting:
                found.append((_message(entry, before, marked.bucket, metrics), wanting))
        return self._insert(marked, head, found)

    def _insert(self, marked: Marked, head: Manifest | None, found: Sequence[tuple[Announcement, list[str]]]) -> int:
        unchanged = _of(marked.bucket, marked.paths) & (ANNOUNCED.c.sequence == marked.sequence)
        unchanged &= ANNOUNCED.c.published_ms == marked.published_ms
        done = sa.case((ANNOUNCED.c.marked_ms == marked.marked_ms, 0), else_=ANNOUNCED.c.marked_ms)
        values: dict[str, Any] = {"marked_ms": done}
        if head is not None:
            values |= {"sequence": head.sequence, "published_ms": to_ms(head.current.published_at)}
        with suppress(ContentionError), self._deliveries.transaction() as connection:
            # The first statement is a write that locks the channel's row: of two workers the second finds it moved.
            if connection.execute(ANNOUNCED.update().where(unchanged).values(values)).rowcount != 1:
                return 0
            place = {"model": marked.paths.model_key, "channel": marked.paths.channel}
            for announcement, names in found:
                self._deliveries.insert(connection, announcement, names, bucket=marked.bucket, **place)
            return len(found)
        return 0


def _of(bucket: str, paths: ChannelPaths) -> sa.ColumnElement[bool]:
    return (
        (ANNOUNCED.c.bucket == bucket)
        & (ANNOUNCED.c.model_key == paths.model_key)
        & (ANNOUNCED.c.channel == paths.channel)
    )


def _new_entries(
    channel: Channel, store: ObjectStore, head: Manifest | None, marked: Marked, since: Mapping[str, datetime]
) -> Iterator[tuple[Manifest, Manifest | None, datetime]]:
    """Yield the entries that are not announced, the newest first, each with the one before it and its time.

    The entries of a channel that was never announced end where they are older than every destination.
    """
    oldest = min(since.values(), default=None)
    entry = head
    while entry is not None and oldest is not None and not marked.is_at(entry):
        committed_at = entry.current.published_at
        if committed_at < oldest:
            # An event's time is that of its first attempt, which may lie long before the switch.
            with suppress(ObjectNotFoundError):
                committed_at = max(committed_at, store.stat(channel.paths.history(entry.sequence)).modified_at)
        if committed_at < oldest:
            return
        before = channel.entry_before(entry)
        if before is None and entry.sequence > 1:
            facts = {"log": channel.paths.history_prefix, "sequence": entry.sequence - 1}
            logger.warning("an entry of a log is missing or not trusted; it is not announced", extra=facts)
        yield entry, before, committed_at
        entry = before


class _MetricsReader:
    """Reads the metrics of releases, each once."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._found: dict[tuple[str, str], Metrics | None] = {}

    def of(self, model_key: str, run_id: str) -> Metrics | None:
        """Return the metrics of a release; None where it has no valid metrics.json any more."""
        key = (model_key, run_id)
        if key not in self._found:
            self._found[key] = None
            with suppress(ObjectNotFoundError, ObjectTooLargeError, InvalidDocumentError, InvalidNameError):
                paths = ReleasePaths(model_key=model_key, run_id=RunId.parse(run_id))
                self._found[key] = Metrics.parse(self._store.read(paths.metrics, limit_bytes=LIMIT_BYTES))
        return self._found[key]


def _message(entry: Manifest, before: Manifest | None, bucket: str, metrics: _MetricsReader) -> Announcement:
    former = before.current if before is not None else next(iter(entry.previous), None)
    now = metrics.of(entry.model_name, entry.current.run_id)
    then = None if former is None else metrics.of(entry.model_name, former.run_id)
    return switch(entry, before, bucket=bucket, metrics=compare_metrics(then, now))
