"""Manifests that are not what their logs say: found by reading them, restored from the log."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.arrival_gate import ArrivalGate
from supabase_bridge.channel_log import ChannelLog
from supabase_bridge.config import Settings
from supabase_bridge.documents import LIMIT_BYTES
from supabase_bridge.errors import (
    InvalidChannelError,
    InvalidDocumentError,
    InvalidModelKeyError,
    ManifestRefusedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    UntrustedLogError,
)
from supabase_bridge.layout import ChannelKeys, check_channel, check_model_key
from supabase_bridge.object_store import ObjectStore
from supabase_bridge.outbox.events import EventKind, NewEvent
from supabase_bridge.reconcile_findings import Finding, FindingKind, Remedy, unusable_tag
from supabase_bridge.reconcile_releases import Folder, bytewise
from supabase_bridge.reconcile_repeat import hindrance, record_again
from supabase_bridge.registry_tables import RegistryTables
from supabase_bridge.signing import Seal
from supabase_bridge.status_tags import CHANNEL_TAG, CURRENT

_PAGE = 1_000


@dataclass(frozen=True, kw_only=True)
class UsedChannel:
    """A channel of which the registry says that a version is current there; `model`, `version` and `stage` are its."""

    workspace: str
    model: str
    version: int
    stage: str
    keys: ChannelKeys


def used_channels(
    engine: Engine, tables: RegistryTables, *, workspace: str, model: str | None = None
) -> Iterator[UsedChannel | Finding]:
    """The channels where the registry's tags say that something is current, page by page; or why one can be none."""
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
        keys = ChannelKeys(model_key=check_model_key(row.key), channel=channel)
    except (InvalidModelKeyError, InvalidChannelError) as error:
        return unusable_tag(row.model, row.version, error)
    return UsedChannel(workspace=row.workspace, model=row.model, version=row.version, stage=row.stage, keys=keys)


def is_unchanged(store: ObjectStore, keys: ChannelKeys, seen: MutableMapping[str, str]) -> bool:
    """Whether a manifest is the one that was last seen to be its log's newest entry: one small read.

    Args:
        seen: From a manifest's place to the digest of what it was then.
    """
    try:
        data = store.read(keys.manifest, limit_bytes=LIMIT_BYTES)
    except (ObjectNotFoundError, ObjectTooLargeError):
        return False
    return seen.get(f"{store.name}/{keys.manifest}") == hashlib.sha256(data).hexdigest()


def agrees(folder: Folder) -> bool:
    """Whether a listing alone shows that a channel's manifest is its newest entry, by the store's digests."""
    if folder.logged is None or folder.published is None or folder.logged.etag is None:
        return False
    return (folder.logged.size_bytes, folder.logged.etag) == (folder.published.size_bytes, folder.published.etag)


def restore(
    store: ObjectStore, keys: ChannelKeys, seen: MutableMapping[str, str], *, seal: Seal, dry_run: bool
) -> Finding | None:
    """Compare a manifest with its log, and write the log's newest entry where they differ; None: they do not.

    The log is believed in all: a pointer that somebody moved by hand with our commands is in it, and stays.
    """
    log = ChannelLog(store, keys, seal)
    try:
        state = log.look()
        if state.head is None and state.published is None:
            return None
        if state.head is None:
            detail = "there is a manifest, but no log; move the pointer with supabase-bridge activate"
            return _finding(FindingKind.DAMAGED_LOG, keys, detail, Remedy.REPORTED)
        if state.in_step:
            seen[f"{store.name}/{keys.manifest}"] = hashlib.sha256(state.head.to_bytes()).hexdigest()
            return None
        if not dry_run:
            log.heal()
    except (
        InvalidDocumentError,
        ManifestRefusedError,
        UntrustedLogError,
        ObjectTooLargeError,
        ObjectNotFoundError,
    ) as error:
        return _finding(FindingKind.DAMAGED_LOG, keys, str(error), Remedy.REPORTED)
    what = "it was deleted" if state.published is None else "it was not its log's newest entry"
    detail = f"{what}; entry {state.head.sequence} names {state.head.current.run_id}"
    return _finding(FindingKind.MANIFEST_DIFFERS, keys, detail, Remedy.RESTORED)


def promote_again(
    engine: Engine,
    store: ObjectStore,
    used: UsedChannel,
    settings: Settings,
    gate: ArrivalGate,
    *,
    seal: Seal,
    dry_run: bool,
) -> Finding | None:
    """Record the promotion of the version that is current, where neither manifest nor log is there any more."""
    state = ChannelLog(store, used.keys, seal).look()
    if state.head is not None or state.published is not None:
        return None
    detail = f"manifest and log are gone; version {used.version} of {used.model} was current"
    if settings.stages.get(used.stage) != used.keys.channel:
        detail += "; point to it with supabase-bridge activate"
        return _finding(FindingKind.DAMAGED_LOG, used.keys, detail, Remedy.REPORTED)
    event = NewEvent(
        kind=EventKind.STAGE_CHANGED,
        workspace=used.workspace,
        model=used.model,
        version=used.version,
        stage=used.stage,
        previous_stage=used.stage,
    )
    # That it was current is what its tags say, and anybody may write those.
    gate.judge([event])
    if not gate.admits(event):
        said = f"{detail}, and does not pass its gate: {gate.withheld.get(event, 'it is gone')}"
        return _finding(FindingKind.DAMAGED_LOG, used.keys, said, Remedy.REPORTED)
    if dry_run:
        with engine.connect() as connection:
            reason = hindrance(connection, event)
    else:
        reason = record_again(engine, event)
    remedy = Remedy.RECORDED if reason is None else Remedy.REPORTED
    return _finding(FindingKind.DAMAGED_LOG, used.keys, detail if reason is None else f"{detail}; {reason}", remedy)


def _finding(kind: FindingKind, keys: ChannelKeys, detail: str, remedy: Remedy) -> Finding:
    return Finding(kind=kind, subject=keys.manifest, detail=detail, remedy=remedy)
