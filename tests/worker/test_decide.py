"""Each combination of event, assignment, head and pin requires exactly one action. No database, no bucket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from itertools import product

import pytest

from supabase_bridge.core.documents import Cause, CurrentRelease, Manifest
from supabase_bridge.core.events import Event, EventKind, EventState, Triggers
from supabase_bridge.core.layout import ReleasePaths, RunId
from supabase_bridge.core.release_log import pinned
from supabase_bridge.worker.decide import (
    Activate,
    ChannelFacts,
    Facts,
    Mirror,
    Outcome,
    Repair,
    Stay,
    Wait,
    combine,
    concerned,
    decide,
    needs_head,
)

REGISTRY = "0b1f4c1e-6f0a-4f38-9d35-2d1b60a1c9aa"
NOON = datetime(2025, 11, 1, 12, 0, 0, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)
LATEST = Triggers(channel="latest", stages=("Production",), aliases=("champion",))
CANARY = Triggers(channel="canary", stages=("Staging",), aliases=())
OWN, OTHER, THIRD = 2, 1, 3
"""The event's version, the one that holds the channel's stage or alias instead, and one that holds nothing."""
EVENT_ID = 50


def event(kind: EventKind, version: int | None = OWN, **values: object) -> Event:
    base = Event(id=EVENT_ID, created_at=NOON, kind=kind, workspace="default", model="m", version=version, attempts=1)
    return replace(base, **values)  # type: ignore[arg-type]  # each row gives fields of Event


EVENTS = {
    "promoted to the stage": event(EventKind.STAGE_CHANGED, stage="Production", previous_stage="None"),
    "given the alias": event(EventKind.ALIAS_SET, alias="champion"),
    "given the alias of another version": event(EventKind.ALIAS_SET, alias="champion", previous_version=OTHER),
    "archived": event(EventKind.STAGE_CHANGED, stage="Archived", previous_stage="Production"),
    "lost the alias": event(EventKind.ALIAS_REMOVED, alias="champion"),
    "deleted in the stage": event(EventKind.VERSION_DELETED, previous_stage="Production"),
}
ASSIGNS = {"promoted to the stage", "given the alias", "given the alias of another version"}
TRIED = {
    "first attempt": {},
    "second attempt": {"attempts": 2},
    "retried by an operator": {"attempts": 1, "outcome": "the bucket was away"},
}


def assignment(event_id: int, version: int, state: EventState = EventState.PENDING) -> Event:
    made = event(EventKind.STAGE_CHANGED, version, stage="Production")
    return replace(made, id=event_id, state=state)


EFFECTIVE = {
    "none": None,
    "this event": assignment(EVENT_ID, OWN),
    "a later event, pending": assignment(EVENT_ID + 1, OTHER),
    "a later event, done": assignment(EVENT_ID + 1, OTHER, EventState.DONE),
    "an earlier event, pending": assignment(EVENT_ID - 1, OTHER),
    "an earlier event, done": assignment(EVENT_ID - 1, OTHER, EventState.DONE),
}


def entry(version: int, cause: Cause, *, published_at: datetime = NOON) -> Manifest:
    run_id = f"20251031T09383{version}Z"
    paths = ReleasePaths(model_key="m", run_id=RunId.parse(run_id))
    current = CurrentRelease(
        run_id=run_id,
        published_at=published_at,
        model_version=version,
        onnx_path=paths.onnx,
        meta_path=paths.meta,
        metrics_path=paths.metrics,
    )
    return Manifest(model_name="m", channel="latest", sequence=7, current=current, previous=[], cause=cause)


def by_event(event_id: int) -> Cause:
    return Cause(registry_id=REGISTRY, event_id=event_id)


HEADS = {
    "empty": None,
    "own version": entry(OWN, by_event(40)),
    "other version": entry(OTHER, by_event(40)),
    "third version": entry(THIRD, by_event(40)),
    "committed by this event": entry(OWN, by_event(EVENT_ID)),
}
PINS = {
    "not pinned": None,
    "pinned before the event": NOON - MINUTE,
    "pinned after the event": NOON + MINUTE,
}
"""When an operator moved the channel manually to the head's version."""


@dataclass(frozen=True)
class Case:
    """One combination, by the names of its parts."""

    event: str
    tried: str
    effective: str
    head: str
    pin: str
    active: bool

    @property
    def made(self) -> Event:
        return replace(EVENTS[self.event], **TRIED[self.tried])  # type: ignore[arg-type]  # fields of Event

    @property
    def facts(self) -> ChannelFacts:
        head, pinned_at = HEADS[self.head], PINS[self.pin]
        if head is not None and pinned_at is not None:
            head = entry(head.current.model_version or 0, Cause(by_hand=True), published_at=pinned_at)
        effective = EFFECTIVE[self.effective]
        return ChannelFacts(triggers=LATEST, effective=effective, version_is_active=self.active, head=head)

    def action(self) -> Outcome | Activate | Repair | Stay:
        facts = Facts(now=NOON, cause=by_event(EVENT_ID), channels=(self.facts,))
        (action,) = decide(self.made, facts)
        assert isinstance(action, Outcome | Activate | Repair | Stay)
        return action


def cases() -> Iterator[Case]:
    """Every combination that can be: an empty log has no pin, and a manual entry is no event's."""
    for values in product(EVENTS, TRIED, EFFECTIVE, HEADS, PINS, (True, False)):
        case = Case(*values)
        if case.head in {"empty", "committed by this event"} and case.pin != "not pinned":
            continue
        if case.effective == "this event" and case.event not in ASSIGNS:
            continue  # An event that removes an assignment is none itself.
        yield case


EVERY = list(cases())
LATER = {"a later event, pending", "a later event, done"}
PENDING = {"a later event, pending", "an earlier event, pending"}

Row = tuple[dict[str, object], str]

# The table: of each combination the first row that matches holds. A set matches each of its members.
TABLE: list[Row] = [
    # An earlier attempt committed: its activation is finished, wanted or not.
    ({"tried": {"second attempt", "retried by an operator"}, "head": "committed by this event"}, "repair"),
    # An assignment is carried out by the event that is effective, and by no other.
    ({"assigns": True, "effective": LATER}, "superseded by a later event"),
    ({"assigns": True, "effective": {"none", "an earlier event, pending", "an earlier event, done"}}, "holds nothing"),
    # A removal leaves a pending assignment to that event, and follows one that was carried out.
    ({"assigns": False, "effective": "none"}, "stay"),
    ({"assigns": False, "effective": "a later event, pending"}, "superseded by a later event"),
    ({"assigns": False, "effective": "an earlier event, pending"}, "holds nothing"),
    # A manual activation stays until a promotion after it; a removal is no promotion.
    ({"assigns": True, "pin": "pinned after the event"}, "pinned"),
    ({"assigns": False, "pin": {"pinned before the event", "pinned after the event"}}, "pinned"),
    # A removal after which the channel is where it belongs changes nothing.
    ({"assigns": False, "head": "other version"}, "already current"),
    ({}, "activate"),
]


def matches(case: Case, conditions: dict[str, object]) -> bool:
    found: dict[str, object] = {"assigns": case.event in ASSIGNS, **vars(case)}
    return all(
        found[name] in wanted if isinstance(wanted, set) else found[name] == wanted
        for name, wanted in conditions.items()
    )


def kind_of(action: Outcome | Activate | Repair | Stay) -> str:
    """The table's word for an action."""
    if not isinstance(action, Outcome):
        return type(action).__name__.lower()
    words = {
        f"version {OTHER} came to latest after version {OWN}": "superseded by a later event",
        f"version {OWN} no longer holds what makes it latest": "holds nothing",
        f"latest is version {OTHER} already": "already current",
    }
    if action.outcome in words:
        state = EventState.DONE if words[action.outcome] == "already current" else EventState.SUPERSEDED
        assert action.state is state
        return words[action.outcome]
    assert action.state is EventState.SUPERSEDED
    assert action.outcome.startswith("latest was moved to 20251031T09383")
    return "pinned"


def test_each_combination_requires_the_action_of_the_table() -> None:
    wrong = []
    for case in EVERY:
        expected = next(action for conditions, action in TABLE if matches(case, conditions))
        if (found := kind_of(case.action())) != expected:
            wrong.append((case, expected, found))
    assert not wrong
    assert len(EVERY) > 1_000


@pytest.mark.parametrize("number", range(len(TABLE)))
def test_each_row_of_the_table_decides_some_combination(number: int) -> None:
    firsts = (next(i for i, (conditions, _) in enumerate(TABLE) if matches(case, conditions)) for case in EVERY)
    assert number in firsts


def test_an_activation_names_the_version_that_holds_the_assignment_and_when_it_was_promoted() -> None:
    for case in EVERY:
        action = case.action()
        if isinstance(action, Activate):
            assigns, effective = case.event in ASSIGNS, EFFECTIVE[case.effective]
            assert effective is not None
            assert (action.channel, action.version) == ("latest", effective.version)
            assert action.promoted_at == (NOON if assigns else None)
            assert action.head == case.facts.head


def test_a_channel_that_stays_notes_it_on_the_version_only_where_it_points_to_that_version() -> None:
    for case in EVERY:
        action = case.action()
        if isinstance(action, Stay):
            assert action.is_current == (case.active and case.head in {"own version", "committed by this event"})
            assert action.lost == ("@champion" if case.event == "lost the alias" else "Production")


def test_a_repair_finishes_the_entry_that_the_event_committed() -> None:
    repairs = [(case, action) for case in EVERY if isinstance(action := case.action(), Repair)]
    lost = {"promoted to the stage": "Production"}
    for case, action in repairs:
        # The version of an assignment that nothing is effective instead of has lost what the event gave it.
        left = lost.get(case.event, "@champion") if case.event in ASSIGNS and case.effective == "none" else None
        assert action == Repair(channel="latest", entry=entry(OWN, by_event(EVENT_ID)), lost=left), case
    assert {action.lost for _, action in repairs} == {None, "Production", "@champion"}


def test_a_head_that_need_not_be_read_decides_nothing() -> None:
    """What the worker leaves out of its requests cannot change the action."""
    for case in EVERY:
        if not needs_head(case.made, replace(case.facts, head=None)):
            without = Facts(now=NOON, cause=by_event(EVENT_ID), channels=(replace(case.facts, head=None),))
            assert decide(case.made, without) == (case.action(),)


def test_an_event_that_another_one_supersedes_at_its_first_attempt_reads_no_head() -> None:
    superseded = [case for case in EVERY if kind_of(case.action()) in {"superseded by a later event", "holds nothing"}]
    assert superseded
    assert not any(needs_head(case.made, case.facts) for case in superseded if case.tried == "first attempt")


@pytest.mark.parametrize(
    "kind", [EventKind.MODEL_RENAMED, EventKind.MODEL_DELETED, EventKind.VERSION_CREATED, EventKind.STAGE_CHANGED]
)
def test_an_event_that_concerns_no_channel_changes_none(kind: EventKind) -> None:
    made = event(kind, None if kind in {EventKind.MODEL_RENAMED, EventKind.MODEL_DELETED} else OWN, stage="Staging")
    assert concerned(made, [LATEST]) == []
    if kind is EventKind.VERSION_CREATED:
        return
    (action,) = decide(made, Facts(now=NOON, cause=by_event(EVENT_ID)))
    assert isinstance(action, Outcome)
    assert action.state is (EventState.SUPERSEDED if kind is EventKind.STAGE_CHANGED else EventState.DONE)


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("running", [None, "a1b2"])
@pytest.mark.parametrize("late", [True, False])
def test_a_new_version_is_mirrored_once_its_run_has_ended_or_the_grace_period_is_over(
    exists: bool, running: str | None, late: bool
) -> None:
    now = NOON + (10 * MINUTE if late else MINUTE)
    facts = Facts(now=now, cause=by_event(1), version_exists=exists, running=running, run_grace=10 * MINUTE)
    (action,) = decide(event(EventKind.VERSION_CREATED, stage="None"), facts)
    if not exists:
        assert action == Outcome(state=EventState.SUPERSEDED, outcome="the version is gone")
    elif running and not late:
        assert action == Wait(until=now + MINUTE / 10, reason="run a1b2 has not ended yet")
    else:
        assert action == Mirror()


def test_an_event_that_concerns_two_channels_requires_an_action_for_each() -> None:
    moved = event(EventKind.STAGE_CHANGED, stage="Staging", previous_stage="Production")
    triggers = concerned(moved, [LATEST, CANARY])
    assert triggers == [LATEST, CANARY]
    channels = (
        ChannelFacts(triggers=LATEST, effective=None, version_is_active=False),
        ChannelFacts(triggers=CANARY, effective=moved, version_is_active=False),
    )
    actions = decide(moved, Facts(now=NOON, cause=by_event(EVENT_ID), channels=channels))
    assert [type(action) for action in actions] == [Stay, Activate]


@pytest.mark.parametrize(
    ("left", "assigned", "combined"),
    [
        (EventState.DONE, EventState.DONE, EventState.DONE),
        (EventState.SUPERSEDED, EventState.DONE, EventState.DONE),
        (EventState.DONE, EventState.SUPERSEDED, EventState.SUPERSEDED),
        (EventState.SUPERSEDED, EventState.SUPERSEDED, EventState.SUPERSEDED),
    ],
)
def test_an_event_is_done_where_the_channel_that_it_assigns_is(
    left: EventState, assigned: EventState, combined: EventState
) -> None:
    moved = event(EventKind.STAGE_CHANGED, stage="Staging", previous_stage="Production")
    outcomes = [Outcome(state=left, outcome="left"), Outcome(state=assigned, outcome="assigned")]
    assert combine(moved, [LATEST, CANARY], outcomes) == Outcome(state=combined, outcome="left; assigned")


@pytest.mark.parametrize("pin", PINS)
@pytest.mark.parametrize("promoted", [True, False])
def test_an_activation_follows_a_newer_entry_unless_an_operator_moved_the_channel_after_the_promotion(
    pin: str, promoted: bool
) -> None:
    pinned_at = PINS[pin]
    newest = (
        entry(THIRD, by_event(49)) if pinned_at is None else entry(THIRD, Cause(by_hand=True), published_at=pinned_at)
    )
    promoted_at = NOON if promoted else None
    follows = pin == "not pinned" or (promoted and pin == "pinned before the event")
    assert pinned(newest, promoted_at=promoted_at) is not follows
    assert not pinned(None, promoted_at=promoted_at)
