"""What a person does without MLflow: move a pointer, confirm it, sign a release."""

from __future__ import annotations

from datetime import datetime

from supabase_bridge.activate import Switch, activate, verify_release
from supabase_bridge.channel_log import ChannelLog
from supabase_bridge.completion import verdict_of
from supabase_bridge.documents import LIMIT_BYTES, Cause, Manifest, Metrics
from supabase_bridge.errors import ChannelNotFoundError, NothingToRollBackToError, ReleaseDamagedError
from supabase_bridge.layout import ChannelKeys, ReleaseKeys, RunId
from supabase_bridge.object_store import ObjectStore
from supabase_bridge.release_log import confirmed
from supabase_bridge.release_signing import place_signature
from supabase_bridge.signing import UNSEALED, Seal


def point_to(store: ObjectStore, keys: ChannelKeys, run_id: RunId, *, now: datetime, seal: Seal = UNSEALED) -> Switch:
    """Make a release current; the log entry says that a person did, and no worker undoes it before a promotion.

    Raises:
        ReleaseNotFoundError, ReleaseDamagedError, ReleaseSignatureError, StoreUnavailableError: see `activate`.
        UntrustedLogError, SigningKeyMissingError: see `activate`.
    """
    return activate(store, keys, run_id, cause=Cause(by_hand=True), published_at=_milliseconds(now), seal=seal)


def confirm(store: ObjectStore, keys: ChannelKeys, *, now: datetime, seal: Seal = UNSEALED) -> Manifest:
    """Write a channel's newest entry once more: signed with the key in use, and as old as `now`. Nothing else changes.

    Returns:
        The log's newest entry.

    Raises:
        ChannelNotFoundError: nothing was ever promoted to the channel.
        ReleaseNotFoundError, ReleaseDamagedError, ReleaseSignatureError: see `verify_release`; nothing was written.
        UntrustedLogError, SigningKeyMissingError: see `ChannelLog.commit`; nothing was written.
    """
    log = ChannelLog(store, keys, seal)

    def build(head: Manifest | None) -> Manifest:
        if head is None:
            raise ChannelNotFoundError(keys.model_key, keys.channel)
        current = ReleaseKeys(model_key=keys.model_key, run_id=RunId.parse(head.current.run_id))
        return confirmed(head, files=verify_release(store, current, seal=seal).files, at=_milliseconds(now))

    entry, _ = log.commit(log.look().head, build)
    if entry is not None:
        log.publish(entry)
    head = log.heal()
    if head is None:
        raise ReleaseDamagedError(log.keys.history_prefix, "the log was emptied while it was written")
    return head


def sign_release(store: ObjectStore, keys: ReleaseKeys, *, seal: Seal) -> None:
    """Sign a complete release as it is now, every byte of it read: a person vouches for what no trusted key signed.

    A signature of these files by a trusted key is kept.

    Raises:
        ReleaseNotFoundError, ReleaseDamagedError: see `verify_release`; nothing was written.
        SigningExtraMissingError: see `place_signature`.
    """
    release = verify_release(store, keys, read_all=True)
    place_signature(store, keys, release.files, seal)


def failed_criteria(store: ObjectStore, keys: ReleaseKeys) -> str | None:
    """By what a release failed its gate when it was made; None where it did not, or nothing is known.

    Raises:
        ObjectStoreError, InvalidDocumentError: its metrics.json cannot be read.
    """
    metrics = Metrics.parse(store.read(keys.metrics, limit_bytes=LIMIT_BYTES))
    if metrics.threshold_passed is not False:
        return None
    verdict = verdict_of(metrics)
    return "threshold_passed is false" if verdict is None else verdict.reason


def release_before(store: ObjectStore, keys: ChannelKeys, *, seal: Seal = UNSEALED) -> RunId:
    """The release that was current before the current one.

    Raises:
        NothingToRollBackToError: there was none.
        UntrustedLogError: see `ChannelLog.look`.
    """
    head = ChannelLog(store, keys, seal).look().head
    if head is None or not head.previous:
        raise NothingToRollBackToError(keys.model_key, keys.channel)
    return RunId.parse(head.previous[0].run_id)


def _milliseconds(now: datetime) -> datetime:
    """As exact as an event's own time: cut to the second, a move by hand would lie before a promotion of that second,
    and that older promotion would undo it."""
    return now.replace(microsecond=now.microsecond // 1000 * 1000)
