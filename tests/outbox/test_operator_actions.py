"""Operators list, retry and discard events of the outbox."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from sqlalchemy.engine import Engine

from supabase_bridge.core.events import EventKind, EventState, NewEvent
from supabase_bridge.outbox.errors import EventNotFoundError
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.record import append
from supabase_bridge.outbox.tables import OUTBOX
from tests.support.outboxes import LEASE, NOW, claimed, finish, record


def test_a_dead_event_is_retried_manually_as_if_for_the_first_time(engine: Engine, outbox: Outbox) -> None:
    event_id = record(engine)
    finish(outbox, claimed(outbox), state=EventState.DEAD)
    outbox.retry(event_id)
    waiting = outbox.get(event_id)
    assert (waiting.state, waiting.attempts, waiting.finished_at) == (EventState.PENDING, 0, None)
    again = claimed(outbox, after=timedelta(days=9))
    assert (again.id, again.attempts, again.started_at) == (event_id, 1, NOW + timedelta(days=9))


def test_a_waiting_event_is_retried_manually_at_once(engine: Engine, outbox: Outbox) -> None:
    event_id = record(engine)
    outbox.postpone(claimed(outbox), "w", "no network", until=NOW + timedelta(days=1))
    outbox.retry(event_id)
    assert claimed(outbox).id == event_id


def test_a_discarded_event_makes_way_and_never_comes_again(engine: Engine, outbox: Outbox) -> None:
    first, second = record(engine), record(engine, version=2)
    outbox.discard(first, now=NOW)
    assert outbox.get(first).state is EventState.DISCARDED
    assert claimed(outbox).id == second


def test_a_claimed_or_finished_event_is_neither_retried_nor_discarded(engine: Engine, outbox: Outbox) -> None:
    event_id = record(engine)
    event = claimed(outbox)

    def refused() -> None:
        with pytest.raises(EventNotFoundError):
            outbox.retry(event_id, now=NOW)
        with pytest.raises(EventNotFoundError):
            outbox.discard(event_id, now=NOW)

    refused()
    finish(outbox, event)
    refused()
    assert outbox.get(event_id).state is EventState.DONE


@pytest.mark.parametrize("claimed_at", [NOW - 2 * LEASE, NOW + timedelta(hours=9)], ids=["ended", "clock ahead"])
def test_an_event_whose_lease_no_worker_renews_is_retried_and_discarded(
    engine: Engine, outbox: Outbox, claimed_at: datetime
) -> None:
    ids = [record(engine), record(engine, model="b")]
    for _ in ids:
        assert outbox.claim("w", now=claimed_at, lease=LEASE) is not None
    outbox.retry(ids[0], now=NOW)
    outbox.discard(ids[1], now=NOW)
    assert [outbox.get(event_id).state for event_id in ids] == [EventState.PENDING, EventState.DISCARDED]
    assert claimed(outbox).id == ids[0]


def test_an_event_that_is_not_there_is_an_error(outbox: Outbox) -> None:
    calls: list[Callable[[], object]] = [
        lambda: outbox.get(10**6),
        lambda: outbox.retry(10**6),
        lambda: outbox.discard(10**6, now=NOW),
    ]
    for call in calls:
        with pytest.raises(EventNotFoundError):
            call()


def test_an_id_is_never_given_twice(engine: Engine) -> None:
    before = record(engine)
    with engine.begin() as connection:
        connection.execute(OUTBOX.delete())
    assert record(engine) > before


def test_all_events_are_read_page_by_page(engine: Engine, outbox: Outbox) -> None:
    with engine.begin() as connection:
        for number in range(1_001):
            append(connection, NewEvent(kind=EventKind.VERSION_CREATED, workspace="w", model=f"m{number % 2}"))
    ids = [event.id for event in outbox.events()]
    assert (len(ids), ids) == (1_001, sorted(ids))
    assert [event.id for event in outbox.events(newest_first=True)] == ids[::-1]
    assert [event.id for event in outbox.events(after=ids[600])] == ids[601:]
    assert [event.id for event in outbox.events(after=ids[600], newest_first=True)] == ids[:600][::-1]
    outbox.discard(ids[0], now=NOW)
    assert [event.id for event in outbox.events(states=(EventState.DISCARDED,))] == ids[:1]
    assert len(list(outbox.events(states=(EventState.PENDING,), model="m0"))) == 500


def test_a_long_outcome_is_cut(engine: Engine, outbox: Outbox) -> None:
    event_id = record(engine)
    outbox.postpone(claimed(outbox), "w", "x" * 9_000, until=NOW)
    assert len(outbox.get(event_id).outcome or "") == 2_000


def test_an_outcome_that_no_database_takes_is_written_as_python_shows_it(engine: Engine, outbox: Outbox) -> None:
    event_id = record(engine)
    outbox.postpone(claimed(outbox), "w", "caf\udce9.onnx, a\x00b, \u00e9\U0001f600", until=NOW)
    assert outbox.get(event_id).outcome == "caf\\udce9.onnx, a\\x00b, \u00e9\U0001f600"
    outbox.finish(claimed(outbox), "w", EventState.DEAD, "\udce9" * 2_000, now=NOW)
    assert outbox.get(event_id).outcome == "\\udce9" * 333 + "\\u"
