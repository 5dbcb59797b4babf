"""What wakes a worker: every change of the outbox, at once, and nothing else, on each kind of database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.outbox.bells import Bell
from supabase_bridge.outbox.events import EventState
from supabase_bridge.outbox.queue import Outbox
from tests.compatibility.outboxes import NOW, claimed, record

POLL = timedelta(milliseconds=200)
FALLBACK = timedelta(seconds=30)
AT_ONCE_SECONDS = 15.0


@pytest.fixture
def bell(outbox: Outbox) -> Iterator[Bell]:
    bell = outbox.bell(poll_interval=POLL)
    yield bell
    bell.close()


def waited_seconds(bell: Bell, longest: timedelta = FALLBACK) -> float:
    start = time.monotonic()
    bell.wait(longest, threading.Event())
    return time.monotonic() - start


def settle(bell: Bell) -> None:
    """Arm the bell when what was changed before rings no more."""
    bell.arm()
    while waited_seconds(bell, timedelta(milliseconds=150)) < 0.15:
        bell.arm()


def test_a_change_committed_while_a_worker_goes_to_sleep_wakes_it_at_once(engine: Engine, bell: Bell) -> None:
    for _ in range(5):
        bell.arm()
        record(engine)
        assert waited_seconds(bell) < AT_ONCE_SECONDS


def test_a_change_while_it_sleeps_wakes_it_at_once(engine: Engine, bell: Bell) -> None:
    settle(bell)
    bell.arm()
    sleeper = threading.Timer(0.3, record, [engine])
    sleeper.start()
    assert waited_seconds(bell) < AT_ONCE_SECONDS + 0.3
    sleeper.join()


def test_whatever_lets_an_event_become_due_wakes_it(engine: Engine, outbox: Outbox, bell: Bell) -> None:
    first, _ = record(engine), record(engine, version=2)
    event = claimed(outbox)
    changes: list[Callable[[], object]] = [
        lambda: outbox.postpone(event, "w", "no network", until=NOW),
        lambda: outbox.retry(first),
        lambda: outbox.finish(claimed(outbox), "w", EventState.DONE, "done"),
        lambda: outbox.discard(claimed_and_given_back(outbox)),
    ]
    for change in changes:
        settle(bell)
        bell.arm()
        change()
        assert waited_seconds(bell) < AT_ONCE_SECONDS


def claimed_and_given_back(outbox: Outbox) -> int:
    event = claimed(outbox)
    outbox.postpone(event, "w", "no network", until=NOW)
    return event.id


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)
def test_of_two_changes_within_one_step_of_the_files_time_the_second_wakes_it_too(engine: Engine, bell: Bell) -> None:
    for _ in range(50):
        record(engine)
        bell.arm()
        record(engine)
        assert waited_seconds(bell) < AT_ONCE_SECONDS


def test_a_sleeping_worker_asks_the_database_nothing(engine: Engine, bell: Bell) -> None:
    settle(bell)
    asked: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    bell.arm()
    longest = POLL if not bell.hears else timedelta(milliseconds=600)
    slept = waited_seconds(bell, longest)
    sa.event.remove(engine, "before_cursor_execute", note)
    assert (asked, slept >= longest.total_seconds()) == ([], True)


def test_a_bell_is_rung_by_hand_and_by_stopping(bell: Bell) -> None:
    settle(bell)
    bell.arm()
    bell.ring()
    assert waited_seconds(bell) < AT_ONCE_SECONDS
    settle(bell)
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    start = time.monotonic()
    bell.wait(FALLBACK, stop)
    assert time.monotonic() - start < AT_ONCE_SECONDS


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_a_lost_connection_wakes_it_and_it_listens_again(engine: Engine, bell: Bell) -> None:
    bell.arm()
    with engine.begin() as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        assert connection.execute(sa.text(others)).scalars().all() == [True]
    assert waited_seconds(bell) < AT_ONCE_SECONDS
    assert not bell.hears
    settle(bell)
    bell.arm()
    assert bell.hears
    record(engine)
    assert waited_seconds(bell) < AT_ONCE_SECONDS
