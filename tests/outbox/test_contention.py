"""Many workers on one outbox: every event once, each model's in order, nobody waits for a lock that another holds."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.core.events import Event, EventKind, EventState
from supabase_bridge.outbox.database import connect, to_ms
from supabase_bridge.outbox.errors import LeaseLostError, RegistryUnavailableError
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.schema import ensure_schema
from supabase_bridge.outbox.tables import OUTBOX
from tests.support.databases import DatabaseServer
from tests.support.outboxes import LEASE, NOW, claim, claimed, finish, record
from tests.support.served import until


def test_eight_workers_carry_out_each_event_once_and_no_two_of_a_model_at_once(engine: Engine, outbox: Outbox) -> None:
    for number in range(120):
        kind = EventKind.VERSION_CREATED if number % 3 == 0 else EventKind.STAGE_CHANGED
        record(engine, kind, model=f"model {number % 6}", version=number)
    lock = threading.Lock()
    held: set[str] = set()
    together: list[Event] = []
    done: list[Event] = []

    def work(worker: str) -> None:
        while True:
            event = outbox.claim(worker, now=NOW, lease=LEASE)
            if event is None:
                if len(done) == 120:
                    return
                continue
            with lock:
                together.extend([event] if event.model in held else [])
                held.add(event.model)
            with lock:
                held.discard(event.model)
                done.append(event)
            outbox.finish(event, worker, EventState.DONE, "outcome", now=NOW)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [f"worker {number}" for number in range(8)]))
    assert together == []
    assert len({event.id for event in done}) == len(done) == 120
    assert {event.attempts for event in outbox.events()} == {1}
    for model in {event.model for event in done}:
        switches = [event.id for event in done if (event.model, event.kind) == (model, EventKind.STAGE_CHANGED)]
        assert switches == sorted(switches, reverse=True)


@pytest.mark.parametrize("engine", ["postgresql", "mariadb"], indirect=True)
def test_an_event_that_another_transaction_has_locked_keeps_nobody_waiting(engine: Engine, outbox: Outbox) -> None:
    locked, other = record(engine), record(engine, model="b")
    with engine.begin() as connection:
        connection.execute(OUTBOX.select().where(OUTBOX.c.id == locked).with_for_update())
        assert claimed(outbox).id == other
        assert claim(outbox) is None


@pytest.mark.parametrize("engine", ["postgresql", "mariadb"], indirect=True)
def test_no_event_passes_another_of_its_model_that_is_being_given_back(engine: Engine, outbox: Outbox) -> None:
    first = record(engine)
    record(engine, version=2)
    second = claimed(outbox)
    giving_back = OUTBOX.update().where(OUTBOX.c.id == second.id)
    with engine.begin() as connection:
        later = {"not_before_ms": to_ms(NOW + LEASE), "leased_by": None, "leased_until_ms": None}
        connection.execute(giving_back.values(later))
        assert claim(outbox, "other") is None
    assert claimed(outbox, "other").id == first


def test_an_event_committed_late_with_an_earlier_id_is_not_missed(engine: Engine, outbox: Outbox) -> None:
    early = record(engine)
    late = record(engine, model="b")
    finish(outbox, claimed(outbox))
    finish(outbox, claimed(outbox))
    with engine.begin() as connection:
        connection.execute(OUTBOX.delete().where(OUTBOX.c.id == early))
    with engine.begin() as connection:
        row = {"id": early, "kind": "stage_changed", "workspace": "w", "model": "c", "state": "pending"}
        numbers = {"created_ms": 0, "attempts": 0, "not_before_ms": 0, "model_deleted": False}
        connection.execute(OUTBOX.insert().values(**row, **numbers))
    assert (claimed(outbox).id, early < late) == (early, True)


def test_who_takes_an_event_of_a_model_ends_the_leases_there_that_are_over(engine: Engine, outbox: Outbox) -> None:
    record(engine, EventKind.VERSION_CREATED)
    slow = claimed(outbox, "slow")
    promotion = record(engine)
    with engine.begin() as connection:
        connection.execute(OUTBOX.update().where(OUTBOX.c.id == slow.id).values(not_before_ms=to_ms(NOW + 3 * LEASE)))
    assert claimed(outbox, "other", after=2 * LEASE).id == promotion
    with pytest.raises(LeaseLostError):
        finish(outbox, slow, "slow")


def test_a_worker_whose_time_is_not_given_takes_the_databases(engine: Engine, outbox: Outbox) -> None:
    record(engine)
    event = outbox.claim("w", lease=LEASE)
    assert event is not None
    assert event.leased_until is not None
    with engine.connect() as connection:
        query = {
            "postgresql": "SELECT extract(epoch FROM clock_timestamp())",
            "mysql": "SELECT unix_timestamp(now(3))",
            "sqlite": "SELECT strftime('%s', 'now') + 0",
        }[engine.dialect.name]
        now = float(connection.exec_driver_sql(query).scalar_one())
    assert 0 <= event.leased_until.timestamp() - now - LEASE.total_seconds() + 5 < 6
    assert 0 <= event.leased_until.timestamp() - event.created_at.timestamp() - LEASE.total_seconds() < 5
    left = outbox.until_due()
    assert left is not None
    assert timedelta(seconds=50) < left <= LEASE + timedelta(seconds=1)


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_worker_paused_in_the_middle_of_a_transaction_keeps_what_it_has_locked_for_a_while_only(
    request: pytest.FixtureRequest, kind: str
) -> None:
    server: DatabaseServer = request.getfixturevalue(kind)
    url = server.create()
    paused, other = connect(url, idle_transaction_timeout=timedelta(seconds=3)), connect(url)
    ensure_schema(other)
    record(other)
    held = claimed(Outbox(other), "paused")

    @sa.event.listens_for(paused, "commit", once=True)
    def _pause(_: object) -> None:
        again = partial(claim, Outbox(other), "other", after=2 * LEASE)
        until(lambda: again() is not None, "the event to be free", limit_seconds=30)

    with pytest.raises(RegistryUnavailableError):
        Outbox(paused).renew(held, "paused", now=NOW, lease=10 * LEASE)
    with pytest.raises(LeaseLostError):
        finish(Outbox(paused), held, "paused")
    assert Outbox(other).get(held.id).leased_by == "other"
    paused.dispose()
    other.dispose()
