"""Freeze the channels of a model, and end a freeze: checked against the registry and the settings first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from supabase_bridge.app.errors import CommandError
from supabase_bridge.app.runtime import Runtime
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.core.events import DEFAULT_WORKSPACE
from supabase_bridge.outbox import freezes
from supabase_bridge.outbox.freezes import Freeze
from supabase_bridge.settings.sources import process_user


def freeze_model(runtime: Runtime, subject: str, *, reason: str, until: datetime | None) -> Sequence[Freeze]:
    """Freeze a model, or one of its channels, and return the freezes of the model that are now in force.

    Args:
        subject: The registered model's name, or MODEL@CHANNEL.

    Raises:
        ModelNotFoundError: there is no such model.
        SettingsError: nothing moves this channel, the reason is empty, or `until` is over.
        RegistryUnavailableError: the database did not answer; nothing was changed.
    """
    model, channel = runtime.settings.split_subject(subject)
    runtime.registry.model(model)
    if not reason.strip():
        raise SettingsError("--reason", "expected a text: MLflow's UI shows it to everyone whose promotion is refused")
    if until is not None and until <= datetime.now(timezone.utc):
        raise SettingsError("--until", "this time is over")
    engine = runtime.outbox.engine
    freezes.freeze(engine, DEFAULT_WORKSPACE, model, channel, reason=reason.strip(), by=process_user(), until=until)
    return freezes.load_freezes(engine, DEFAULT_WORKSPACE, model)


def thaw_model(runtime: Runtime, subject: str) -> Sequence[Freeze]:
    """End the freeze of a model, or of one of its channels, and return those of the model that are still in force.

    Raises:
        RegistryUnavailableError: the database did not answer; nothing was changed.
        CommandError: there is no such freeze.
    """
    model, channel = runtime.settings.split_subject(subject)
    engine = runtime.outbox.engine
    ended = freezes.thaw(engine, DEFAULT_WORKSPACE, model, channel, by=process_user())
    left = freezes.load_freezes(engine, DEFAULT_WORKSPACE, model)
    if not ended:
        others = f"; in force: {', '.join(map(str, left))}" if left else ""
        raise CommandError(f"{subject} is not frozen{others}")
    return left
