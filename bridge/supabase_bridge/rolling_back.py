"""Roll a channel back: promote the version of an earlier release again, and see the pointer follow."""

from __future__ import annotations

import time
from datetime import timedelta

from supabase_bridge.activate import verify_release
from supabase_bridge.by_hand import release_before
from supabase_bridge.channels import Triggers, channel_triggers
from supabase_bridge.errors import EventUnfinishedError, ReleaseWithoutVersionError, SettingsError
from supabase_bridge.identity import model_key
from supabase_bridge.layout import ChannelKeys, ReleaseKeys, RunId
from supabase_bridge.outbox.events import DEFAULT_WORKSPACE, Event, EventState
from supabase_bridge.runtime import Runtime

_PATIENCE = timedelta(seconds=60)
_PAUSE_SECONDS = 0.1


def roll_back(runtime: Runtime, model: str, *, channel: str, run_id: RunId | None) -> RunId:
    """Promote the version of an earlier release in MLflow, and work through the outbox until the manifest names it.

    Args:
        model: The registered model's name.
        run_id: The release to go back to; None: the one before the current one.

    Returns:
        The release that is current now.

    Raises:
        ModelNotFoundError, NothingToRollBackToError, ReleaseNotFoundError, ReleaseDamagedError: nothing was changed.
        ReleaseSignatureError, UntrustedLogError: nothing was changed.
        ReleaseWithoutVersionError: the release was not made from MLflow; nothing was changed.
        EventUnfinishedError: the promotion is in MLflow, but the pointer has not followed.
    """
    store = runtime.stores(runtime.settings.bucket)
    key = model_key(runtime.registry, store, model, DEFAULT_WORKSPACE)
    keys = ChannelKeys(model_key=key, channel=channel)
    target = run_id or release_before(store, keys, seal=runtime.seal)
    origin = verify_release(store, ReleaseKeys(model_key=key, run_id=target), seal=runtime.seal).meta.mlflow
    if origin is None:
        raise ReleaseWithoutVersionError(key, str(target))
    event = _promote(runtime, model, origin.version, _triggers(runtime, channel))
    _work_until_finished(runtime, event)
    return target


def _triggers(runtime: Runtime, channel: str) -> Triggers:
    found = [item for item in channel_triggers(runtime.settings) if item.channel == channel]
    if not found:
        raise SettingsError("--channel", f"no stage and no alias switches {channel!r}; see [channels] in the settings")
    return found[0]


def _promote(runtime: Runtime, model: str, version: int, triggers: Triggers) -> Event:
    """Make the version the one that got the channel's trigger last, and return the event that says so."""
    if triggers.stages:
        runtime.registry.promote(model, version, triggers.stages[0])
    else:
        runtime.registry.set_alias(model, triggers.aliases[0], version)
    arrivals = runtime.outbox.arrivals(DEFAULT_WORKSPACE, model, stages=triggers.stages, aliases=triggers.aliases)
    return next(arrival for arrival in arrivals if arrival.version == version)


def _work_until_finished(runtime: Runtime, event: Event) -> None:
    """Take up events, beside whatever other workers do, until this one is finished."""
    worker = runtime.worker()
    deadline = time.monotonic() + _PATIENCE.total_seconds()
    while (now := runtime.outbox.get(event.id)).state is EventState.PENDING and time.monotonic() < deadline:
        if worker.step() is None:
            time.sleep(_PAUSE_SECONDS)
    if now.state is not EventState.DONE:
        raise EventUnfinishedError(event.id, now.state.value, now.outcome)
