"""Wait for changes of the outbox: LISTEN/NOTIFY on PostgreSQL, file changes on SQLite, polling elsewhere.

LISTEN works with psycopg 3 and psycopg2. A change of a SQLite file, or of its write-ahead log, is detected by `stat`,
without a query.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from supabase_bridge.outbox.sql import CHANNEL

logger = logging.getLogger(__name__)

_FILE_POLL_SECONDS = 0.005
_FILE_TIME_STEP_SECONDS = 0.05
"""Resolution of file times: a second change within one step may not be visible."""
_STOP_POLL_SECONDS = 0.25


class ChangeListener:
    """Wakes a worker when the outbox may have changed; this one only waits for an interval.

    One thread prepares and waits; any thread may call `wake`.
    """

    is_event_driven = False
    """False if it only waits for the poll interval."""

    def __init__(self, poll_interval: timedelta) -> None:
        self._poll_interval = poll_interval
        self._wake_requested = threading.Event()

    def prepare(self) -> None:
        """Call this before a query of the outbox: a change that the query misses ends the next `wait` at once."""
        self._wake_requested.clear()

    def wait(self, longest: timedelta, stop: threading.Event) -> None:
        """Return when the outbox has changed since `prepare`, after `wake`, when `stop` is set, or after `longest`."""
        deadline = time.monotonic() + min(longest, self._poll_interval).total_seconds()
        while not stop.is_set() and (left := deadline - time.monotonic()) > 0:
            if self._wake_requested.wait(min(left, _STOP_POLL_SECONDS)):
                return

    def wake(self) -> None:
        """End the current wait, or the next one."""
        self._wake_requested.set()

    def close(self) -> None:
        """Close its connection and files."""


def open_listener(engine: Engine, *, poll_interval: timedelta) -> ChangeListener:
    """Return the listener for a database.

    Args:
        poll_interval: Maximum wait if the database cannot notify.
    """
    path = engine.url.database or ""
    # Only SQLite can resolve a URI (file:...).
    if engine.dialect.name == "sqlite" and path and not path.startswith("file:"):
        return _FileListener(Path(path).absolute(), poll_interval)
    if engine.dialect.name == "postgresql" and engine.dialect.driver in {"psycopg", "psycopg2"}:
        return _PostgresListener(engine, poll_interval)
    return ChangeListener(poll_interval)


class _FileListener(ChangeListener):
    """Waits for a change of a SQLite file or of its write-ahead log."""

    is_event_driven = True

    def __init__(self, path: Path, poll_interval: timedelta) -> None:
        super().__init__(poll_interval)
        self._paths = (path, path.with_name(f"{path.name}-wal"))
        self._seen = self._state()
        self._prepared_at_ns = 0

    def prepare(self) -> None:
        super().prepare()
        self._prepared_at_ns = time.time_ns()
        self._seen = self._state()

    def wait(self, longest: timedelta, stop: threading.Event) -> None:
        newest_ns = max((found[0] for found in self._seen if found is not None), default=0)
        # A commit is visible only after its bytes are flushed, seconds later on a busy disk: so look again, and each
        # time after twice as long. A file whose time is far ahead of the clock was not changed just now.
        age_seconds = abs(self._prepared_at_ns - newest_ns) / 1e9
        seconds = min(longest.total_seconds(), max(age_seconds, _FILE_TIME_STEP_SECONDS))
        deadline = time.monotonic() + seconds
        while not stop.is_set() and time.monotonic() < deadline and self._state() == self._seen:
            if self._wake_requested.wait(_FILE_POLL_SECONDS):
                return

    def _state(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_state_of, self._paths))


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class _PostgresListener(ChangeListener):
    """Waits for PostgreSQL's NOTIFY; without a connection it waits for the poll interval."""

    def __init__(self, engine: Engine, poll_interval: timedelta) -> None:
        super().__init__(poll_interval)
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._connection: Connection | None = None
        self._driver: Any = None  # psycopg 3's or psycopg2's connection
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)

    @property
    def is_event_driven(self) -> bool:  # type: ignore[override]  # it changes when the connection is lost
        return self._connection is not None

    def prepare(self) -> None:
        if self._connection is None:
            self._connect()

    def wait(self, longest: timedelta, stop: threading.Event) -> None:
        seconds = (longest if self.is_event_driven else min(longest, self._poll_interval)).total_seconds()
        deadline = time.monotonic() + seconds
        while not stop.is_set() and (left := deadline - time.monotonic()) > 0:
            watched = [self._woken, *([self._driver.fileno()] if self.is_event_driven else [])]
            # After a signal the wait continues (PEP 475), so `stop` is checked regularly.
            # Not select(2), which accepts no descriptor above 1023.
            ready = wait_for_any(watched, min(left, _STOP_POLL_SECONDS))
            if self._woken in ready:
                os.read(self._woken, 4096)
                return
            if ready and self._was_notified():
                return

    def wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._waker, b"!")

    def close(self) -> None:
        self._disconnect()
        os.close(self._woken)
        os.close(self._waker)

    def _connect(self) -> None:
        try:
            self._connection = self._engine.connect()
            self._driver = self._connection.connection.driver_connection
            self._connection.exec_driver_sql(f"LISTEN {CHANNEL}")
        except SQLAlchemyError as error:
            logger.warning("LISTEN on PostgreSQL failed", extra={"reason": str(error).split("\n")[0]})
            self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is None:
            return
        # Not back into the pool: the connection would continue to listen there.
        self._connection.invalidate()
        self._connection.close()
        self._connection = self._driver = None

    def _was_notified(self) -> bool:
        """Read the socket; returns True for a notification and for the end of the connection."""
        try:
            if self._engine.dialect.driver == "psycopg2":
                self._driver.poll()
                notified = bool(self._driver.notifies)
                self._driver.notifies.clear()
                return notified
            self._driver.pgconn.consume_input()
            notified = False
            while self._driver.pgconn.notifies() is not None:
                notified = True
        except Exception as error:  # noqa: BLE001 - the drivers' errors have no common base
            logger.warning("the connection that listens to PostgreSQL ended", extra={"reason": str(error).strip()})
            self._disconnect()
            return True
        return notified
