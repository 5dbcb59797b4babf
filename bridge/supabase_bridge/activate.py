"""The activate job: verify a release, commit it to a channel's log, and publish the manifest.

Source: the release specification, section 3, step 5.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from supabase_bridge.channel_log import ChannelLog
from supabase_bridge.documents import (
    LIMIT_BYTES,
    RELEASE_NOTES_LIMIT,
    Cause,
    CurrentRelease,
    FileRecord,
    Manifest,
    ModelMeta,
)
from supabase_bridge.errors import ObjectNotFoundError, ReleaseDamagedError, ReleaseNotFoundError
from supabase_bridge.layout import META_NAME, METRICS_NAME, SIGNATURE_NAME, ChannelKeys, ReleaseKeys, RunId
from supabase_bridge.object_store import ObjectStore
from supabase_bridge.object_store.digest import sha256_of
from supabase_bridge.release_log import next_entry
from supabase_bridge.release_signing import check_signature
from supabase_bridge.signing import UNSEALED, Seal

_AT_ONCE = 4
"""How many files of a release are looked at at the same time."""


@dataclass(frozen=True, kw_only=True)
class VerifiedRelease:
    """A complete release whose files are there as recorded.

    Attributes:
        files: The record of every file, model_meta.json itself among them.
    """

    keys: ReleaseKeys
    meta: ModelMeta
    files: dict[str, FileRecord]


@dataclass(frozen=True, kw_only=True)
class Switch:
    """What an activation came to.

    Attributes:
        entry: The log entry that holds the release: the new one, or the one that held it already; where the switch was
            no longer wanted, the entry that it would have followed.
        switched: True where this call, or an earlier attempt at the same event, moved the pointer.
        head: The log's newest entry when the call ended.
    """

    entry: Manifest
    switched: bool
    head: Manifest


def verify_release(
    store: ObjectStore, keys: ReleaseKeys, *, seal: Seal = UNSEALED, read_all: bool = False
) -> VerifiedRelease:
    """Look at every file that a release records.

    A file whose digest the store recorded when it was written is compared by size and that record, any other is read.

    Args:
        seal: Where it trusts any key, the release's model signature must be one of those keys' of exactly these files.
        read_all: Read every file, whatever digest the store recorded: who can write files can write that as well.

    Raises:
        ReleaseNotFoundError: there is no such release, or it is incomplete.
        ReleaseDamagedError: a file is missing or differs from its record, or model_meta.json is another release's or
            has no record of a file that a manifest names.
        ReleaseSignatureError: no trusted key signed it.
    """
    try:
        raw = store.read(keys.meta, limit_bytes=LIMIT_BYTES)
    except ObjectNotFoundError:
        raise ReleaseNotFoundError(keys.model_key, str(keys.run_id)) from None
    meta = ModelMeta.parse(raw)
    if (meta.model_name, meta.run_id) != (keys.model_key, str(keys.run_id)):
        raise ReleaseDamagedError(keys.meta, "it names another model or run_id than its key")
    for name in (keys.onnx_name, METRICS_NAME):
        if name not in meta.files:
            raise ReleaseDamagedError(keys.file(name), "model_meta.json has no record of it")

    def check(name: str) -> None:
        _check_file(store, keys.file(name), meta.files[name], read_all=read_all)

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="verifying") as pool:
        # The first file that is wrong, in their order, is named.
        deque(pool.map(check, meta.files), maxlen=0)
    own = FileRecord.of(raw)
    files = {**meta.files, META_NAME: own}
    if seal.keys:
        files[SIGNATURE_NAME] = check_signature(store, keys, files, seal)
    return VerifiedRelease(keys=keys, meta=meta, files=files)


def _check_file(store: ObjectStore, key: str, record: FileRecord, *, read_all: bool) -> None:
    try:
        info = store.stat(key)
        digest = None if read_all else info.sha256
        if digest is None and info.size_bytes == record.size_bytes:
            digest = sha256_of(store, key, size_bytes=record.size_bytes)
    except ObjectNotFoundError:
        raise ReleaseDamagedError(key, "it is missing") from None
    if (info.size_bytes, digest) != (record.size_bytes, record.sha256):
        raise ReleaseDamagedError(key, "it differs from what model_meta.json records")


def activate(
    store: ObjectStore,
    channel: ChannelKeys,
    run_id: RunId,
    *,
    cause: Cause,
    published_at: datetime,
    seal: Seal = UNSEALED,
) -> Switch:
    """Make a release the current one of a channel: `verify_release`, then `switch`.

    Raises:
        ReleaseNotFoundError, ReleaseDamagedError, ReleaseSignatureError: see `verify_release`; no pointer is moved.
        StoreUnavailableError: nothing is known about the outcome; the same call may be made again.
    """
    release = verify_release(store, ReleaseKeys(model_key=channel.model_key, run_id=run_id), seal=seal)
    log = ChannelLog(store, channel, seal)
    return switch(log, log.look().head, release, cause=cause, published_at=published_at)


def switch(
    log: ChannelLog,
    head: Manifest | None,
    release: VerifiedRelease,
    *,
    cause: Cause,
    published_at: datetime,
    still_wanted: Callable[[Manifest | None], bool] = lambda _: True,
) -> Switch:
    """Make a release that was just verified the current one of a channel: commit to the log, then publish.

    Idempotent for one event (`cause.event_id`): however often it is tried, and whatever crashed in between, the log has
    it once. A release that is current already is not switched.

    Args:
        head: The log's newest entry as the caller has read it.
        published_at: The entry's time; the same at every attempt of one event.
        still_wanted: Asked of each head that the entry would follow, after it was read: nothing can come between this
            question and the entry, since an entry is created only where the head has not moved. Where it says no,
            nothing is switched.

    Raises:
        StoreUnavailableError: nothing is known about the outcome; the same call may be made again.
        UntrustedLogError, SigningKeyMissingError: see `ChannelLog.commit`; the pointer is not moved.
    """
    entry = log.find(cause, head)
    switched = entry is not None
    if entry is None:
        current = _current(release, published_at)
        notes = _release_notes(release.meta)

        def build(head: Manifest | None) -> Manifest | None:
            if log.find(cause, head) is not None or not still_wanted(head):
                return None
            return next_entry(head, log.keys, current=current, cause=cause, release_notes=notes)

        entry, switched = log.commit(head, build)
        if entry is not None and switched:
            log.publish(entry)
        elif (own := log.find(cause, entry)) is not None:
            # A second attempt at the same event, whose worker was thought dead, was faster.
            entry, switched = own, True
    head = log.heal()
    if entry is None or head is None:
        raise ReleaseDamagedError(log.keys.history_prefix, "the log was emptied while it was written")
    return Switch(entry=entry, switched=switched, head=head)


def _release_notes(meta: ModelMeta) -> str | None:
    """The notes in model_meta.json, where a training job may have written anything."""
    found = (meta.model_extra or {}).get("release_notes")
    return found[:RELEASE_NOTES_LIMIT] if isinstance(found, str) else None


def _current(release: VerifiedRelease, published_at: datetime) -> CurrentRelease:
    keys, origin = release.keys, release.meta.mlflow
    return CurrentRelease(
        run_id=str(keys.run_id),
        published_at=published_at,
        onnx_path=keys.onnx,
        meta_path=keys.meta,
        metrics_path=keys.metrics,
        model_version=None if origin is None else origin.version,
        files=release.files,
    )
