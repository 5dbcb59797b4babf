"""Who holds an event of the outbox, until when, and what others may do meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy.engine import Engine

from supabase_bridge.errors import LeaseLostError
from supabase_bridge.outbox.events import DEFAULT_WORKSPACE, EventKind, EventState
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.schema import OUTBOX, rename_model
from tests.compatibility.outboxes import LEASE, NOW, claim, claimed, finish, record


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
