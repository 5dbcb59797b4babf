"""Which event of the outbox comes when: the newest change of each model first; models take turns, and do not wait."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.core.events import Event, EventKind, EventState, NewEvent, Triggers
from supabase_bridge.outbox.errors import ContentionError
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.record import append
from tests.support.outboxes import LATEST, LEASE, NOW, claim, claimed, connect, finish, in_hand, record


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


def test_the_changes_of_a_model_come_one_at_a_time_the_newest_first(engine: Engine, outbox: Outbox) -> None:
    ids = [record(engine, version=version) for version in (1, 2, 3)]
    for expected in reversed(ids):
        event = claimed(outbox)
        assert event.id == expected
        assert claim(outbox, "other") is None
        finish(outbox, event)
    assert claim(outbox) is None


def test_other_models_and_workspaces_do_not_wait(engine: Engine, outbox: Outbox) -> None:
    _, second, other, elsewhere = (
        record(engine),
        record(engine, version=2),
        record(engine, model="b"),
        record(engine, workspace="research"),
    )
    assert in_hand(outbox) == [second, other, elsewhere]


def test_names_that_differ_in_case_only_are_different_models(engine: Engine, outbox: Outbox) -> None:
    ids = [record(engine, model="tower"), record(engine, model="Tower")]
    assert sorted(in_hand(outbox)) == ids


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


def test_a_change_that_waits_holds_up_no_new_version(engine: Engine, outbox: Outbox) -> None:
    created = record(engine, EventKind.VERSION_CREATED)
    promotion = record(engine, version=2)
    outbox.postpone(claimed(outbox), "w", "no network", until=NOW + timedelta(seconds=5))
    event = claimed(outbox)
    assert event.id == created
    finish(outbox, event)
    assert claimed(outbox, after=timedelta(seconds=5)).id == promotion


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
    assert taken == [elsewhere, *reversed(changes), backlog[30]]


def test_a_new_version_in_hand_holds_its_model(engine: Engine, outbox: Outbox) -> None:
    record(engine, EventKind.VERSION_CREATED)
    created = claimed(outbox)
    promotion = record(engine)
    assert claim(outbox, "other") is None
    finish(outbox, created)
    assert claimed(outbox, "other").id == promotion


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_change_that_waits_for_its_next_attempt_delays_no_other(
    engine: Engine, outbox: Outbox, order: tuple[int, int]
) -> None:
    ids = {version: record(engine, version=version) for version in (1, 2)}
    waiting, other = (ids[version] for version in order)
    event = outbox.claim("w", now=NOW, lease=LEASE, event_id=waiting)
    assert event is not None
    outbox.postpone(event, "w", "no network", until=NOW + timedelta(seconds=5))
    assert claimed(outbox).id == other
    finish(outbox, outbox.get(other))
    assert claim(outbox, after=timedelta(seconds=4.999)) is None
    assert claimed(outbox, after=timedelta(seconds=5)).id == waiting


def test_models_take_turns_however_many_changes_one_of_them_has(engine: Engine, outbox: Outbox) -> None:
    for version in range(1, 41):
        record(engine, model="busy", version=version)
    late = [record(engine, model=model) for model in ("a", "z")]
    taken = []
    for _ in range(4):
        event = claimed(outbox)
        taken.append(event.id)
        finish(outbox, event)
    assert set(late) < set(taken)


def test_an_assignment_supersedes_the_earlier_changes_of_its_channels_and_no_others(
    engine: Engine, outbox: Outbox
) -> None:
    staging = Triggers(channel="staging", stages=("Staging",), aliases=())
    earlier = [record(engine, version=1), record(engine, EventKind.ALIAS_SET, version=2, alias="champion")]
    kept = [
        record(engine, version=3, stage="Staging"),
        record(engine, version=3, previous_stage="Staging"),
        record(engine, EventKind.VERSION_CREATED, version=4),
        record(engine, EventKind.ALIAS_SET, version=4, alias="other"),
        record(engine, model="b"),
    ]
    newest = record(engine, version=5)
    later = record(engine, version=1, stage="Archived", previous_stage="Production")
    event = outbox.claim("w", now=NOW, lease=LEASE, event_id=newest)
    assert event is not None
    assert outbox.supersede(event, [LATEST], [staging], now=NOW) == []
    states = {event.id: event.state for event in outbox.events()}
    assert {states.pop(event_id) for event_id in earlier} == {EventState.SUPERSEDED}
    assert states == dict.fromkeys([*kept, newest, later], EventState.PENDING)
    assert outbox.get(earlier[0]).outcome == "version 5 came to latest after version 1"


def test_a_model_is_free_while_the_files_of_a_version_are_uploaded_and_that_version_waits(
    engine: Engine, outbox: Outbox
) -> None:
    created = [record(engine, EventKind.VERSION_CREATED, version=version) for version in (1, 2, 2)]
    upload = outbox.claim("w", now=NOW, lease=LEASE, event_id=created[1])
    assert upload is not None
    assert claim(outbox, "other") is None
    outbox.start_upload(upload, 2)
    rollback = record(engine, version=3)
    event = claimed(outbox, "other")
    assert event.id == rollback
    with pytest.raises(ContentionError):
        outbox.end_upload(upload)
    finish(outbox, event, "other")
    event = claimed(outbox, "other")
    assert event.id == created[0]
    assert claim(outbox) is None
    finish(outbox, event, "other")
    assert claim(outbox) is None
    outbox.end_upload(upload)
    finish(outbox, upload)
    assert claimed(outbox).id == created[2]


def test_a_change_of_a_version_that_is_uploaded_is_claimed_once_and_again_when_that_is_over(
    engine: Engine, outbox: Outbox
) -> None:
    record(engine, EventKind.VERSION_CREATED)
    upload = claimed(outbox)
    outbox.start_upload(upload, 1)
    promotion = record(engine)
    event = claimed(outbox, "other")
    assert event.id == promotion
    with pytest.raises(ContentionError):
        outbox.start_upload(event, 1)
    outbox.postpone(event, "other", "the files are uploaded", until=None)
    assert claim(outbox, "other") is None
    outbox.end_upload(upload)
    finish(outbox, upload)
    assert claimed(outbox, "other").id == promotion


def test_only_events_that_no_worker_has_claimed_since_a_time_are_claimed_on_request(
    engine: Engine, outbox: Outbox
) -> None:
    event_id = record(engine)
    outbox.postpone(claimed(outbox), "w", "no network", until=NOW)
    assert outbox.claim("w", now=NOW + LEASE, lease=LEASE, unclaimed_since=NOW) is None
    later = outbox.claim("w", now=NOW + LEASE, lease=LEASE, unclaimed_since=NOW + LEASE)
    assert later is not None
    assert later.id == event_id


@pytest.mark.parametrize("state", [EventState.DONE, EventState.SUPERSEDED, EventState.DEAD])
def test_a_finished_change_makes_way(engine: Engine, outbox: Outbox, state: EventState) -> None:
    first, second = record(engine), record(engine, version=2)
    finish(outbox, claimed(outbox), state=state)
    assert claimed(outbox).id == first
    finished = outbox.get(second)
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
        assert ids == sorted(ids, reverse=True)


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
