"""Derive the optional announcements from the outbox: what was mirrored, given up, rejected, or left its stage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from supabase_bridge.announce.deliveries import Deliveries
from supabase_bridge.core.announcement import OPTIONAL, Announcement, AnnouncementKind, identity
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.core.events import Event, EventKind, EventState, Triggers
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.core.tags import MODEL_KEY_TAG, RUN_ID_TAG, STATUS_TAG, Status
from supabase_bridge.outbox import periodic, sql
from supabase_bridge.outbox.database import database_now, milliseconds, to_ms
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.tables import OUTBOX
from supabase_bridge.registry.client import RegisteredVersion, Registry
from supabase_bridge.registry.errors import ModelNotFoundError, VersionNotFoundError
from supabase_bridge.releases.channel import Channel
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.trust.signer import SigningPolicy

logger = logging.getLogger(__name__)

_CURSOR = "announced changes"

_OVERLAP = timedelta(minutes=1)
"""Changes are read again for so long after they finished: a transaction commits after the time that it records."""

_REASON_LIMIT = 1_000
_PAGE = 500


class ChangeAnnouncer:
    """Finds finished events that a destination wants to hear of. Any number of workers may run it."""

    def __init__(
        self,
        settings: Settings,
        outbox: Outbox,
        registry: Registry,
        open_store: Callable[[str], ObjectStore],
        signing: SigningPolicy,
    ) -> None:
        self._settings = settings
        self._outbox = outbox
        self._registry = registry
        self._open_store = open_store
        self._signing = signing
        self._deliveries = Deliveries(outbox.engine)
        kinds = {kind for item in settings.announce.values() for kind in item.kinds}
        self._wanted = frozenset(OPTIONAL) & kinds
        self._handled: dict[int, int] = {}

    def announce(self) -> int:
        """Insert a delivery for each new change and destination; return how many changes there were.

        Raises:
            BridgeError: MLflow, the database or the store did not answer; the next call does the rest.
        """
        if not self._wanted:
            return 0
        engine = self._outbox.engine
        reached = int(periodic.cursor(engine, _CURSOR) or 0)
        if not reached:
            # Only what happens from now on.
            periodic.set_cursor(engine, _CURSOR, str(to_ms(database_now(engine))))
            return 0
        count = 0
        for finished_ms, event in self._finished(reached - milliseconds(_OVERLAP)):
            if self._handled.get(event.id) == finished_ms:
                continue
            for announcement, model, channel in self._readable(event, finished_ms):
                count += self._insert(announcement, event, model, channel)
            self._handled[event.id] = finished_ms
            reached = max(reached, finished_ms)
        periodic.set_cursor(engine, _CURSOR, str(reached))
        oldest = reached - milliseconds(_OVERLAP)
        self._handled = {number: finished for number, finished in self._handled.items() if finished > oldest}
        return count

    def _finished(self, after_ms: int) -> Iterator[tuple[int, Event]]:
        """Yield the events that finished after a time, the oldest first, read page by page."""
        last = (after_ms, 2**62)
        states = OUTBOX.c.state.in_([EventState.DONE.value, EventState.DEAD.value])
        while True:
            later = (OUTBOX.c.finished_ms > last[0]) | ((OUTBOX.c.finished_ms == last[0]) & (OUTBOX.c.id > last[1]))
            query = sa.select(OUTBOX).where(OUTBOX.c.finished_ms >= last[0], later, states)
            with self._deliveries.transaction() as connection:
                rows = connection.execute(query.order_by(OUTBOX.c.finished_ms, OUTBOX.c.id).limit(_PAGE)).all()
            yield from ((row.finished_ms, sql.to_event(row)) for row in rows)
            if len(rows) < _PAGE:
                return
            last = (rows[-1].finished_ms, rows[-1].id)

    def _readable(self, event: Event, finished_ms: int) -> Sequence[tuple[Announcement, str, str | None]]:
        """Return the messages about one event; none, and a warning, where its facts can never be read."""
        try:
            return list(self._messages(event, finished_ms))
        except BridgeError as error:
            if error.retryable:
                raise
            logger.warning("a change cannot be announced", extra={"event": event.id, "reason": str(error)})
            return []

    def _insert(self, announcement: Announcement, event: Event, model: str, channel: str | None) -> int:
        known = self._deliveries.destinations()
        names = [
            name
            for name, item in self._settings.announce.items()
            if name in known and known[name].ended is None and known[name].since <= announcement.time
            if item.wants(announcement.kind, model, channel) or item.wants(announcement.kind, event.model, channel)
        ]
        if not names:
            return 0
        with self._deliveries.transaction() as connection:
            periodic.lock(connection, _CURSOR)
            self._deliveries.insert(connection, announcement, names, bucket="", model=event.model)
        return 1

    def _messages(self, event: Event, finished_ms: int) -> Iterator[tuple[Announcement, str, str | None]]:
        """Yield the messages about one event, each with the folder of its model and its channel."""
        facts = _Facts(self._registry, event)
        data: dict[str, Any] = {"model": facts.key or event.model, "registered_model": event.model}
        if event.version is not None:
            data["model_version"] = event.version
        if event.made_by is not None:
            data["by"] = event.made_by

        def message(kind: AnnouncementKind, **more: Any) -> Announcement:
            named = identity(self._outbox.registry_id(), event.id, finished_ms, kind.value, more.get("channel"))
            assert event.finished_at is not None  # noqa: S101 - only finished events are read
            return Announcement(id=named, kind=kind, time=event.finished_at, data={**data, **more})

        model = str(data["model"])
        if event.state is EventState.DEAD:
            rejected = facts.tags.get(STATUS_TAG) == Status.REJECTED.value
            kind = AnnouncementKind.REJECTED if rejected else AnnouncementKind.FAILED
            if kind in self._wanted:
                yield message(kind, event=event.id, reason=(event.outcome or "")[:_REASON_LIMIT]), model, None
            return
        run_id = facts.tags.get(RUN_ID_TAG)
        if event.kind is EventKind.VERSION_CREATED and run_id and AnnouncementKind.MIRRORED in self._wanted:
            yield message(AnnouncementKind.MIRRORED, run_id=run_id), model, None
        if AnnouncementKind.LEFT in self._wanted and facts.key is not None:
            for triggers in self._settings.triggers:
                if (left := self._left(event, triggers, facts)) is not None:
                    yield message(AnnouncementKind.LEFT, channel=triggers.channel, left=left), model, triggers.channel

    def _left(self, event: Event, triggers: Triggers, facts: _Facts) -> str | None:
        """The stage or alias that the event took from a version to which the channel still points; else None."""
        if event.kind is EventKind.ALIAS_SET or not triggers.unassigns(event) or triggers.assigns(event):
            return None
        version, bucket = facts.version, self._settings.bucket_of(event.workspace)
        if bucket is None or facts.key is None:
            return None
        if version is not None and (version.stage in triggers.stages or version.aliases & set(triggers.aliases)):
            return None
        paths = ChannelPaths(model_key=facts.key, channel=triggers.channel)
        head = Channel(self._open_store(bucket), paths, self._signing).read_head().head
        if head is None or head.current.model_version != event.version:
            return None
        return f"alias {event.alias}" if event.alias is not None else f"stage {event.previous_stage}"


class _Facts:
    """What MLflow knows now of an event's model and version; nothing where they were deleted."""

    def __init__(self, registry: Registry, event: Event) -> None:
        self.version: RegisteredVersion | None = None
        self.key: str | None = None
        with suppress(ModelNotFoundError, VersionNotFoundError):
            self.key = registry.model(event.model, event.workspace).tags.get(MODEL_KEY_TAG)
            if event.version is not None:
                self.version = registry.version(event.model, event.version, event.workspace)

    @property
    def tags(self) -> Mapping[str, str]:
        return {} if self.version is None else self.version.tags
