"""Which event of the outbox comes when: each model's one at a time in their order, and no model waits for another."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.outbox.events import Event, EventKind, EventState, NewEvent
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.schema import append
from tests.compatibility.outboxes import LEASE, NOW, claim, claimed, connect, finish, in_hand, record


def test_an_event_comes_out_as_the_change_went_in(engine: Engine, outbox: Outbox) -> None:
    change = NewEvent(
        kind=EventKind.ALIAS_SET, workspace="research", model="a", version=2, alias="champion", previous_version=1
    )
    with engine.begin() as connection:
        append(connection, change)
    event = claimed(outbox)
    assert {name: getattr(event, name) for name in vars(change)} == vars(change)
    assert (event.state, event.attempts, event.leased_by) == (EventState.PENDING, 1, "w")
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
    outbox.postpone(claimed(outbox), "w", "its run has not ended", until=NOW + timedelta(hours=1))
    promotion = record(engine)
    assert claimed(outbox).id == promotion


def test_a_new_version_waits_for_the_change_before_it(engine: Engine, outbox: Outbox) -> None:
    promotion = record(engine)
    created = record(engine, EventKind.VERSION_CREATED, version=2)
    event = claimed(outbox)
    assert event.id == promotion
    assert claim(outbox) is None
    finish(outbox, event)
    assert claimed(outbox).id == created


def test_a_new_version_recorded_before_a_change_that_waits_comes_after_it_too(engine: Engine, outbox: Outbox) -> None:
    created = record(engine, EventKind.VERSION_CREATED)
    promotion = record(engine, version=2)
    outbox.postpone(claimed(outbox), "w", "no network", until=NOW + timedelta(seconds=5))
    assert claim(outbox) is None
    event = claimed(outbox, after=timedelta(seconds=5))
    assert event.id == promotion
    finish(outbox, event)
    assert claimed(outbox).id == created


def test_a_backlog_of_new_versions_keeps_no_change_waiting(engine: Engine, outbox: Outbox) -> None:
    with engine.begin() as connection:
        for number in range(100):
            created = NewEvent(kind=EventKind.VERSION_CREATED, workspace="w", model=f"m{number % 40}", version=number)
            append(connection, created)
    backlog = [event.id for event in outbox.events()]
    elsewhere = record(engine, workspace="w", model="another")
    changes = [record(engine, workspace="w", model="m3", version=version) for version in (83, 43)]
    taken = []
    for _ in range(4):
        event = claimed(outbox)
        taken.append(event.id)
        finish(outbox, event)
    assert taken == [elsewhere, *changes, backlog[0]]


def test_a_new_version_in_hand_holds_its_model(engine: Engine, outbox: Outbox) -> None:
    record(engine, EventKind.VERSION_CREATED)
    created = claimed(outbox)
    promotion = record(engine)
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
    assert sorted(event.id for event in done) == [event.id for event in outbox.events()]
    assert {event.attempts for event in done} == {1}
    for model in {event.model for event in done}:
        ids = [event.id for event in done if event.model == model]
        assert ids == sorted(ids)


def test_of_two_events_of_a_model_taken_at_one_moment_one_is_given_back(engine: Engine, outbox: Outbox) -> None:
    created = record(engine, EventKind.VERSION_CREATED)
    promoted = record(engine, EventKind.STAGE_CHANGED)
    slow_engine = connect(engine.url.render_as_string(hide_password=False))
    taken: list[int] = []

    def overtake(*_: Any) -> None:
        if not taken:
            taken.append(claimed(outbox, "fast").id)

    # Its first transaction looks for what is due; the connection comes back when that is over.
    sa.event.listen(slow_engine, "checkin", overtake)
    assert claim(Outbox(slow_engine), "slow") is None
    slow_engine.dispose()
    assert taken == [promoted]
    assert outbox.get(created).attempts == 0
    finish(outbox, outbox.get(promoted), "fast")
    assert claimed(outbox, "slow").id == created
