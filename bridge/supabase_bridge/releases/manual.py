"""Operator actions without MLflow: move a channel, reissue its newest entry, sign a release."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from supabase_bridge.core.documents import Cause, Manifest, Metrics
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId
from supabase_bridge.core.release_log import adopted, chained, reissued
from supabase_bridge.releases.channel import Activation, Channel
from supabase_bridge.releases.errors import ChannelNotFoundError, ReleaseDamagedError, ReleaseNotFoundError
from supabase_bridge.releases.removal import bar_removals, held
from supabase_bridge.releases.verify import place_signature, verify_release
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.trust.signer import NO_SIGNING, SigningPolicy


def activate_manually(
    store: ObjectStore,
    paths: ChannelPaths,
    run_id: RunId,
    *,
    now: datetime,
    signing: SigningPolicy = NO_SIGNING,
    steps_skipped: Sequence[str] = (),
    by: str | None = None,
) -> Activation:
    """Make a release current. The log entry is marked as manual, and no worker moves the channel before a promotion.

    Meanwhile the release is held, so that retention does not remove it.

    Args:
        steps_skipped: The steps that should have run before; the log entry names them.
        by: The operator, whom the log entry names.

    Raises:
        ReleaseNotFoundError, ReleaseDamagedError, ReleaseSignatureError: see `verify_release`; no pointer is moved.
        StoreUnavailableError, UntrustedLogError, SigningError: see `Channel.activate`.
    """
    of_release = ReleasePaths(model_key=paths.model_key, run_id=run_id)
    release = verify_release(store, of_release, signing=signing)
    with held(store, of_release) as hold:
        found = bar_removals(store, of_release, hold.listed)
        if all(item.key != of_release.meta for item in found):
            raise ReleaseNotFoundError(paths.model_key, str(run_id))
        channel = Channel(store, paths, signing)
        head = channel.read_head().head
        cause = Cause(by=by, by_hand=True, steps_skipped=list(steps_skipped) or None)
        return channel.activate(release, head=head, cause=cause, published_at=_milliseconds(now))


def preview_activation(
    store: ObjectStore,
    paths: ChannelPaths,
    run_id: RunId,
    *,
    now: datetime,
    signing: SigningPolicy = NO_SIGNING,
    by: str | None = None,
) -> Manifest | None:
    """Return the manifest that `activate_manually` would write, without its signature; None if nothing would change.

    Nothing is written. The preview has no signature, because a signed manifest could be published by anyone who has it.

    Raises:
        ReleaseNotFoundError, ReleaseDamagedError, ReleaseSignatureError: see `verify_release`.
        UntrustedLogError: see `Channel.read_head`.
    """
    release = verify_release(store, ReleasePaths(model_key=paths.model_key, run_id=run_id), signing=signing)
    channel = Channel(store, paths, signing)
    head = channel.read_head().head
    cause = Cause(by=by, by_hand=True)
    entry = channel.following(release, head=head, cause=cause, published_at=_milliseconds(now))
    return None if entry is None else chained(entry, head)


def reissue(
    store: ObjectStore,
    paths: ChannelPaths,
    *,
    now: datetime,
    signing: SigningPolicy = NO_SIGNING,
    by: str | None = None,
) -> Manifest:
    """Write a channel's newest entry again, signed with the current key and dated `now`. Nothing else changes.

    Returns:
        The log's newest entry.

    Raises:
        ChannelNotFoundError: no release was ever activated in the channel.
        ReleaseNotFoundError, ReleaseDamagedError, ReleaseSignatureError: see `verify_release`; nothing was written.
        UntrustedLogError, SigningError: see `Channel.commit`; nothing was written.
    """
    channel = Channel(store, paths, signing)

    def build(head: Manifest | None) -> Manifest:
        if head is None:
            raise ChannelNotFoundError(paths.model_key, paths.channel)
        current = ReleasePaths(model_key=paths.model_key, run_id=RunId.parse(head.current.run_id))
        files = verify_release(store, current, signing=signing).files
        return reissued(head, files=files, at=_milliseconds(now), by=by)

    entry, _ = channel.commit(channel.read_head().head, build)
    if entry is not None:
        channel.publish(entry)
    head = channel.repair_manifest()
    if head is None:
        raise ReleaseDamagedError(channel.paths.history_prefix, "the log was emptied while it was written")
    return head


def adopt(
    store: ObjectStore,
    paths: ChannelPaths,
    registry_id: str,
    *,
    signing: SigningPolicy = NO_SIGNING,
    by: str | None = None,
) -> Manifest | None:
    """Adopt a channel's log for a registry by a new entry; the current release stays.

    Returns:
        The new entry; None: the log belongs to the registry, or to none, already.

    Raises:
        ChannelNotFoundError: no release was ever activated in the channel.
        UntrustedLogError, SigningError: see `Channel.commit`; nothing was written.
    """
    channel = Channel(store, paths, signing)

    def build(head: Manifest | None) -> Manifest | None:
        if head is None:
            raise ChannelNotFoundError(paths.model_key, paths.channel)
        return None if channel.owner(head) in {None, registry_id} else adopted(head, registry_id, by=by)

    entry, written = channel.commit(channel.read_head().head, build)
    if entry is None or not written:
        return None
    channel.publish(entry)
    channel.repair_manifest()
    return entry


def sign_release(store: ObjectStore, paths: ReleasePaths, *, signing: SigningPolicy) -> None:
    """Read every byte of a complete release and sign it: the operator vouches for files that no trusted key signed.

    A signature of these files by a trusted key is kept.

    Raises:
        ReleaseNotFoundError, ReleaseDamagedError: see `verify_release`; nothing was written.
        SigningError: see `place_signature`.
    """
    release = verify_release(store, paths, read_all=True)
    place_signature(store, paths, release.files, signing)


def failed_criteria(store: ObjectStore, paths: ReleasePaths) -> str | None:
    """The criteria that a release failed when it was made; None where it failed none, or has no verdict.

    Raises:
        ObjectStoreError, InvalidDocumentError: its metrics.json cannot be read.
    """
    metrics = Metrics.parse(store.read(paths.metrics, limit_bytes=LIMIT_BYTES))
    if metrics.threshold_passed is not False:
        return None
    verdict = metrics.verdict()
    return "threshold_passed is false" if verdict is None else verdict.reason


def release_before(store: ObjectStore, paths: ChannelPaths, *, signing: SigningPolicy = NO_SIGNING) -> RunId | None:
    """The release that was current before the current one; None where there was none.

    Raises:
        UntrustedLogError: see `Channel.read_head`.
    """
    head = Channel(store, paths, signing).read_head().head
    return None if head is None or not head.previous else RunId.parse(head.previous[0].run_id)


def _milliseconds(now: datetime) -> datetime:
    """The time as exact as an event's own: without milliseconds it could lie before a promotion of the same second."""
    return now.replace(microsecond=now.microsecond // 1000 * 1000)
