"""Every change of the outbox wakes a worker at once, and nothing else does, on each kind of database."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.core.events import EventState
from supabase_bridge.outbox.notify import ChangeListener, open_listener
from supabase_bridge.outbox.queue import Outbox
from tests.support.outboxes import NOW, claimed, record

POLL = timedelta(milliseconds=200)
FALLBACK = timedelta(seconds=30)
AT_ONCE_SECONDS = 15.0


@pytest.fixture
def listener(engine: Engine) -> Iterator[ChangeListener]:
    listener = open_listener(engine, poll_interval=POLL)
    yield listener
    listener.close()


def waited_seconds(listener: ChangeListener, longest: timedelta = FALLBACK) -> float:
    start = time.monotonic()
    listener.wait(longest, threading.Event())
    return time.monotonic() - start


def settle(listener: ChangeListener, quiet: timedelta = timedelta(milliseconds=150)) -> None:
    """Prepare the listener; no earlier change ends its next wait, if that is not longer than `quiet`."""
    listener.prepare()
    while waited_seconds(listener, quiet) < quiet.total_seconds():
        listener.prepare()


def test_a_change_between_prepare_and_wait_wakes_it_at_once(engine: Engine, listener: ChangeListener) -> None:
    for _ in range(5):
        listener.prepare()
        record(engine)
        assert waited_seconds(listener) < AT_ONCE_SECONDS


def test_a_change_during_the_wait_wakes_it_at_once(engine: Engine, listener: ChangeListener) -> None:
    settle(listener)
    listener.prepare()
    sleeper = threading.Timer(0.3, record, [engine])
    sleeper.start()
    assert waited_seconds(listener) < AT_ONCE_SECONDS + 0.3
    sleeper.join()


def test_each_change_that_makes_an_event_due_wakes_it(engine: Engine, outbox: Outbox, listener: ChangeListener) -> None:
    first, _ = record(engine), record(engine, version=2)
    event = claimed(outbox)
    changes: list[Callable[[], object]] = [
        lambda: outbox.postpone(event, "w", "no network", until=NOW),
        lambda: outbox.retry(first),
        lambda: outbox.finish(claimed(outbox), "w", EventState.DONE, "done"),
        lambda: outbox.discard(claimed_and_released(outbox)),
    ]
    for change in changes:
        settle(listener)
        listener.prepare()
        change()
        assert waited_seconds(listener) < AT_ONCE_SECONDS


def claimed_and_released(outbox: Outbox) -> int:
    event = claimed(outbox)
    outbox.postpone(event, "w", "no network", until=NOW)
    return event.id


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)
def test_the_second_of_two_changes_within_one_step_of_the_file_time_wakes_it_too(
    engine: Engine, listener: ChangeListener
) -> None:
    for _ in range(50):
        record(engine)
        listener.prepare()
        record(engine)
        assert waited_seconds(listener) < AT_ONCE_SECONDS


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_a_commit_that_becomes_visible_long_after_its_bytes_wakes_it(engine: Engine, listener: ChangeListener) -> None:
    """SQLite flushes the bytes of a commit before readers see it, which takes seconds on a busy disk."""
    record(engine)
    written = time.monotonic()
    while time.monotonic() < written + 0.3:
        listener.prepare()
        listener.wait(timedelta(milliseconds=1), threading.Event())
    listener.prepare()
    assert waited_seconds(listener) < AT_ONCE_SECONDS


def test_a_waiting_listener_sends_no_query(engine: Engine, listener: ChangeListener) -> None:
    longest = POLL if not listener.is_event_driven else timedelta(milliseconds=600)
    settle(listener, longest)
    asked: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    listener.prepare()
    slept = waited_seconds(listener, longest)
    sa.event.remove(engine, "before_cursor_execute", note)
    assert (asked, slept >= longest.total_seconds()) == ([], True)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_a_database_file_dated_in_the_future_does_not_wake_it(engine: Engine, listener: ChangeListener) -> None:
    record(engine)
    tomorrow = time.time() + 86_400
    for suffix in ("", "-wal"):
        os.utime(f"{engine.url.database}{suffix}", (tomorrow, tomorrow))
    listener.prepare()
    assert waited_seconds(listener, timedelta(seconds=0.5)) >= 0.5


def test_wake_and_the_stop_event_end_a_wait(listener: ChangeListener) -> None:
    settle(listener)
    listener.prepare()
    listener.wake()
    assert waited_seconds(listener) < AT_ONCE_SECONDS
    settle(listener)
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    start = time.monotonic()
    listener.wait(FALLBACK, stop)
    assert time.monotonic() - start < AT_ONCE_SECONDS


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_a_lost_connection_wakes_it_and_it_listens_again(engine: Engine, listener: ChangeListener) -> None:
    listener.prepare()
    with engine.begin() as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        assert connection.execute(sa.text(others)).scalars().all() == [True]
    assert waited_seconds(listener) < AT_ONCE_SECONDS
    assert not listener.is_event_driven
    settle(listener)
    listener.prepare()
    assert listener.is_event_driven
    record(engine)
    assert waited_seconds(listener) < AT_ONCE_SECONDS
