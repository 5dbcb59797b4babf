"""From the registry's changes to the channel they concern and the version that should be current there."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supabase_bridge.core.events import DEFAULT_WORKSPACE, Event, EventKind, Triggers, effective_assignment
from supabase_bridge.settings.model import Settings

LATEST = Triggers(channel="latest", stages=("Production",), aliases=("champion",))


def event(kind: EventKind, *, number: int = 1, **facts: Any) -> Event:
    created_at = datetime(2025, 11, 1, tzinfo=timezone.utc)
    return Event(
        id=number,
        created_at=created_at,
        kind=kind,
        workspace=DEFAULT_WORKSPACE,
        model="two_tower",
        **{"version": number, **facts},
    )


def moved(previous_stage: str, stage: str) -> Event:
    return event(EventKind.STAGE_CHANGED, previous_stage=previous_stage, stage=stage)


def test_production_switches_latest_and_staging_switches_staging_by_default() -> None:
    assert Settings().triggers == (
        Triggers(channel="latest", stages=("Production",), aliases=("champion",)),
        Triggers(channel="staging", stages=("Staging",), aliases=("challenger",)),
    )


def test_a_channel_has_every_stage_and_alias_that_is_mapped_to_it() -> None:
    settings = Settings(
        stages={"Production": "latest", "Staging": "latest"}, aliases={"champion": "latest", "blue": "canary"}
    )
    assert settings.triggers == (
        Triggers(channel="latest", stages=("Production", "Staging"), aliases=("champion",)),
        Triggers(channel="canary", stages=(), aliases=("blue",)),
    )


@pytest.mark.parametrize(
    ("change", "assigns", "unassigns"),
    [
        (moved("None", "Production"), True, False),
        (moved("Production", "Archived"), False, True),
        (moved("Staging", "Archived"), False, False),
        (event(EventKind.VERSION_CREATED, stage="None"), False, False),
        (event(EventKind.VERSION_DELETED, previous_stage="Production"), False, True),
        (event(EventKind.VERSION_DELETED, previous_stage="None"), False, False),
        (event(EventKind.ALIAS_SET, alias="champion"), True, False),
        (event(EventKind.ALIAS_SET, alias="champion", previous_version=3), True, True),
        (event(EventKind.ALIAS_SET, alias="other", previous_version=3), False, False),
        (event(EventKind.ALIAS_REMOVED, alias="champion"), False, True),
        (event(EventKind.ALIAS_REMOVED, alias="other"), False, False),
        (event(EventKind.MODEL_RENAMED, version=None, previous_model="tower"), False, False),
        (event(EventKind.MODEL_DELETED, version=None), False, False),
    ],
    ids=lambda part: part.kind.value if isinstance(part, Event) else "",
)
def test_a_change_arrives_at_a_channel_or_leaves_it(change: Event, assigns: bool, unassigns: bool) -> None:
    assert (LATEST.assigns(change), LATEST.unassigns(change)) == (assigns, unassigns)


def test_a_move_between_two_stages_of_one_channel_both_leaves_and_arrives() -> None:
    both = Triggers(channel="latest", stages=("Production", "Staging"), aliases=())
    change = moved("Staging", "Production")
    assert both.assigns(change)
    assert both.unassigns(change)


@given(st.lists(st.booleans(), max_size=8))
def test_the_newest_arrival_whose_version_still_holds_wins(holds: list[bool]) -> None:
    assignments = [event(EventKind.STAGE_CHANGED, number=number) for number in range(len(holds), 0, -1)]
    winner = effective_assignment(assignments, lambda arrival: holds[arrival.id - 1])
    holding = [number for number, still in enumerate(holds, start=1) if still]
    assert (None if winner is None else winner.id) == max(holding, default=None)
