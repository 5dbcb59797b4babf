"""Roll a channel back: promote the version of an earlier release again, and wait for the manifest."""

from __future__ import annotations

import time
from datetime import timedelta

from supabase_bridge.app.errors import CommandError
from supabase_bridge.app.runtime import Runtime
from supabase_bridge.core.documents import ModelMeta
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.core.events import DEFAULT_WORKSPACE, Event, EventState, Triggers
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId
from supabase_bridge.registry.naming import model_key
from supabase_bridge.releases.manual import release_before
from supabase_bridge.releases.removal import read_archived
from supabase_bridge.releases.verify import verify_release

_TIMEOUT = timedelta(seconds=60)
_PAUSE_SECONDS = 0.1


def roll_back(runtime: Runtime, model: str, *, channel: str, run_id: RunId | None) -> RunId:
    """Promote the version of an earlier release in MLflow, and process the outbox until the manifest names the release.

    Args:
        model: The registered model's name.
        run_id: The release to go back to; None: the one before the current one.

    Returns:
        The run_id of the release that is now current.

    Raises:
        ModelNotFoundError, ReleaseNotFoundError, ReleaseDamagedError: nothing was changed.
        ReleaseSignatureError, UntrustedLogError: nothing was changed.
        CommandError: there is no earlier release, or it has no MLflow version, and nothing was changed; or the version
            is promoted in MLflow, but the event is not finished.
    """
    store = runtime.stores(runtime.settings.bucket)
    key = model_key(runtime.registry, store, runtime.registry.model(model))
    paths = ChannelPaths(model_key=key, channel=channel)
    target = run_id or release_before(store, paths, signing=runtime.signing)
    if target is None:
        raise CommandError.no_earlier_release(paths)
    release = ReleasePaths(model_key=key, run_id=target)
    # A promotion restores a release that retention removed.
    if (removed := read_archived(store, release)) is not None:
        origin = ModelMeta.parse(removed).mlflow
    else:
        origin = verify_release(store, release, signing=runtime.signing).meta.mlflow
    if origin is None:
        raise CommandError(
            f"{key} {target} has no MLflow version, so MLflow cannot promote it; change only the channel: "
            f"supabase-bridge activate {key} {target}"
        )
    event = _promote(runtime, model, origin.version, _triggers(runtime, channel))
    steps = runtime.settings.steps_of(model, key, channel)
    _work_until_finished(runtime, event, _TIMEOUT + sum((step.timeout for step in steps), timedelta(0)))
    return target


def _triggers(runtime: Runtime, channel: str) -> Triggers:
    found = [item for item in runtime.settings.triggers if item.channel == channel]
    if not found:
        problem = f"no stage and no alias is mapped to {channel!r}; see [channels] in the settings"
        raise SettingsError("--channel", problem)
    return found[0]


def _promote(runtime: Runtime, model: str, version: int, triggers: Triggers) -> Event:
    """Assign to the version what moved the channel last, and return the event of that assignment.

    Without such an event it is the channel's stage, else its alias.
    """
    assignments = runtime.outbox.assignments(DEFAULT_WORKSPACE, model, triggers)
    if assignments and assignments[0].alias is not None:
        runtime.registry.set_alias(model, assignments[0].alias, version)
    elif triggers.stages:
        runtime.registry.promote(model, version, (assignments and assignments[0].stage) or triggers.stages[0])
    else:
        runtime.registry.set_alias(model, triggers.aliases[0], version)
    assignments = runtime.outbox.assignments(DEFAULT_WORKSPACE, model, triggers)
    return next(event for event in assignments if event.version == version)


def _work_until_finished(runtime: Runtime, event: Event, timeout: timedelta) -> None:
    """Process this event, beside other workers, until it is finished; no other event can keep it waiting."""
    worker = runtime.worker()
    deadline = time.monotonic() + timeout.total_seconds()
    while (now := runtime.outbox.get(event.id)).state is EventState.PENDING and time.monotonic() < deadline:
        if worker.step(event.id) is None:
            time.sleep(_PAUSE_SECONDS)
    if now.state is not EventState.DONE:
        raise CommandError(
            f"the promotion is recorded as event {event.id}, which is {now.state.value}: "
            f"{now.outcome or 'no worker has processed it yet'}. See `supabase-bridge outbox list`"
        )
