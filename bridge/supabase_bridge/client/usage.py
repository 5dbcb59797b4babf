"""Report which release a consumer uses, from a background thread, to a table of the project or of a database."""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol

from pydantic import SecretStr

from supabase_bridge.client.release import Release
from supabase_bridge.core.backoff import backoff
from supabase_bridge.core.usage import ONE_OFF, TABLE, UsageReport, consumer_name
from supabase_bridge.storage.supabase.endpoint import key_headers

_logger = logging.getLogger(__name__)
_random = random.SystemRandom()

TIMEOUT = timedelta(seconds=5)
_CLOSE_SECONDS = 2.0
_FIRST_RETRY = timedelta(seconds=10)
_WAITING = 1_000
"""Releases whose use may wait to be reported; a further one is not reported."""
_MISSING_TABLE = {"42P01", "PGRST205"}


class ReportFailedError(Exception):
    """A report could not be stored; the text is for the log and holds no secret."""


class UsageTable(Protocol):
    """Stores reports."""

    def insert(self, report: UsageReport) -> None:
        """Store a report; return or raise within seconds.

        Raises:
            ReportFailedError: it could not be stored.
        """


@dataclass(frozen=True, kw_only=True)
class ProjectTable:
    """The table of a Supabase project, through its data API (PostgREST).

    Attributes:
        key: The publishable key, or a secret key.
    """

    url: str
    key: SecretStr

    def insert(self, report: UsageReport) -> None:
        import httpx

        from supabase_bridge.storage.http import BoundedTransport

        # `return=minimal`: the answer has no row, so that the key needs no right to read the table.
        headers = {**key_headers(self.key.get_secret_value()), "prefer": "return=minimal"}
        try:
            with (
                httpx.Client(transport=BoundedTransport(TIMEOUT), headers=headers) as http,
                http.stream("POST", f"{self.url}/rest/v1/{TABLE}", json=report.to_object()) as answer,
            ):
                if answer.status_code != httpx.codes.CREATED:
                    raise ReportFailedError(_reason(f"the data API answered {answer.status_code}", _code(answer)))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ReportFailedError(f"the data API did not answer ({type(error).__name__})") from None


@dataclass(frozen=True, kw_only=True)
class DatabaseTable:
    """The table of a PostgreSQL database; needs the extra `postgres`."""

    url: SecretStr

    def insert(self, report: UsageReport) -> None:
        try:
            import psycopg
            from psycopg import sql
        except ModuleNotFoundError:
            raise ReportFailedError("run `pip install 'mlflow-supabase-bridge[postgres]'`") from None
        row = report.to_object()
        query = sql.SQL("insert into {} ({}) values ({})").format(
            sql.Identifier("public", TABLE),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(map(sql.Placeholder, row)),
        )
        seconds = round(TIMEOUT.total_seconds())
        try:
            with psycopg.connect(
                self.url.get_secret_value(), connect_timeout=seconds, prepare_threshold=None
            ) as connection:
                connection.execute(f"set local statement_timeout = '{seconds}s'")
                connection.execute(query, row)
        except psycopg.Error as error:
            # The driver's own words may quote the URL.
            raise ReportFailedError(_reason(f"the database refused ({type(error).__name__})", error.sqlstate)) from None


class UsageReporter:
    """Reports from one background thread. Thread-safe; no call raises, or waits for the server.

    A use is reported at once. Where it lasts (`alive`), it is reported again in each interval, so that a consumer that
    died differs from one that has not followed a switch. A report that fails is logged, and tried again later.

    Args:
        table: Where the reports go.
        bucket: The bucket of the releases.
        consumer: The consumer's own name.
        interval: The time between two reports of a lasting use; a tenth of it is jitter.
        clock: The time (aware).
    """

    def __init__(
        self,
        table: UsageTable,
        *,
        bucket: str,
        consumer: str,
        interval: timedelta = timedelta(minutes=15),
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._table = table
        self._bucket = bucket
        self._consumer = consumer_name(consumer)
        self._instance = uuid.uuid4().hex[:12]
        self._interval = interval
        self._clock = clock
        self._uses: dict[tuple[str, str], _Use] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def in_use(self, release: Release, *, alive: Callable[[], bool] | None = None) -> None:
        """Report that a release is in use; it replaces the one of the same model and channel.

        Args:
            alive: Returns whether the use still lasts. None: it is one run that ends, such as a batch job's.
        """
        report = UsageReport(
            bucket=self._bucket,
            model=release.model,
            channel=release.channel,
            run_id=release.run_id,
            sequence=release.sequence,
            consumer=self._consumer,
            instance=ONE_OFF if alive is None else self._instance,
            used_since=self._clock(),
            next_report_seconds=None if alive is None else max(1, round(self._interval.total_seconds())),
        )
        key = (release.model, release.channel or release.run_id)
        with self._changed:
            if self._closing or (key not in self._uses and len(self._uses) >= _WAITING):
                return
            self._uses[key] = _Use(report=report, alive=alive, due=time.monotonic())
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="supabase-bridge-usage", daemon=True)
                # A machine without room for a thread reports nothing, and its pull goes on.
                with suppress(RuntimeError):
                    thread.start()
                    self._thread = thread
            self._changed.notify()

    def close(self) -> None:
        """Report the end of lasting uses, and wait for what was not sent yet, 2 seconds at most."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                due = min((use.due for use in self._uses.values()), default=None)
                if not self._closing and (due is None or due > time.monotonic()):
                    self._changed.wait(None if due is None else due - time.monotonic())
                    continue
                ready = [(key, use) for key, use in self._uses.items() if self._closing or use.due <= time.monotonic()]
                closing = self._closing
            for key, use in ready:
                self._send(key, use, ended=closing or not use.lasts)
            if closing:
                return

    def _send(self, key: tuple[str, str], use: _Use, *, ended: bool) -> None:
        """Send one report, and plan the next one unless a newer use came meanwhile."""
        report = use.report if use.alive is None or not ended else use.report.model_copy(update={"ended": True})
        try:
            self._table.insert(report)
            use.failures = 0
        except ReportFailedError as error:
            use.failures += 1
            if use.failures == 1:
                facts = {"model": report.model, "run_id": report.run_id, "reason": str(error)}
                _logger.warning("the use of a release was not reported; the release is not affected", extra=facts)
        except Exception:
            _logger.exception("the use of a release was not reported")
            ended = True
        with self._changed:
            if self._uses.get(key) is not use:
                return
            if use.failures:
                pause = backoff(use.failures, _FIRST_RETRY, self._interval, _random.uniform)
                use.due = time.monotonic() + pause.total_seconds()
            elif ended or use.alive is None:
                del self._uses[key]
            else:
                use.due = time.monotonic() + self._interval.total_seconds() * _random.uniform(0.9, 1.0)


@dataclass(kw_only=True)
class _Use:
    """The use of a release, and when its next report is due (monotonic)."""

    report: UsageReport
    alive: Callable[[], bool] | None
    due: float
    failures: int = 0

    @property
    def lasts(self) -> bool:
        return self.alive is not None and self.alive()


def _code(answer: Any) -> str | None:
    """Return the code of an error of PostgREST, from the first bytes of its answer."""
    import json
    from itertools import islice

    pieces = b"".join(islice(answer.iter_raw(4_096), 1))
    try:
        value = json.loads(pieces)
    except ValueError:
        return None
    found = value.get("code") if isinstance(value, dict) else None
    return found if isinstance(found, str) and found.isalnum() and len(found) < 20 else None


def _reason(said: str, code: str | None) -> str:
    if code in _MISSING_TABLE:
        return f"{said}: there is no table {TABLE}; run the SQL of docs/consumers.md"
    return said if code is None else f"{said}, code {code}"
