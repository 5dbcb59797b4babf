"""The outbox returns the assignments of versions to the stages and aliases of a channel."""

from __future__ import annotations

from sqlalchemy.engine import Engine

from supabase_bridge.core.events import DEFAULT_WORKSPACE, EventKind, EventState
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.record import rename_model, retire_model
from tests.support.outboxes import LATEST, LEASE, NOW, finish, record


def assignments(outbox: Outbox, model: str = "a") -> list[tuple[int | None, int]]:
    """Return version and event of each assignment to Production or to the alias champion."""
    found = outbox.assignments(DEFAULT_WORKSPACE, model, LATEST)
    return [(event.version, event.id) for event in found]


def test_assignments_are_each_versions_newest_the_newest_first(engine: Engine, outbox: Outbox) -> None:
    record(engine, version=1)
    second = record(engine, version=2)
    record(engine, version=1, stage="Archived", previous_stage="Production")
    first_again = record(engine, version=1)
    record(engine, version=3, stage="Staging")
    record(engine, EventKind.VERSION_CREATED, version=4)
    assert assignments(outbox) == [(1, first_again), (2, second)]


def test_an_assignment_by_alias_and_one_by_stage_both_count(engine: Engine, outbox: Outbox) -> None:
    by_stage = record(engine, version=1)
    by_alias = record(engine, EventKind.ALIAS_SET, version=1, alias="champion")
    record(engine, EventKind.ALIAS_SET, version=2, alias="other")
    record(engine, EventKind.ALIAS_REMOVED, version=1, alias="champion")
    assert assignments(outbox) == [(1, by_alias), (1, by_stage)]


def test_finished_and_dead_assignments_count_and_discarded_ones_do_not(engine: Engine, outbox: Outbox) -> None:
    ids = [record(engine, version=version) for version in (1, 1, 2, 3)]
    for event_id, state in ((ids[0], EventState.DONE), (ids[2], EventState.DEAD)):
        event = outbox.claim("w", now=NOW, lease=LEASE, event_id=event_id)
        assert event is not None
        finish(outbox, event, state=state)
    outbox.discard(ids[1], now=NOW)
    outbox.discard(ids[3], now=NOW)
    assert assignments(outbox) == [(2, ids[2]), (1, ids[0])]


def test_assignments_of_other_models_do_not_count(engine: Engine, outbox: Outbox) -> None:
    record(engine, model="b")
    record(engine, workspace="research")
    assert assignments(outbox) == []


def test_a_renamed_model_keeps_its_events_and_a_deleted_one_leaves_none(engine: Engine, outbox: Outbox) -> None:
    event_id = record(engine)
    with engine.begin() as connection:
        rename_model(connection, workspace=DEFAULT_WORKSPACE, old="a", new="b")
    assert (assignments(outbox, "a"), assignments(outbox, "b")) == ([], [(1, event_id)])
    with engine.begin() as connection:
        retire_model(connection, workspace=DEFAULT_WORKSPACE, model="b")
    assert assignments(outbox, "b") == []
