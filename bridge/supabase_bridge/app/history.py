"""Tell the history of a model's channels: the release log with its metrics, and the freezes of the registry."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from supabase_bridge.core.comparison import MetricComparison, compare_metrics
from supabase_bridge.core.documents import Cause, Manifest, Metrics, ReleasePointer
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.core.events import DEFAULT_WORKSPACE
from supabase_bridge.core.layout import ChannelPaths, check_model_key
from supabase_bridge.core.release_log import EntryKind, kind_of
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.errors import ChannelNotFoundError
from supabase_bridge.releases.heads import HeadState
from supabase_bridge.releases.history import DigestCache, LoggedEntry, LogHistory, metrics_of, verified
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.trust.signer import SigningPolicy

if TYPE_CHECKING:
    from supabase_bridge.outbox.freezes import EndedFreeze

logger = logging.getLogger(__name__)


_NO_METRICS = MetricComparison(changes=())

MISSING, FROZEN, THAWED = "missing", "frozen", "thawed"
"""The kinds of rows that are no entry; those of entries are the values of `EntryKind`."""


@dataclass(frozen=True, kw_only=True)
class HistoryRow:
    """An entry of a release log, a place in it that has none, or the begin or end of a freeze.

    Attributes:
        at: When the release became current, the entry was reissued, or the freeze began or ended.
        by: Who made the change; None: it is not known.
        before: The release that was current before.
        reason: The release notes, or the reason of the freeze.
        until: When the freeze ends, or would have ended, by itself.
        problem: Why the entry is not trustworthy.
    """

    kind: str
    at: datetime | None = None
    by: str | None = None
    sequence: int | None = None
    before: ReleasePointer | None = None
    current: ReleasePointer | None = None
    cause: Cause | None = None
    reason: str | None = None
    metrics: MetricComparison = _NO_METRICS
    until: datetime | None = None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class ChannelHistory:
    """The history of one channel, the newest row first.

    Attributes:
        model: The registered model's name; the folder if no registered model is known.
    """

    model: str
    paths: ChannelPaths
    rows: Sequence[HistoryRow]


@dataclass(frozen=True, kw_only=True)
class LogProof:
    """The result of the verification of one log.

    Attributes:
        length: The sequence of the newest entry.
        problems: What is wrong, with the entry.
        unproven: The number of entries before the newest one whose digest no entry names.
        signed: The number of entries that a trusted key signed; None: no key is trusted.
    """

    paths: ChannelPaths
    length: int
    problems: Sequence[tuple[int, str]]
    unproven: int
    signed: int | None


@dataclass(frozen=True, kw_only=True)
class _Subject:
    model: str
    key: str
    channels: Sequence[str]
    freezes: Sequence[EndedFreeze]


def history(
    settings: Settings, store: ObjectStore, subject: str, *, signing: SigningPolicy
) -> Iterator[ChannelHistory]:
    """Yield the history of each channel of a model that was ever switched, or of one channel.

    Entries are cached in `cache_dir` by the digest that the entry after each names.

    Args:
        subject: MODEL or MODEL@CHANNEL; MODEL is the registered model's name, or its folder.

    Raises:
        ChannelNotFoundError: no release was ever activated there.
        UntrustedLogError, InvalidDocumentError: see `Channel.read_head`.
        ObjectStoreError: the store did not answer.
    """
    named = _look_up(settings, subject)
    cache = DigestCache(None if settings.cache_dir is None else settings.cache_dir / "history")
    for channel, state in _logs(store, named, signing):
        if state.head is None:
            continue
        log = LogHistory(channel, cache).read(state.head)
        entries = list(_entry_rows(store, log, cache))
        freezes = [freeze for freeze in named.freezes if freeze.channel in (None, channel.paths.channel)]
        rows = _in_order(entries, [row for freeze in freezes for row in _freeze_rows(freeze)])
        yield ChannelHistory(model=named.model, paths=channel.paths, rows=rows)


def current_at(
    settings: Settings, store: ObjectStore, subject: str, time: datetime, *, signing: SigningPolicy
) -> Iterator[tuple[ChannelPaths, Manifest | None]]:
    """Yield each channel of a model with the entry that was current at a time; None if there was none yet.

    Raises:
        BridgeError: see `history` and `LogHistory.at`.
    """
    for channel, state in _logs(store, _look_up(settings, subject), signing):
        entry = None if state.head is None else LogHistory(channel, DigestCache(None)).at(state.head, time)
        if entry is not None and (problem := signing.problem(entry, channel.paths.history(entry.sequence))) is not None:
            facts = {"entry": entry.sequence, "reason": str(problem)}
            logger.warning("no trusted key signed this entry; run history --verify", extra=facts)
        yield channel.paths, entry


def verify_logs(settings: Settings, store: ObjectStore, subject: str, *, signing: SigningPolicy) -> Iterator[LogProof]:
    """Read every entry of a model's logs, or of one channel's, and verify digests and signatures.

    Raises:
        ChannelNotFoundError, InvalidDocumentError, ObjectStoreError: see `history`.
    """
    # Without signing: an untrusted newest entry is a result here.
    for channel, state in _logs(store, _look_up(settings, subject), SigningPolicy()):
        head = state.head
        entries = [] if head is None else LogHistory(channel, DigestCache(None)).read(head)
        log = list(verified(entries, channel, signing))
        trusted = [item for item in log if item.problem is None and item.entry and item.entry.signature is not None]
        problems = [(item.sequence, item.problem) for item in log if item.problem is not None]
        if not state.manifest_is_current:
            problems.append((len(log), f"{channel.paths.manifest} is not the newest entry of the log"))
        yield LogProof(
            paths=channel.paths,
            length=len(log),
            problems=problems,
            unproven=sum(not item.proven and item.problem is None for item in log[:-1]),
            signed=len(trusted) if signing.keys else None,
        )


def _logs(store: ObjectStore, named: _Subject, signing: SigningPolicy) -> Iterator[tuple[Channel, HeadState]]:
    """Yield each channel that has a log, or a manifest without one."""
    found = False
    for name in named.channels:
        channel = Channel(store, ChannelPaths(model_key=check_model_key(named.key), channel=name), signing)
        state = channel.read_head()
        if state.head is not None or state.manifest_bytes is not None:
            found = True
            yield channel, state
    if not found:
        raise ChannelNotFoundError(named.key, ", ".join(named.channels))


def _entry_rows(store: ObjectStore, log: Sequence[LoggedEntry], cache: DigestCache) -> Iterator[HistoryRow]:
    """Yield the rows of a log's entries, the oldest first."""
    entries = [found.entry for found in log if found.entry is not None]
    notes: set[str] = set()
    metrics = metrics_of(store, entries, cache, note=notes.add)
    for note in sorted(notes):
        logger.warning("the metrics of a release cannot be read", extra={"reason": note})
    before: Manifest | None = None
    earlier: set[str] = set()
    for found in log:
        entry = found.entry
        if entry is None:
            yield HistoryRow(kind=MISSING, sequence=found.sequence, problem=found.problem)
        else:
            yield _entry_row(entry, before, kind_of(entry, before, earlier), metrics, found.problem)
            earlier.add(entry.current.run_id)
        before = entry


def _entry_row(
    entry: Manifest,
    before: Manifest | None,
    kind: EntryKind,
    metrics: Mapping[str, Metrics],
    problem: str | None,
) -> HistoryRow:
    former = before.current if before is not None else next(iter(entry.previous), None)
    old = None if former is None else metrics.get(former.run_id)
    reissued = kind is EntryKind.REISSUED and entry.confirmed_at is not None
    by = None if entry.cause is None else entry.cause.by
    return HistoryRow(
        kind=kind.value,
        at=entry.confirmed_at if reissued else entry.current.published_at,
        by=entry.confirmed_by if reissued else by,
        sequence=entry.sequence,
        before=former,
        current=entry.current,
        cause=entry.cause,
        reason=entry.release_notes,
        metrics=compare_metrics(old, metrics.get(entry.current.run_id)),
        problem=problem,
    )


def _freeze_rows(freeze: EndedFreeze) -> Iterator[HistoryRow]:
    yield HistoryRow(kind=FROZEN, at=freeze.since, by=freeze.frozen_by, reason=freeze.reason, until=freeze.until)
    if freeze.ended_at is not None:
        yield HistoryRow(kind=THAWED, at=freeze.ended_at, by=freeze.ended_by, reason=freeze.reason)


def _in_order(entries: Sequence[HistoryRow], freezes: Iterable[HistoryRow]) -> list[HistoryRow]:
    """Return all rows, the newest first: entries in the order of the log, and each freeze after what came before it."""
    rows: list[HistoryRow] = []
    waiting = sorted(freezes, key=_time)
    for entry in entries:
        while waiting and _precedes(waiting[0], entry):
            rows.append(waiting.pop(0))
        rows.append(entry)
    return [*rows, *waiting][::-1]


def _precedes(freeze: HistoryRow, entry: HistoryRow) -> bool:
    """Return whether a freeze began or ended before an entry, whose time may be cut to the second."""
    during = entry.cause is not None and entry.cause.during_freeze is not None
    if during and freeze.kind == FROZEN:
        return _time(freeze).replace(microsecond=0) <= _time(entry)
    return entry.at is not None and _time(freeze) < entry.at


def _time(row: HistoryRow) -> datetime:
    assert row.at is not None  # noqa: S101 - only a missing entry has none
    return row.at


def _look_up(settings: Settings, subject: str) -> _Subject:
    """Find the folder and the freezes of a model in the registry's database; without it the subject is the folder."""
    model, channel = settings.split_subject(subject)
    channels = [item.channel for item in settings.triggers] if channel is None else [channel]
    # SQLAlchemy takes a third of a second to import.
    import sqlalchemy as sa

    from supabase_bridge.outbox.database import database_errors
    from supabase_bridge.outbox.freezes import all_freezes
    from supabase_bridge.outbox.queue import open_outbox
    from supabase_bridge.registry.tables import mlflow_tables

    try:
        with open_outbox(settings) as outbox, database_errors("read its tables"):
            table = mlflow_tables(outbox.engine).models
            of_model = (table.c.model == model) | (table.c.key == model)
            query = sa.select(table.c.model, table.c.key).where(table.c.workspace == DEFAULT_WORKSPACE, of_model)
            with outbox.engine.connect() as connection:
                rows = connection.execute(query).all()
            row = next((row for row in rows if row.model == model), None) or next(iter(rows), None)
            name = model if row is None else row.model
            freezes = all_freezes(outbox.engine, DEFAULT_WORKSPACE, name)
            key = model if row is None or row.key is None else row.key
            return _Subject(model=name, key=key, channels=channels, freezes=freezes)
    except (BridgeError, ModuleNotFoundError) as error:
        logger.warning("the registry's database cannot be read, so no freeze is shown", extra={"reason": str(error)})
    return _Subject(model=model, key=model, channels=channels, freezes=())
