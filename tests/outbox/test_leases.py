"""Who holds an event of the outbox, until when, and what others may do meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy.engine import Engine

from supabase_bridge.core.events import DEFAULT_WORKSPACE, Event, EventKind, EventState
from supabase_bridge.outbox.errors import LeaseLostError
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.record import rename_model
from supabase_bridge.outbox.tables import OUTBOX
from tests.support.outboxes import LEASE, NOW, claim, claimed, finish, record

HOUR = timedelta(hours=1)


def test_an_event_is_held_to_the_end_of_its_lease_and_then_taken_over(engine: Engine, outbox: Outbox) -> None:
    record(engine)
    slow = claimed(outbox, "slow")
    assert claim(outbox, "other", after=LEASE) is None
    taken = claimed(outbox, "other", after=LEASE + timedelta(milliseconds=1))
    assert (taken.id, taken.attempts, taken.leased_by) == (slow.id, 2, "other")


def test_a_lease_and_a_pause_that_were_made_while_the_clock_was_hours_ahead_do_not_count(
    engine: Engine, outbox: Outbox
) -> None:
    held, waiting = record(engine), record(engine, model="b")
    ahead = timedelta(hours=9)
    claimed(outbox, after=ahead)
    outbox.postpone(claimed(outbox, after=ahead), "w", "no network", until=NOW + ahead)
    assert {claimed(outbox, "other").id, claimed(outbox, "other").id} == {held, waiting}


def test_the_leases_that_end_while_an_event_is_held_are_counted_until_an_attempt_returns(
    engine: Engine, outbox: Outbox
) -> None:
    record(engine)
    takeovers = [claimed(outbox, after=2 * HOUR * number).takeovers for number in range(2)]
    assert takeovers == [0, 1]
    event = ended(engine, outbox, times=3)
    outbox.postpone(event, "w", "the worker was stopped", until=None)
    event = claimed(outbox, after=9 * HOUR)
    assert event.takeovers == 3
    outbox.postpone(event, "w", "no network", until=NOW)
    assert claimed(outbox, after=10 * HOUR).takeovers == 0


def ended(engine: Engine, outbox: Outbox, *, times: int) -> Event:
    """Claim the only event so that its lease has ended this often before, at the eighth hour."""
    with engine.begin() as connection:
        connection.execute(OUTBOX.update().values(takeovers=times, leased_by=None, leased_until_ms=None))
    return claimed(outbox, after=8 * HOUR)


def test_the_pauses_after_ended_leases_grow(engine: Engine, outbox: Outbox) -> None:
    event_id, after = record(engine), timedelta(0)
    for takeovers, pause in enumerate([0, 0, 30, 60, 120]):
        seconds = timedelta(seconds=pause)
        assert claim(outbox, after=after) is None or pause == 0
        assert outbox.get(event_id).takeovers == takeovers
        if pause:
            assert claim(outbox, after=after + seconds - timedelta(seconds=1)) is None
            assert claimed(outbox, after=after + seconds).takeovers == takeovers
        after += seconds + LEASE + timedelta(seconds=1)


def test_an_event_whose_lease_ended_three_times_comes_last_and_only_to_a_worker_that_does_nothing_else(
    engine: Engine, outbox: Outbox
) -> None:
    lone, other_channel = record(engine), record(engine, version=2, stage="Staging")
    with engine.begin() as connection:
        connection.execute(OUTBOX.update().where(OUTBOX.c.id == lone).values(takeovers=3))
    created, elsewhere = record(engine, EventKind.VERSION_CREATED, model="z"), record(engine, model="b")
    taken = []
    for _ in range(4):
        event = claimed(outbox)
        taken.append(event.id)
        finish(outbox, event)
        if len(taken) == 3:
            assert outbox.claim("w", now=NOW, lease=LEASE, lone=False) is None
    assert taken == [other_channel, elsewhere, created, lone]


def test_a_worker_without_room_for_an_upload_claims_changes_only(engine: Engine, outbox: Outbox) -> None:
    record(engine, EventKind.VERSION_CREATED)
    assert outbox.claim("w", now=NOW, lease=LEASE, changes_only=True) is None
    change = record(engine, model="b")
    event = outbox.claim("w", now=NOW, lease=LEASE, changes_only=True)
    assert event is not None
    assert event.id == change


def test_only_failed_attempts_and_the_current_one_are_counted(engine: Engine, outbox: Outbox) -> None:
    record(engine)
    for number, failed in enumerate([False, True, False, True, False]):
        outbox.postpone(claimed(outbox, after=number * LEASE), "w", "reason", until=NOW, failed=failed)
    assert claimed(outbox, after=9 * LEASE).attempts == 3


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
    outbox.postpone(claimed(outbox), "w", "no network", until=NOW, failed=True)
    again = claimed(outbox, after=timedelta(seconds=9))
    assert (again.attempts, again.started_at, again.outcome) == (2, NOW, "no network")


def rename(engine: Engine, old: str, new: str) -> None:
    with engine.begin() as connection:
        rename_model(connection, workspace=DEFAULT_WORKSPACE, old=old, new=new)


@pytest.mark.parametrize("kind", [EventKind.STAGE_CHANGED, EventKind.VERSION_CREATED])
def test_an_event_whose_model_is_renamed_while_it_is_in_hand_is_lost_and_due_at_once_under_the_new_name(
    engine: Engine, outbox: Outbox, kind: EventKind
) -> None:
    record(engine, kind)
    held = claimed(outbox)
    rename(engine, "a", "b")
    with pytest.raises(LeaseLostError):
        outbox.renew(held, "w", now=NOW, lease=LEASE)
    with pytest.raises(LeaseLostError):
        finish(outbox, held, state=EventState.SUPERSEDED)
    again = claimed(outbox)
    assert (again.id, again.model, again.attempts) == (held.id, "b", 2)
    finish(outbox, again)


def test_an_event_whose_model_got_its_name_back_meanwhile_is_lost_too(engine: Engine, outbox: Outbox) -> None:
    record(engine)
    held = claimed(outbox)
    rename(engine, "a", "b")
    rename(engine, "b", "a")
    with pytest.raises(LeaseLostError):
        finish(outbox, held, state=EventState.SUPERSEDED)


def test_who_knows_an_event_by_another_name_than_its_models_holds_it_no_more(engine: Engine, outbox: Outbox) -> None:
    record(engine)
    held = claimed(outbox)
    with engine.begin() as connection:
        connection.execute(OUTBOX.update().values(model="b"))
    with pytest.raises(LeaseLostError):
        finish(outbox, held)
