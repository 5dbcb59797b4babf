"""Move a pointer without MLflow: for CI jobs, and for when MLflow is down."""

from __future__ import annotations

from datetime import datetime

from supabase_bridge.activate import Switch, activate
from supabase_bridge.channel_log import ChannelLog
from supabase_bridge.documents import Cause
from supabase_bridge.errors import NothingToRollBackToError
from supabase_bridge.layout import ChannelKeys, RunId
from supabase_bridge.object_store import ObjectStore


def point_to(store: ObjectStore, keys: ChannelKeys, run_id: RunId, *, now: datetime) -> Switch:
    """Make a release current; the log entry says that a person did, and no worker undoes it before a promotion.

    Raises:
        ReleaseNotFoundError, ReleaseDamagedError, StoreUnavailableError: see `activate`.
    """
    # As exact as an event's own time: cut to the second, it would lie before a promotion of the same second, and that
    # older promotion would undo it.
    published_at = now.replace(microsecond=now.microsecond // 1000 * 1000)
    return activate(store, keys, run_id, cause=Cause(by_hand=True), published_at=published_at)


def release_before(store: ObjectStore, keys: ChannelKeys) -> RunId:
    """The release that was current before the current one.

    Raises:
        NothingToRollBackToError: there was none.
    """
    head = ChannelLog(store, keys).look().head
    if head is None or not head.previous:
        raise NothingToRollBackToError(keys.model_key, keys.channel)
    return RunId.parse(head.previous[0].run_id)
