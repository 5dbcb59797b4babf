"""The outbox on a real SQLite file: who gets which event when, and what becomes of it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.errors import (
    EventNotFoundError,
    LeaseLostError,
)
from supabase_bridge.outbox.events import DEFAULT_WORKSPACE, Event, EventKind, EventState, NewEvent
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.schema import OUTBOX, append, ensure_schema, rename_model, retire_model

NOW = datetime(2025, 11, 1, 12, tzinfo=timezone.utc)
LEASE = timedelta(seconds=60)


def connect(path: Path) -> Engine:
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})

    @sa.event.listens_for(engine, "connect")
    def _without_flushing(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    return engine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = connect(tmp_path / "mlflow.db")
    ensure_schema(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def outbox(engine: Engine) -> Outbox:
    return Outbox(engine)


def record(engine: Engine, kind: EventKind = EventKind.STAGE_CHANGED, **facts: Any) -> int:
    """Record a change of version 1 of model "a", unless `facts` say otherwise; returns the event's id."""
    if kind is EventKind.STAGE_CHANGED:
        facts = {"stage": "Production", "previous_stage": "None", **facts}
    event = NewEvent(**{"kind": kind, "workspace": DEFAULT_WORKSPACE, "model": "a", "version": 1, **facts})
    with engine.begin() as connection:
        append(connection, event)
        return int(connection.execute(sa.select(sa.func.max(OUTBOX.c.id))).scalar_one())


def claim(outbox: Outbox, worker: str = "w", *, after: timedelta = timedelta()) -> Event | None:
    return outbox.claim(worker, now=NOW + after, lease=LEASE)


def claimed(outbox: Outbox, worker: str = "w", *, after: timedelta = timedelta()) -> Event:
    event = claim(outbox, worker, after=after)
    assert event is not None
    return event


def finish(outbox: Outbox, event: Event, worker: str = "w", state: EventState = EventState.DONE) -> None:
    outbox.finish(event, worker, state, "outcome", now=NOW)


def in_hand(outbox: Outbox) -> list[int]:
    """Claim all that can be claimed now; the events' ids."""
    found: list[int] = []
    while (event := claim(outbox)) is not None:
        found.append(event.id)
    return found


def test_an_event_comes_out_as_the_change_went_in(engine: Engine, outbox: Outbox) -> None:
    change = NewEvent(
        kind=EventKind.ALIAS_SET, workspace="research", model="a", version=2, alias="champion", previous_version=1
    )
    with engine.begin() as connection:
        append(connection, change)
    event = claimed(outbox)
    assert {name: getattr(event, name) for name in vars(change)} == vars(change)
    assert (event.id, event.state, event.attempts, event.leased_by) == (1, EventState.PENDING, 1, "w")
    assert (event.started_at, event.leased_until) == (NOW, NOW + LEASE)
    assert event.created_at.tzinfo is timezone.utc


def test_an_empty_outbox_hands_out_nothing(outbox: Outbox) -> None:
    assert claim(outbox) is None


def test_the_events_of_a_model_come_one_at_a_time_in_their_order(engine: Engine, outbox: Outbox) -> None:
    ids = [record(engine, version=version) for version in (1, 2, 3)]
    for expected in ids:
        event = claimed(outbox)
        assert event.id == expected
        assert claim(outbox, "other") is None
        finish(outbox, event)
    assert claim(outbox) is None


def test_other_models_and_workspaces_do_not_wait(engine: Engine, outbox: Outbox) -> None:
    first, _, other, elsewhere = (
        record(engine),
        record(engine, version=2),
        record(engine, model="b"),
        record(engine, workspace="research"),
    )
    assert in_hand(outbox) == [first, other, elsewhere]


def test_names_that_differ_in_case_only_are_different_models(engine: Engine, outbox: Outbox) -> None:
    ids = [record(engine, model="tower"), record(engine, model="Tower")]
    assert in_hand(outbox) == ids


def test_a_new_version_that_waits_holds_nobody_up(engine: Engine, outbox: Outbox) -> None:
    record(engine, EventKind.VERSION_CREATED)
    promotion = record(engine)
    outbox.postpone(claimed(outbox), "w", "its run has not ended", until=NOW + timedelta(hours=1))
    assert claimed(outbox).id == promotion


def test_a_new_version_waits_for_the_change_before_it(engine: Engine, outbox: Outbox) -> None:
    promotion = record(engine)
    created = record(engine, EventKind.VERSION_CREATED, version=2)
    event = claimed(outbox)
    assert event.id == promotion
    assert claim(outbox) is None
    finish(outbox, event)
    assert claimed(outbox).id == created


def test_a_new_version_in_hand_holds_its_model(engine: Engine, outbox: Outbox) -> None:
    record(engine, EventKind.VERSION_CREATED)
    promotion = record(engine)
    created = claimed(outbox)
    assert claim(outbox, "other") is None
    finish(outbox, created)
    assert claimed(outbox, "other").id == promotion


def test_a_change_that_waits_for_its_next_attempt_holds_its_model(engine: Engine, outbox: Outbox) -> None:
    first = record(engine)
    record(engine, version=2)
    outbox.postpone(claimed(outbox), "w", "no network", until=NOW + timedelta(seconds=5))
    assert claim(outbox) is None
    assert claim(outbox, after=timedelta(seconds=4.999)) is None
    assert claimed(outbox, after=timedelta(seconds=5)).id == first


@pytest.mark.parametrize("state", [EventState.DONE, EventState.SUPERSEDED, EventState.DEAD])
def test_a_finished_change_makes_way(engine: Engine, outbox: Outbox, state: EventState) -> None:
    first, second = record(engine), record(engine, version=2)
    finish(outbox, claimed(outbox), state=state)
    assert claimed(outbox).id == second
    finished = outbox.get(first)
    assert (finished.state, finished.outcome, finished.finished_at) == (state, "outcome", NOW)
    assert (finished.leased_by, finished.leased_until) == (None, None)


def test_an_event_is_held_to_the_end_of_its_lease_and_then_taken_over(engine: Engine, outbox: Outbox) -> None:
    record(engine)
    slow = claimed(outbox, "slow")
    assert claim(outbox, "other", after=LEASE) is None
    taken = claimed(outbox, "other", after=LEASE + timedelta(milliseconds=1))
    assert (taken.id, taken.attempts, taken.leased_by) == (slow.id, 2, "other")


def test_a_worker_that_lost_its_event_can_write_nothing_more(engine: Engine, outbox: Outbox) -> None:
    record(engine)
    slow = claimed(outbox, "slow")
    taken = claimed(outbox, "other", after=2 * LEASE)
    calls: list[Callable[[], object]] = [
        lambda: finish(outbox, slow, "slow"),
        lambda: outbox.postpone(slow, "slow", "reason", until=NOW),
        lambda: outbox.renew(slow, "slow", now=NOW, lease=LEASE),
    ]
    for call in calls:
        with pytest.raises(LeaseLostError) as lost:
            call()
        assert lost.value.event_id == slow.id
    assert outbox.get(slow.id) == taken


def test_a_worker_that_lost_its_event_and_got_it_again_holds_only_the_second_lease(
    engine: Engine, outbox: Outbox
) -> None:
    record(engine)
    first = claimed(outbox)
    second = claimed(outbox, after=2 * LEASE)
    with pytest.raises(LeaseLostError):
        finish(outbox, first)
    finish(outbox, second)


def test_a_renewed_lease_lasts_longer(engine: Engine, outbox: Outbox) -> None:
    record(engine)
    event = claimed(outbox)
    outbox.renew(event, "w", now=NOW + LEASE, lease=LEASE)
    assert claim(outbox, "other", after=2 * LEASE) is None
    finish(outbox, event)


def test_a_finished_event_is_finished_once(engine: Engine, outbox: Outbox) -> None:
    record(engine)
    event = claimed(outbox)
    finish(outbox, event)
    with pytest.raises(LeaseLostError):
        finish(outbox, event, state=EventState.DEAD)
    assert outbox.get(event.id).state is EventState.DONE


def test_the_time_of_the_first_attempt_stays_over_the_others(engine: Engine, outbox: Outbox) -> None:
    record(engine)
    outbox.postpone(claimed(outbox), "w", "no network", until=NOW)
    again = claimed(outbox, after=timedelta(seconds=9))
    assert (again.attempts, again.started_at, again.outcome) == (2, NOW, "no network")


def test_a_dead_event_is_retried_by_hand_as_if_for_the_first_time(engine: Engine, outbox: Outbox) -> None:
    event_id = record(engine)
    finish(outbox, claimed(outbox), state=EventState.DEAD)
    outbox.retry(event_id)
    waiting = outbox.get(event_id)
    assert (waiting.state, waiting.attempts, waiting.finished_at) == (EventState.PENDING, 0, None)
    again = claimed(outbox, after=timedelta(days=9))
    assert (again.id, again.attempts, again.started_at) == (event_id, 1, NOW + timedelta(days=9))


def test_a_waiting_event_is_retried_by_hand_at_once(engine: Engine, outbox: Outbox) -> None:
    event_id = record(engine)
    outbox.postpone(claimed(outbox), "w", "no network", until=NOW + timedelta(days=1))
    outbox.retry(event_id)
    assert claimed(outbox).id == event_id


def test_a_discarded_event_makes_way_and_never_comes_again(engine: Engine, outbox: Outbox) -> None:
    first, second = record(engine), record(engine, version=2)
    outbox.discard(first, now=NOW)
    assert outbox.get(first).state is EventState.DISCARDED
    assert claimed(outbox).id == second


def test_an_event_in_hand_or_finished_is_neither_retried_nor_discarded(engine: Engine, outbox: Outbox) -> None:
    event_id = record(engine)
    event = claimed(outbox)

    def refused() -> None:
        with pytest.raises(EventNotFoundError):
            outbox.retry(event_id)
        with pytest.raises(EventNotFoundError):
            outbox.discard(event_id, now=NOW)

    refused()
    finish(outbox, event)
    refused()
    assert outbox.get(event_id).state is EventState.DONE


def test_an_event_that_is_not_there_is_an_error(outbox: Outbox) -> None:
    calls: list[Callable[[], object]] = [
        lambda: outbox.get(9),
        lambda: outbox.retry(9),
        lambda: outbox.discard(9, now=NOW),
    ]
    for call in calls:
        with pytest.raises(EventNotFoundError):
            call()


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


def test_two_threads_get_each_event_exactly_once_and_each_models_in_order(engine: Engine, outbox: Outbox) -> None:
    with engine.begin() as connection:
        for number in range(200):
            model = f"model {number % 20}"
            append(connection, NewEvent(kind=EventKind.STAGE_CHANGED, workspace="w", model=model, version=number))
    done: list[Event] = []
    held: set[str] = set()
    together: list[Event] = []
    lock = threading.Lock()

    over = threading.Event()

    def work(worker: str) -> None:
        try:
            while len(done) < 200 and not over.is_set():
                event = outbox.claim(worker, now=NOW, lease=LEASE)
                if event is None:
                    continue
                with lock:
                    together.extend([event] if event.model in held else [])
                    held.add(event.model)
                    done.append(event)
                with lock:
                    held.discard(event.model)
                finish(outbox, event, worker)
        finally:
            over.set()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, ("one", "two")))
    assert together == []
    assert sorted(event.id for event in done) == list(range(1, 201))
    assert {event.attempts for event in done} == {1}
    for model in {event.model for event in done}:
        ids = [event.id for event in done if event.model == model]
        assert ids == sorted(ids)


def test_an_id_is_never_given_twice(engine: Engine) -> None:
    before = record(engine)
    with engine.begin() as connection:
        connection.execute(OUTBOX.delete())
    assert record(engine) > before


def test_all_events_are_read_page_by_page(engine: Engine, outbox: Outbox) -> None:
    with engine.begin() as connection:
        for number in range(1_001):
            append(connection, NewEvent(kind=EventKind.VERSION_CREATED, workspace="w", model=f"m{number % 2}"))
    assert [event.id for event in outbox.events()] == list(range(1, 1_002))
    outbox.discard(1, now=NOW)
    assert [event.id for event in outbox.events(states=(EventState.DISCARDED,))] == [1]
    assert len(list(outbox.events(states=(EventState.PENDING,), model="m0"))) == 500


def test_a_long_outcome_is_cut(engine: Engine, outbox: Outbox) -> None:
    event_id = record(engine)
    outbox.postpone(claimed(outbox), "w", "x" * 9_000, until=NOW)
    assert len(outbox.get(event_id).outcome or "") == 2_000


def test_of_two_events_of_a_model_taken_at_one_moment_the_later_is_given_back(
    tmp_path: Path, engine: Engine, outbox: Outbox
) -> None:
    created = record(engine, EventKind.VERSION_CREATED)
    promoted = record(engine, EventKind.STAGE_CHANGED)
    slow_engine = connect(tmp_path / "mlflow.db")
    taken: list[int] = []

    def overtake(*_: Any) -> None:
        if not taken:
            taken.append(claimed(outbox, "fast").id)

    # Its first transaction looks for what is due; the connection comes back when that is over.
    sa.event.listen(slow_engine, "checkin", overtake)
    assert claim(Outbox(slow_engine), "slow") is None
    slow_engine.dispose()
    assert taken == [created]
    assert outbox.get(promoted).attempts == 0
    finish(outbox, outbox.get(created), "fast")
    assert claimed(outbox, "slow").id == promoted
