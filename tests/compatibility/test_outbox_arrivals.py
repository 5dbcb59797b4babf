"""Which version came when to a stage or an alias, as the outbox remembers."""

from __future__ import annotations

from sqlalchemy.engine import Engine

from supabase_bridge.outbox.events import DEFAULT_WORKSPACE, EventKind, EventState
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.schema import rename_model, retire_model
from tests.compatibility.outboxes import NOW, claimed, finish, record


def arrivals(outbox: Outbox, model: str = "a") -> list[tuple[int | None, int]]:
    """Version and event of each arrival in Production or under the alias champion."""
    found = outbox.arrivals(DEFAULT_WORKSPACE, model, stages=("Production",), aliases=("champion",))
    return [(event.version, event.id) for event in found]


def test_arrivals_are_each_versions_newest_the_newest_first(engine: Engine, outbox: Outbox) -> None:
    record(engine, version=1)
    second = record(engine, version=2)
    record(engine, version=1, stage="Archived", previous_stage="Production")
    first_again = record(engine, version=1)
    record(engine, version=3, stage="Staging")
    record(engine, EventKind.VERSION_CREATED, version=4)
    assert arrivals(outbox) == [(1, first_again), (2, second)]


def test_an_arrival_by_alias_and_one_by_stage_both_count(engine: Engine, outbox: Outbox) -> None:
    by_stage = record(engine, version=1)
    by_alias = record(engine, EventKind.ALIAS_SET, version=1, alias="champion")
    record(engine, EventKind.ALIAS_SET, version=2, alias="other")
    record(engine, EventKind.ALIAS_REMOVED, version=1, alias="champion")
    assert arrivals(outbox) == [(1, by_alias), (1, by_stage)]


def test_finished_and_dead_arrivals_count_and_discarded_ones_do_not(engine: Engine, outbox: Outbox) -> None:
    ids = [record(engine, version=version) for version in (1, 1, 2, 3)]
    finish(outbox, claimed(outbox))
    outbox.discard(ids[1], now=NOW)
    finish(outbox, claimed(outbox), state=EventState.DEAD)
    outbox.discard(ids[3], now=NOW)
    assert arrivals(outbox) == [(2, ids[2]), (1, ids[0])]


def test_arrivals_of_others_do_not_count(engine: Engine, outbox: Outbox) -> None:
    record(engine, model="b")
    record(engine, workspace="research")
    assert arrivals(outbox) == []


def test_a_renamed_model_keeps_its_events_and_a_deleted_one_leaves_none(engine: Engine, outbox: Outbox) -> None:
    event_id = record(engine)
    with engine.begin() as connection:
        rename_model(connection, workspace=DEFAULT_WORKSPACE, old="a", new="b")
    assert (arrivals(outbox, "a"), arrivals(outbox, "b")) == ([], [(1, event_id)])
    with engine.begin() as connection:
        retire_model(connection, workspace=DEFAULT_WORKSPACE, model="b")
    assert arrivals(outbox, "b") == []
