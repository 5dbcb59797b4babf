"""What wakes a worker: a bell that rings when the outbox may have changed, by the means that its database has.

PostgreSQL notifies (LISTEN, with psycopg 3 and psycopg2). SQLite is a file: a change of it or of its write-ahead log
shows in what `stat` says, which is no query. Elsewhere the worker has to look from time to time.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from datetime import timedelta
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from supabase_bridge.outbox.statements import CHANNEL

logger = logging.getLogger(__name__)

_FILE_LOOK_SECONDS = 0.01
_FILE_TIME_STEP_SECONDS = 0.05
"""A file's time has the kernel's steps: of two changes within one, the second may not show."""
_STOP_LOOK_SECONDS = 0.25


class Bell(Protocol):
    """Rings when the outbox may have changed. One thread arms it and waits; any thread may ring it.

    Attributes:
        hears: False where it only wakes after the poll interval, whether or not anything has changed.
    """

    @property
    def hears(self) -> bool: ...

    def arm(self) -> None:
        """Before a look at the outbox: a change that this look does not see ends the next `wait` at once."""
        ...

    def wait(self, longest: timedelta, stop: threading.Event) -> None:
        """Return when the outbox has changed since `arm`, after `ring`, when `stop` is set, or after a while."""
        ...

    def ring(self) -> None:
        """End the wait, or the next one."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


def open_bell(engine: Engine, *, poll_interval: timedelta) -> Bell:
    """The bell of a database."""
    path = engine.url.database or ""
    # A URI (file:...) may name a file in ways that only SQLite knows.
    if engine.dialect.name == "sqlite" and path and not path.startswith("file:"):
        return FileBell(Path(path).absolute())
    if engine.dialect.name == "postgresql" and engine.dialect.driver in {"psycopg", "psycopg2"}:
        return ListenBell(engine, poll_interval=poll_interval)
    return PollBell(poll_interval)


class PollBell:
    """Rings after an interval."""

    hears = False

    def __init__(self, interval: timedelta) -> None:
        self._interval = interval
        self._rung = threading.Event()

    def arm(self) -> None:
        self._rung.clear()

    def wait(self, longest: timedelta, stop: threading.Event) -> None:
        deadline = time.monotonic() + min(longest, self._interval).total_seconds()
        while not stop.is_set() and (left := deadline - time.monotonic()) > 0:
            if self._rung.wait(min(left, _STOP_LOOK_SECONDS)):
                return

    def ring(self) -> None:
        self._rung.set()

    def close(self) -> None:
        return


class FileBell:
    """Rings when a SQLite file changes, or the write-ahead log beside it."""

    hears = True

    def __init__(self, path: Path) -> None:
        self._paths = (path, path.with_name(f"{path.name}-wal"))
        self._seen = self._look()
        self._rung = threading.Event()
        self._armed_at_ns = 0

    def arm(self) -> None:
        self._rung.clear()
        self._armed_at_ns = time.time_ns()
        self._seen = self._look()

    def wait(self, longest: timedelta, stop: threading.Event) -> None:
        newest_ns = max((found[0] for found in self._seen if found is not None), default=0)
        fresh = self._armed_at_ns - newest_ns < _FILE_TIME_STEP_SECONDS * 1e9
        seconds = min(longest.total_seconds(), _FILE_TIME_STEP_SECONDS) if fresh else longest.total_seconds()
        deadline = time.monotonic() + seconds
        while not stop.is_set() and time.monotonic() < deadline and self._look() == self._seen:
            if self._rung.wait(_FILE_LOOK_SECONDS):
                return

    def ring(self) -> None:
        self._rung.set()

    def close(self) -> None:
        return

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_state_of, self._paths))


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class ListenBell:
    """Rings when PostgreSQL notifies. Between two connections, and where none can be made, after the poll interval."""

    def __init__(self, engine: Engine, *, poll_interval: timedelta) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._poll_interval = poll_interval
        self._connection: Connection | None = None
        self._driver: Any = None  # psycopg 3's or psycopg2's connection
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)

    @property
    def hears(self) -> bool:
        return self._connection is not None

    def arm(self) -> None:
        if self._connection is None:
            self._connect()

    def wait(self, longest: timedelta, stop: threading.Event) -> None:
        seconds = (longest if self.hears else min(longest, self._poll_interval)).total_seconds()
        deadline = time.monotonic() + seconds
        while not stop.is_set() and (left := deadline - time.monotonic()) > 0:
            watched = [self._woken, *([self._driver.fileno()] if self.hears else [])]
            # A signal's handler runs and the wait goes on (PEP 475), so that `stop` is looked at now and then. Not
            # select(2), which takes no descriptor above 1023.
            ready = wait_for_any(watched, min(left, _STOP_LOOK_SECONDS))
            if self._woken in ready:
                os.read(self._woken, 4096)
                return
            if ready and self._heard():
                return

    def ring(self) -> None:
        try:
            os.write(self._waker, b"!")
        except BlockingIOError:
            return

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
            logger.warning("PostgreSQL cannot be listened to", extra={"reason": str(error).split("\n")[0]})
            self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is None:
            return
        # Not back into the pool: it would go on listening there.
        self._connection.invalidate()
        self._connection.close()
        self._connection = self._driver = None

    def _heard(self) -> bool:
        """Take in what has arrived; True where it is a notification, or the end of the connection."""
        try:
            if self._engine.dialect.driver == "psycopg2":
                self._driver.poll()
                heard = bool(self._driver.notifies)
                self._driver.notifies.clear()
                return heard
            self._driver.pgconn.consume_input()
            heard = False
            while self._driver.pgconn.notifies() is not None:
                heard = True
        except Exception as error:  # noqa: BLE001 - each driver has errors of its own, none of which the base knows
            logger.warning("PostgreSQL is no longer listened to", extra={"reason": str(error).strip()})
            self._disconnect()
            return True
        return heard
