"""Which events a worker processes at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone

import pytest

from supabase_bridge.core.events import LONE_AFTER, Event, EventKind
from supabase_bridge.worker.running import Room, RunningEvents
from tests.support.served import until

NOON = datetime(2025, 11, 1, 12, tzinfo=timezone.utc)
A_MOMENT = timedelta(milliseconds=1)


def event(number: int, *, takeovers: int = 0) -> Event:
    return Event(
        id=number,
        created_at=NOON,
        kind=EventKind.STAGE_CHANGED,
        workspace="default",
        model=f"m{number}",
        takeovers=takeovers,
    )


class Process:
    """Processes events until the test ends them."""

    def __init__(self, *, concurrency: int) -> None:
        self.background = threading.Lock()
        self.asked: list[Room] = []
        self._ends: dict[int, threading.Event] = {}
        self.running = RunningEvents(concurrency, lambda event: self._ends[event.id].wait(60), self.background)

    def claim(self, offered: Event | None) -> Event | None:
        """Offer an event to the worker."""

        def answer(room: Room) -> Event | None:
            self.asked.append(room)
            return offered if offered is None or room.lone or not offered.is_lone else None

        if offered is not None:
            self._ends[offered.id] = threading.Event()
        return self.running.claim(answer)

    def end(self, *events: Event) -> None:
        for item in events:
            self._ends[item.id].set()
        left = {item.id for item in events}
        until(lambda: not left & {item.id for item in self.running.wait_for_all(A_MOMENT)}, "the end", limit_seconds=20)


def test_one_event_beyond_the_concurrency_may_move_a_pointer_and_no_further_one_is_claimed() -> None:
    process = Process(concurrency=2)
    events = [event(number) for number in range(4)]
    assert [process.claim(item) for item in events] == [*events[:3], None]
    assert [room.changes_only for room in process.asked] == [False, False, True]
    process.end(events[0])
    assert process.claim(events[3]) is events[3]
    process.end(*events[1:])


def test_a_lone_event_waits_for_the_others_and_nothing_else_is_claimed_until_it_is_finished() -> None:
    process = Process(concurrency=4)
    first, lone, last = event(1), event(2, takeovers=LONE_AFTER), event(3)
    assert process.claim(first) is first
    assert process.claim(lone) is None
    process.end(first)
    assert process.claim(lone) is lone
    assert (process.claim(last), process.background.locked()) == (None, True)
    process.end(lone)
    assert process.claim(last) is last
    assert [room.lone for room in process.asked] == [True, False, True, True]
    assert not process.background.locked()
    process.end(last)


def test_a_lone_event_waits_for_a_periodic_task_of_its_process() -> None:
    process, lone = Process(concurrency=1), event(1, takeovers=LONE_AFTER)
    with process.background:
        assert process.claim(lone) is None
    assert process.claim(lone) is lone
    process.end(lone)


@pytest.mark.parametrize("offered", [lambda: None, lambda: 1 // 0])
def test_the_periodic_tasks_go_on_where_no_lone_event_is_claimed(offered: Callable[[], None]) -> None:
    process = Process(concurrency=1)
    with suppress(ZeroDivisionError):
        process.running.claim(lambda _: offered())
    assert not process.background.locked()
