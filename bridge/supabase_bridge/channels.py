"""From the registry to a channel: which version should be current. Pure: arrivals in, an answer out.

Of the versions that still hold one of a channel's triggers (a stage, or a mapped alias), the one that got it last is
current, by the outbox's order; MLflow itself lets any number of versions stand in Production at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from supabase_bridge.config import Settings
from supabase_bridge.outbox.events import Event, EventKind, NewEvent


@dataclass(frozen=True, kw_only=True)
class Triggers:
    """What makes a version current in one channel."""

    channel: str
    stages: tuple[str, ...]
    aliases: tuple[str, ...]

    def arrives(self, event: NewEvent) -> bool:
        """True where the event gives its version one of them."""
        if event.kind is EventKind.STAGE_CHANGED:
            return event.stage in self.stages
        return event.kind is EventKind.ALIAS_SET and event.alias in self.aliases

    def leaves(self, event: NewEvent) -> bool:
        """True where the event takes one of them away from a version."""
        if event.kind in {EventKind.STAGE_CHANGED, EventKind.VERSION_DELETED}:
            return event.previous_stage in self.stages
        if event.kind is EventKind.ALIAS_SET:
            return event.alias in self.aliases and event.previous_version is not None
        return event.kind is EventKind.ALIAS_REMOVED and event.alias in self.aliases


def channel_triggers(settings: Settings) -> tuple[Triggers, ...]:
    """Every channel with its triggers, as the settings map them."""
    names = dict.fromkeys([*settings.stages.values(), *settings.aliases.values()])
    return tuple(
        Triggers(channel=name, stages=_keys_to(settings.stages, name), aliases=_keys_to(settings.aliases, name))
        for name in names
    )


def winning_arrival(arrivals: Sequence[Event], still_holds: Callable[[Event], bool]) -> Event | None:
    """The newest arrival, of those given newest first, whose version still holds what it got."""
    return next((arrival for arrival in arrivals if still_holds(arrival)), None)


def _keys_to(mapping: Mapping[str, str], value: str) -> tuple[str, ...]:
    return tuple(key for key, mapped in mapping.items() if mapped == value)
