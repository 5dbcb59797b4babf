"""What is current, what waits and what failed: one look at the registry, the outbox and the store together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from supabase_bridge.channel_log import ChannelLog
from supabase_bridge.channels import channel_triggers
from supabase_bridge.identity import MODEL_KEY_TAG
from supabase_bridge.layout import ChannelKeys
from supabase_bridge.outbox.events import EventState
from supabase_bridge.release_log import moved_by_hand
from supabase_bridge.runtime import Runtime
from supabase_bridge.status_tags import ERROR_TAG, STATUS_TAG


@dataclass(frozen=True, kw_only=True)
class ChannelReport:
    """A pointer as consumers see it; `in_step` is False where manifest.json differs from the log's newest entry."""

    channel: str
    run_id: str
    model_version: int | None
    sequence: int
    published_at: datetime
    moved_by_hand: bool
    in_step: bool


@dataclass(frozen=True, kw_only=True)
class VersionReport:
    """A version as its tags tell."""

    version: int
    stage: str
    run_id: str | None
    status: str | None
    error: str | None


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """A registered model; `key` is None where nothing of it was mirrored yet."""

    model: str
    key: str | None
    channels: tuple[ChannelReport, ...]
    versions: tuple[VersionReport, ...]
    waiting: int
    dead: int


def report(runtime: Runtime, model: str | None) -> list[ModelReport]:
    """The state of one registered model, or of all of the default workspace.

    Raises:
        ModelNotFoundError: there is no such model.
    """
    names = runtime.registry.models() if model is None else [model]
    unfinished = runtime.outbox.events(states=(EventState.PENDING, EventState.DEAD), model=model)
    counts = Counter((event.model, event.state) for event in unfinished)
    return [_model(runtime, name, counts) for name in names]


def _model(runtime: Runtime, name: str, counts: Counter[tuple[str, EventState]]) -> ModelReport:
    key = runtime.registry.model_tags(name).get(MODEL_KEY_TAG)
    versions = tuple(
        VersionReport(
            version=version.version,
            stage=version.stage,
            run_id=version.tags.get("supabase.run_id"),
            status=version.tags.get(STATUS_TAG),
            error=version.tags.get(ERROR_TAG),
        )
        for version in runtime.registry.versions(name)
    )
    return ModelReport(
        model=name,
        key=key,
        channels=() if key is None else _channels(runtime, key),
        versions=versions,
        waiting=counts[name, EventState.PENDING],
        dead=counts[name, EventState.DEAD],
    )


def _channels(runtime: Runtime, key: str) -> tuple[ChannelReport, ...]:
    found: list[ChannelReport] = []
    for triggers in channel_triggers(runtime.settings):
        keys = ChannelKeys(model_key=key, channel=triggers.channel)
        state = ChannelLog(runtime.stores(runtime.settings.bucket), keys).look()
        if state.head is None:
            continue
        current = state.head.current
        found.append(
            ChannelReport(
                channel=triggers.channel,
                run_id=current.run_id,
                model_version=current.model_version,
                sequence=state.head.sequence,
                published_at=current.published_at,
                moved_by_hand=moved_by_hand(state.head),
                in_step=state.in_step,
            )
        )
    return tuple(found)
