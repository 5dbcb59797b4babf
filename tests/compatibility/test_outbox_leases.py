"""Who holds an event of the outbox, until when, and what others may do meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy.engine import Engine

from supabase_bridge.errors import LeaseLostError
from supabase_bridge.outbox.events import EventState
from supabase_bridge.outbox.queue import Outbox
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
