"""Any number of writers of one channel, held up and broken off between any two operations on the store.

Each writer is a thread that runs the real `activate`; it stands still before every operation on the channel's objects
until the machine lets it go on, so that every order of those operations, and a crash ahead of each, can come up.
Events of the registry are worked on as the outbox hands them out: the next one is not begun while the outcome of the
one before is open; but one may be tried by several workers at once, as when a slow one was thought dead.
"""

from __future__ import annotations

import threading
from datetime import datetime, timezone
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from supabase_bridge.core.documents import Cause, Manifest
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.releases.channel import Activation, Channel
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.storage.errors import ObjectNotFoundError
from tests.support.activation import activate
from tests.support.simulators.memory_store import MemoryStore
from tests.support.small_releases import LATEST, entries, lay_out, published, run_id

PUBLISHED_AT = datetime(2025, 11, 1, 12, tzinfo=timezone.utc)
WRITES = ("create", "overwrite")
OFFSETS = st.integers(min_value=0, max_value=3)
_LIMIT_SECONDS = 30
_CHANNEL_PREFIX = f"{LATEST.model_key}/{LATEST.channel}/"


class Crash(Exception):
    """The writer is gone in the middle of its work."""


class Writer(threading.Thread):
    """One call of `activate` that goes on from one operation to the next when it is told to."""

    def __init__(self, store: ObjectStore, channel: ChannelPaths, number: int, cause: Cause) -> None:
        super().__init__(daemon=True)
        self.cause = cause
        self.switch: Activation | None = None
        self.error: Exception | None = None
        self.next_operation = ""
        self._store, self._channel, self._number = store, channel, number
        self._crashes = False
        self._go_on = threading.Semaphore(0)
        self._stands = threading.Semaphore(0)
        self.start()
        self._wait(self._stands)

    def run(self) -> None:
        try:
            self.switch = activate(
                self._store, self._channel, run_id(self._number), cause=self.cause, published_at=PUBLISHED_AT
            )
        except Exception as error:  # noqa: BLE001 - the machine looks at it
            self.error = error
        finally:
            self._stands.release()

    def before_operation(self, operation: str) -> None:
        """Stand still until `step` or `crash`; called on the writer's own thread."""
        self.next_operation = operation
        self._stands.release()
        self._wait(self._go_on)
        if self._crashes:
            raise Crash

    @property
    def ended(self) -> bool:
        return self.switch is not None or self.error is not None

    def step(self) -> None:
        """Let the operation it stands before happen, and whatever follows up to the next one."""
        self._go_on.release()
        self._wait(self._stands)

    def read_on(self) -> None:
        """Go on until the next operation is one that writes."""
        while not self.ended and self.next_operation not in WRITES:
            self.step()

    def finish(self) -> None:
        while not self.ended:
            self.step()

    def crash(self) -> None:
        self._crashes = True
        self.step()
        self.join(_LIMIT_SECONDS)

    @staticmethod
    def _wait(semaphore: threading.Semaphore) -> None:
        assert semaphore.acquire(timeout=_LIMIT_SECONDS), "a writer hangs"


def hold_up_writers(operation: str, key: str) -> None:
    """Ahead of each operation: a writer waits for its turn where the channel is concerned; the test itself does not."""
    thread = threading.current_thread()
    if isinstance(thread, Writer) and key.startswith(_CHANNEL_PREFIX):
        thread.before_operation(operation)


class ChannelLogMachine(RuleBasedStateMachine):
    """Writers come, go on, end and crash; the log and the manifest keep their promises throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore(hold_up_writers)
        self.writers: list[Writer] = []
        self.crashes = 0
        self.event_id = 0
        self.event_release = 1
        self.seen: list[Manifest] = []

    @initialize()
    def lay_out_releases(self) -> None:
        for number in range(1, 5):
            lay_out(self.store, number)

    @property
    def event(self) -> Cause:
        return Cause(registry_id="ours", event_id=self.event_id)

    @property
    def alive(self) -> list[Writer]:
        return [writer for writer in self.writers if not writer.ended]

    def release(self, offset: int) -> int:
        """A release; with offset 0 another one than the writer before had."""
        return 1 + (len(self.writers) + offset) % 4

    def begin(self, number: int, cause: Cause) -> None:
        self.writers.append(Writer(self.store, LATEST, number, cause))

    def event_is_open(self) -> bool:
        working = any(writer.cause == self.event for writer in self.alive)
        return working and self.event not in [entry.cause for entry in self.seen]

    @precondition(lambda self: len(self.alive) < 5 and not self.event_is_open())
    @rule(offset=OFFSETS)
    def a_worker_takes_the_next_event(self, offset: int) -> None:
        self.event_id += 1
        self.event_release = self.release(offset)
        self.begin(self.event_release, self.event)

    @precondition(lambda self: len(self.alive) < 5 and self.event_id > 0)
    @rule()
    def a_worker_tries_the_same_event_again(self) -> None:
        self.begin(self.event_release, self.event)

    @precondition(lambda self: len(self.alive) < 5)
    @rule(offset=OFFSETS)
    def a_person_moves_the_pointer(self, offset: int) -> None:
        self.begin(self.release(offset), Cause(by_hand=True))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def a_writer_does_its_next_operation(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.alive)).step()

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def a_writer_reads_until_it_would_write(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.alive)).read_on()

    @precondition(lambda self: any(writer.next_operation in WRITES for writer in self.alive))
    @rule(data=st.data())
    def a_writer_writes_what_it_read_is_due(self, data: st.DataObject) -> None:
        writer = data.draw(st.sampled_from([item for item in self.alive if item.next_operation in WRITES]))
        writer.step()
        writer.read_on()

    @precondition(lambda self: self.alive and self.crashes < 2)
    @rule(data=st.data())
    def a_writer_crashes(self, data: st.DataObject) -> None:
        self.crashes += 1
        data.draw(st.sampled_from(self.alive)).crash()

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def a_writer_ends_while_the_others_stand_still(self, data: st.DataObject) -> None:
        writer = data.draw(st.sampled_from(self.alive))
        # One that stands in its last look may have read already what another then wrote over; that one looks once more.
        looks_afresh = writer.next_operation in WRITES
        writer.finish()
        if looks_afresh:
            assert self.published_bytes() == entries(self.store)[-1].to_bytes()

    def published_bytes(self) -> bytes | None:
        try:
            return published(self.store)
        except ObjectNotFoundError:
            return None

    @invariant()
    def every_promise_holds(self) -> None:
        self.the_log_only_grows_and_has_no_gaps()
        self.each_entry_is_built_on_the_one_before()
        self.each_event_is_committed_once_at_most()
        self.what_consumers_see_is_an_entry()
        self.a_writer_that_says_it_switched_is_in_the_log()

    def the_log_only_grows_and_has_no_gaps(self) -> None:
        log = entries(self.store)
        assert [entry.sequence for entry in log] == list(range(1, len(log) + 1))
        assert log[: len(self.seen)] == self.seen
        self.seen = log

    def each_entry_is_built_on_the_one_before(self) -> None:
        for before, after in pairwise(self.seen):
            if after.current.run_id != before.current.run_id:
                assert after.previous[0].run_id == before.current.run_id

    def each_event_is_committed_once_at_most(self) -> None:
        committed = [entry.cause.event_id for entry in self.seen if entry.cause and entry.cause.event_id]
        assert len(committed) == len(set(committed))

    def what_consumers_see_is_an_entry(self) -> None:
        assert self.published_bytes() in [None, *(entry.to_bytes() for entry in self.seen)]

    def a_writer_that_says_it_switched_is_in_the_log(self) -> None:
        for writer in self.writers:
            assert writer.error is None or isinstance(writer.error, Crash)
            if writer.switch is not None:
                assert writer.switch.entry in self.seen
                assert not writer.switch.activated or writer.switch.entry.cause == writer.cause

    def teardown(self) -> None:
        for writer in self.alive:
            writer.finish()
        self.every_promise_holds()
        head = self.seen[-1].to_bytes() if self.seen else None
        if not self.crashes:
            assert self.published_bytes() == head
        Channel(self.store, LATEST).repair_manifest()
        assert self.published_bytes() == head
        for writer in self.writers:
            writer.join(_LIMIT_SECONDS)


TestChannelLog = ChannelLogMachine.TestCase
TestChannelLog.settings = settings(
    max_examples=min(100, settings().max_examples), stateful_step_count=60, deadline=None
)
