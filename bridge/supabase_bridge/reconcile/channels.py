"""Find manifests that differ from their log, and restore them from the log."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.core.errors import InvalidDocumentError, InvalidNameError
from supabase_bridge.core.events import EventKind, NewEvent
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId, check_channel, check_model_key
from supabase_bridge.core.tags import CHANNEL_TAG, CURRENT
from supabase_bridge.outbox.record import enqueue_again, reason_not_enqueued
from supabase_bridge.reconcile.findings import Finding, FindingKind, Remedy, unusable_tag
from supabase_bridge.reconcile.releases import damage_of
from supabase_bridge.registry.promotion_gate import PromotionGate
from supabase_bridge.registry.tables import RegistryTables, bytewise
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.errors import UntrustedLogError
from supabase_bridge.releases.folders import Folder
from supabase_bridge.releases.heads import HeadState
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.storage.errors import ObjectNotFoundError, ObjectTooLargeError
from supabase_bridge.trust.errors import ManifestRefusedError
from supabase_bridge.trust.signer import SigningPolicy

_PAGE = 1_000


@dataclass(frozen=True, kw_only=True)
class UsedChannel:
    """A channel in which a version is current, according to the registry's tags."""

    workspace: str
    model: str
    version: int
    stage: str
    paths: ChannelPaths


def used_channels(
    engine: Engine, tables: RegistryTables, *, workspace: str, model: str | None = None
) -> Iterator[UsedChannel | Finding]:
    """Yield the channels with a current version according to the registry's tags; a finding for an unusable tag."""
    channels = tables.channels
    path = bytewise(channels.c.key + "/" + channels.c.channel_tag + "/", engine.dialect.name)
    current = channels.c.since.like(f"{CURRENT}%")
    query = sa.select(channels, path.label("path")).where(channels.c.workspace == workspace, current)
    if model is not None:
        query = query.where(channels.c.model == model)
    last = ""
    while True:
        with engine.connect() as connection:
            rows = connection.execute(query.where(path > last).order_by(path).limit(_PAGE)).all()
        for row in rows:
            yield _used(row)
        if len(rows) < _PAGE:
            return
        last = rows[-1].path


def _used(row: Any) -> UsedChannel | Finding:
    try:
        channel = check_channel(row.channel_tag.removeprefix(CHANNEL_TAG))
        paths = ChannelPaths(model_key=check_model_key(row.key), channel=channel)
    except InvalidNameError as error:
        return unusable_tag(row.model, row.version, error)
    return UsedChannel(workspace=row.workspace, model=row.model, version=row.version, stage=row.stage, paths=paths)


def is_unchanged(store: ObjectStore, paths: ChannelPaths, seen: MutableMapping[str, str]) -> bool:
    """Whether a manifest has not changed since it agreed with its log: one small read, if it ever did.

    Args:
        seen: From a manifest's path, with the store's name, to the digest that agreed.
    """
    agreed = seen.get(f"{store.name}/{paths.manifest}")
    if agreed is None:
        return False
    try:
        data = store.read(paths.manifest, limit_bytes=LIMIT_BYTES)
    except (ObjectNotFoundError, ObjectTooLargeError):
        return False
    return agreed == hashlib.sha256(data).hexdigest()


def has_new_entry(store: ObjectStore, paths: ChannelPaths, folder: Folder, seen: MutableMapping[str, str]) -> bool:
    """Whether a listing shows another newest log entry than the last time, or this is the first time."""
    newest, place = "" if folder.logged is None else folder.logged.key, f"{store.name}/{paths.history_prefix}"
    known, seen[place] = seen.get(place), newest
    return newest not in {"", known}


def is_current(folder: Folder) -> bool:
    """Whether the digests of a listing show that a channel's manifest equals its newest log entry."""
    if folder.logged is None or folder.published is None or folder.logged.etag is None:
        return False
    return (folder.logged.size_bytes, folder.logged.etag) == (folder.published.size_bytes, folder.published.etag)


def restore(
    store: ObjectStore, paths: ChannelPaths, seen: MutableMapping[str, str], *, signing: SigningPolicy, dry_run: bool
) -> Finding | HeadState:
    """Compare a manifest with its log, and write the newest entry if they differ.

    The log decides: a manual activation by our commands has an entry, so it stays.

    Returns:
        A finding if they differ. Otherwise what was read: they agree, or both are missing.
    """
    channel = Channel(store, paths, signing)
    try:
        state = channel.read_head()
        if state.head is None and state.manifest_bytes is None:
            return state
        if state.head is None:
            detail = "there is a manifest, but no log; set the channel with supabase-bridge activate"
            return _finding(FindingKind.DAMAGED_LOG, paths, detail, Remedy.REPORTED)
        if state.manifest_is_current:
            seen[f"{store.name}/{paths.manifest}"] = hashlib.sha256(state.head.to_bytes()).hexdigest()
            return state
        if not dry_run:
            channel.repair_manifest()
    except (
        InvalidDocumentError,
        ManifestRefusedError,
        UntrustedLogError,
        ObjectTooLargeError,
        ObjectNotFoundError,
    ) as error:
        return _finding(FindingKind.DAMAGED_LOG, paths, str(error), Remedy.REPORTED)
    problem = "it was deleted" if state.manifest_bytes is None else "it was not its log's newest entry"
    detail = f"{problem}; entry {state.head.sequence} names {state.head.current.run_id}"
    return _finding(FindingKind.MANIFEST_DIFFERS, paths, detail, Remedy.RESTORED)


def damaged_releases(
    store: ObjectStore, paths: ChannelPaths, known: HeadState | None, *, signing: SigningPolicy, deep: bool
) -> Iterator[tuple[ReleasePaths, str]]:
    """Yield each release that a channel's newest entry names and that is missing or damaged, with its problem.

    A log that cannot be read yields nothing: `restore` reports it.

    Args:
        known: What this pass has read of the channel; None: it is read here.
    """
    try:
        head = (known or Channel(store, paths, signing).read_head()).head
    except (InvalidDocumentError, ManifestRefusedError, UntrustedLogError, ObjectTooLargeError, ObjectNotFoundError):
        return
    for pointer in [] if head is None else [head.current, *head.previous]:
        release = ReleasePaths(model_key=paths.model_key, run_id=RunId.parse(pointer.run_id))
        recorded = head.current.files if head is not None and pointer is head.current else None
        if (problem := damage_of(store, release, recorded=recorded, deep=deep)) is not None:
            yield release, problem


def promote_again(
    engine: Engine,
    used: UsedChannel,
    settings: Settings,
    gate: PromotionGate,
    *,
    dry_run: bool,
) -> Finding:
    """Enqueue the promotion of the current version again: both manifest and log of its channel are missing."""
    detail = f"manifest and log are missing; version {used.version} of {used.model} was current"
    if settings.stages.get(used.stage) != used.paths.channel:
        detail += "; set the channel with supabase-bridge activate"
        return _finding(FindingKind.DAMAGED_LOG, used.paths, detail, Remedy.REPORTED)
    event = NewEvent(
        kind=EventKind.STAGE_CHANGED,
        workspace=used.workspace,
        model=used.model,
        version=used.version,
        stage=used.stage,
        previous_stage=used.stage,
    )
    # Only tags say that it was current, and any user of MLflow can write tags.
    gate.judge([event])
    if not gate.admits(event):
        detail += f", and does not pass its gate: {gate.blocked.get(event, 'the version is missing')}"
        return _finding(FindingKind.DAMAGED_LOG, used.paths, detail, Remedy.REPORTED)
    if dry_run:
        with engine.connect() as connection:
            reason = reason_not_enqueued(connection, event)
    else:
        reason = enqueue_again(engine, event)
    remedy = Remedy.RECORDED if reason is None else Remedy.REPORTED
    return _finding(FindingKind.DAMAGED_LOG, used.paths, detail if reason is None else f"{detail}; {reason}", remedy)


def _finding(kind: FindingKind, paths: ChannelPaths, detail: str, remedy: Remedy) -> Finding:
    return Finding(kind=kind, subject=paths.manifest, detail=detail, remedy=remedy)
