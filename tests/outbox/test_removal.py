"""Finished events go when they are old; what says which version is current, or was, stays."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from sqlalchemy.engine import Engine

from supabase_bridge.core.events import DEFAULT_WORKSPACE, EventKind, EventState, Triggers
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.record import retire_model
from supabase_bridge.outbox.tables import OUTBOX
from tests.support.outboxes import LATEST, NOW, record

AGE = timedelta(days=90)
LATER = NOW + timedelta(days=91)

EVERY_TRIGGER = Triggers(channel="latest", stages=("Production", "Staging"), aliases=("champion", "other"))


def finished(
    engine: Engine,
    kind: EventKind = EventKind.STAGE_CHANGED,
    *,
    state: EventState = EventState.DONE,
    at: datetime = NOW,
    **facts: Any,
) -> int:
    """Record an event that was finished; see `record`."""
    event_id = record(engine, kind, **facts)
    values = {"state": state.value, "finished_ms": round(at.timestamp() * 1_000)}
    with engine.begin() as connection:
        connection.execute(OUTBOX.update().where(OUTBOX.c.id == event_id).values(values))
    return event_id


def remove(outbox: Outbox) -> None:
    last: int | None = 0
    while last is not None:
        last = outbox.remove_finished(older_than=AGE, after=last, now=LATER)


def left(outbox: Outbox) -> list[int]:
    return [event.id for event in outbox.events()]


def test_what_was_finished_long_ago_goes_and_the_rest_stays(engine: Engine, outbox: Outbox) -> None:
    for state in (EventState.DONE, EventState.SUPERSEDED, EventState.DISCARDED):
        finished(engine, EventKind.VERSION_CREATED, state=state)
    young = finished(engine, EventKind.VERSION_CREATED, at=NOW + timedelta(days=2))
    failed = finished(engine, EventKind.VERSION_CREATED, state=EventState.DEAD)
    waiting = record(engine, EventKind.VERSION_CREATED)
    remove(outbox)
    assert left(outbox) == [young, failed, waiting]


def test_the_database_says_what_is_long_ago(engine: Engine, outbox: Outbox) -> None:
    finished(engine, EventKind.VERSION_CREATED, at=datetime(2020, 1, 1, tzinfo=timezone.utc))
    young = finished(engine, EventKind.VERSION_CREATED, at=datetime.now(timezone.utc) - timedelta(days=89))
    outbox.remove_finished(older_than=AGE)
    assert left(outbox) == [young]


def test_each_versions_newest_arrival_stays_and_the_answer_is_the_same(engine: Engine, outbox: Outbox) -> None:
    for version in (1, 2, 1):
        finished(engine, version=version)
        finished(engine, EventKind.ALIAS_SET, version=version, alias="champion")
    finished(engine, version=1, stage="Staging")
    finished(engine, EventKind.ALIAS_SET, version=1, alias="other")
    removed = finished(engine, EventKind.ALIAS_REMOVED, version=1, alias="other")

    def assignments() -> list[int]:
        found = outbox.assignments(DEFAULT_WORKSPACE, "a", EVERY_TRIGGER)
        return [event.id for event in found]

    before = assignments()
    remove(outbox)
    assert assignments() == before
    assert sorted(left(outbox)) == sorted([*before, removed])


def test_the_newest_arrival_that_was_carried_out_stays_as_well(engine: Engine, outbox: Outbox) -> None:
    finished(engine)
    done = finished(engine)
    finished(engine, state=EventState.SUPERSEDED)
    skipped = finished(engine, state=EventState.SUPERSEDED)
    remove(outbox)
    assert left(outbox) == [done, skipped]


def test_an_arrival_outlives_those_that_may_yet_be_discarded(engine: Engine, outbox: Outbox) -> None:
    skipped = finished(engine, state=EventState.SUPERSEDED)
    failed = finished(engine, state=EventState.DEAD)
    waiting = record(engine)
    remove(outbox)
    assert left(outbox) == [skipped, failed, waiting]
    outbox.discard(failed)
    outbox.discard(waiting)
    found = outbox.assignments(DEFAULT_WORKSPACE, "a", LATEST)
    assert [event.id for event in found] == [skipped]


def test_of_a_deleted_model_and_of_what_was_discarded_nothing_stays(engine: Engine, outbox: Outbox) -> None:
    finished(engine)
    with engine.begin() as connection:
        retire_model(connection, workspace=DEFAULT_WORKSPACE, model="a")
    finished(engine, model="b", state=EventState.DISCARDED)
    gone = finished(engine, EventKind.VERSION_DELETED, model="b")
    remove(outbox)
    assert left(outbox) == [gone]


def test_they_go_in_batches_past_what_stays(engine: Engine, outbox: Outbox) -> None:
    kept = finished(engine)
    old = {
        "kind": "version_created",
        "workspace": "w",
        "model": "m",
        "version": 1,
        "model_deleted": False,
        "state": "done",
    }
    numbers = {"created_ms": 0, "attempts": 1, "not_before_ms": 0, "finished_ms": 0}
    with engine.begin() as connection:
        connection.execute(OUTBOX.insert(), [{**old, **numbers}] * 1_100)
    last_word = left(outbox)[-1]
    last = outbox.remove_finished(older_than=AGE, now=LATER)
    assert len(left(outbox)) == 601
    assert outbox.remove_finished(older_than=AGE, after=last or 0, now=LATER) is not None
    remove(outbox)
    assert left(outbox) == [kept, last_word]


def test_the_last_word_about_a_version_and_an_alias_stays(engine: Engine, outbox: Outbox) -> None:
    created = finished(engine, EventKind.VERSION_CREATED, version=1)
    finished(engine, EventKind.VERSION_CREATED, version=2)
    moved = finished(engine, version=2, stage="Archived")
    removed = finished(engine, EventKind.ALIAS_REMOVED, version=2, alias="champion")
    remove(outbox)
    assert left(outbox) == [created, moved, removed]
