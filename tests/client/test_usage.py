"""Reports of use: what a consumer reports, when, what the publishable key may do, and that no pull depends on them."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import SecretStr

from supabase_bridge import Resolver
from supabase_bridge.client.release import PulledRelease
from supabase_bridge.client.usage import DatabaseTable, ProjectTable, ReportFailedError, UsageReporter
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.core.usage import LATEST_VIEW, TABLE, UsageReport
from supabase_bridge.storage.errors import CorruptObjectError
from tests.support.consumers import BUCKET, FIRST, MODEL, SECOND, Bucket
from tests.support.served import until
from tests.support.simulators.hostile import hostile
from tests.support.usage import UsageProject

NOW = datetime(2025, 11, 8, tzinfo=timezone.utc)


class Memory:
    """Keeps the reports of a reporter."""

    def __init__(self) -> None:
        self.reports: list[UsageReport] = []
        self.failing = False

    def insert(self, report: UsageReport) -> None:
        if self.failing:
            raise ReportFailedError("it is down")
        self.reports.append(report)

    def said(self) -> list[tuple[str, str | None, bool]]:
        return [(one.run_id, one.channel, one.ended) for one in self.reports]


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    made = Bucket.of_directory(tmp_path / "bucket")
    made.promote(FIRST)
    return made


@pytest.fixture
def table() -> Memory:
    return Memory()


@pytest.fixture
def connect(tmp_path: Path, table: Memory) -> Iterator[Callable[..., Resolver]]:
    """Resolvers of the bucket that report to the table; they are closed at the end."""
    made: list[Resolver] = []

    def resolver(**changes: Any) -> Resolver:
        reporter = UsageReporter(
            changes.pop("table", table), bucket=BUCKET, consumer="api", clock=lambda: NOW, **changes
        )
        made.append(Resolver(directory=tmp_path / "bucket", cache_dir=tmp_path / "cache", usage=reporter))
        return made[-1]

    yield resolver
    for one in made:
        one.close()


def report(**changes: Any) -> UsageReport:
    fields = {"bucket": BUCKET, "model": MODEL, "run_id": FIRST, "consumer": "api", "used_since": NOW}
    return UsageReport(**{**fields, **changes})


@pytest.mark.usefixtures("bucket")
def test_a_pull_is_reported_and_a_resolve_or_a_verification_is_not(
    connect: Callable[..., Resolver], table: Memory
) -> None:
    with connect() as resolver:
        resolver.verify(resolver.resolve(MODEL))
        resolver.pull(MODEL)
    assert [one.to_object() for one in table.reports] == [
        {
            "bucket": BUCKET,
            "model": MODEL,
            "channel": "latest",
            "run_id": FIRST,
            "sequence": 1,
            "consumer": "api",
            "instance": "-",
            "used_since": "2025-11-08T00:00:00Z",
            "ended": False,
        }
    ]


def test_a_pull_that_fails_reports_no_use(
    bucket: Bucket, connect: Callable[..., Resolver], table: Memory, tmp_path: Path
) -> None:
    (tmp_path / "bucket" / MODEL / FIRST / f"{MODEL}_{FIRST}.onnx").write_bytes(b"damaged")
    with connect() as resolver, pytest.raises(CorruptObjectError):
        resolver.pull(MODEL)
    assert (bucket.sequence, table.reports) == (1, [])


def test_a_watch_reports_each_switch_after_its_callback_and_its_end(
    bucket: Bucket, connect: Callable[..., Resolver], table: Memory
) -> None:
    before: list[int] = []

    def serve(_pulled: PulledRelease) -> None:
        before.append(len(table.reports))

    with connect() as resolver, resolver.watch(MODEL, serve, interval=timedelta(seconds=1), pull=True):
        until(lambda: len(table.reports) == 1, "the first report", limit_seconds=10)
        bucket.promote(SECOND)
        until(lambda: len(table.reports) == 2, "the report of the switch", limit_seconds=10)
    assert before == [0, 1]
    assert table.said() == [(FIRST, "latest", False), (SECOND, "latest", False), (SECOND, "latest", True)]
    assert {one.next_report_seconds for one in table.reports} == {900}
    assert len({one.instance for one in table.reports} - {"-"}) == 1


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("fails", ["raises", "returns False"])
def test_a_release_that_the_callback_did_not_put_into_use_is_not_reported(
    connect: Callable[..., Resolver], table: Memory, fails: str, caplog: pytest.LogCaptureFixture
) -> None:
    called = threading.Event()

    def serve(_release: object) -> bool:
        called.set()
        if fails == "raises":
            raise ValueError("no memory")
        return False

    caplog.set_level(logging.CRITICAL)
    with connect() as resolver, resolver.watch(MODEL, serve):
        assert called.wait(10)
    assert table.reports == []


@pytest.mark.usefixtures("bucket")
def test_a_lasting_use_is_reported_again_in_each_interval_and_no_more_after_the_watch(
    connect: Callable[..., Resolver], table: Memory
) -> None:
    with connect(interval=timedelta(milliseconds=20)) as resolver:
        with resolver.watch(MODEL, lambda _release: None):
            until(lambda: len(table.reports) >= 3, "the third report", limit_seconds=10)
        until(lambda: table.reports[-1].ended, "the end", limit_seconds=10)
        count = len(table.reports)
    assert len(table.reports) == count
    assert {one.run_id for one in table.reports} == {FIRST}


@pytest.mark.usefixtures("bucket")
def test_a_report_that_fails_is_logged_once_and_sent_again(
    connect: Callable[..., Resolver], table: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    table.failing = True
    with connect(interval=timedelta(milliseconds=10)) as resolver, resolver.watch(MODEL, lambda _release: None):
        until(lambda: bool(caplog.records), "the warning", limit_seconds=10)
        table.failing = False
        until(lambda: bool(table.reports), "the report", limit_seconds=10)
    assert [(record.levelname, record.__dict__["reason"]) for record in caplog.records] == [("WARNING", "it is down")]


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("kind", ["data API", pytest.param("database", marks=pytest.mark.exhaustive)])
def test_a_reporter_that_hangs_delays_no_pull_and_a_close_by_two_seconds_at_most(
    connect: Callable[..., Resolver], kind: str
) -> None:
    with hostile(lambda conversation: conversation.hang()) as server:
        key = SecretStr("sb_publishable_x")
        address = SecretStr(server.url.replace("http://", "postgresql://user:secret@") + "/postgres")
        silent = ProjectTable(url=server.url, key=key) if kind == "data API" else DatabaseTable(url=address)
        resolver = connect(table=silent)
        started = time.monotonic()
        assert resolver.pull(MODEL).onnx.exists()
        pulled = time.monotonic()
        resolver.close()
        closed = time.monotonic()
    assert pulled - started < 1
    assert 1.5 < closed - pulled < 4


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n", b"nonsense", b"HTTP/1.1 302 x\r\nlocation: /x\r\n\r\n", b""],
)
def test_a_reporter_that_refuses_fails_no_pull(
    connect: Callable[..., Resolver], answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with hostile(lambda conversation: conversation.send(answer)) as server:
        resolver = connect(table=ProjectTable(url=server.url, key=SecretStr("sb_publishable_x")))
        assert resolver.pull(MODEL).onnx.exists()
        resolver.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the use of a release was not reported; the release is not affected"
    ]
    assert "sb_publishable_x" not in caplog.text


def test_the_publishable_key_may_insert_a_report_and_neither_read_change_nor_delete_one(
    usage_project: UsageProject,
) -> None:
    simulator = usage_project.simulator
    table = ProjectTable(url=simulator.url, key=SecretStr(simulator.anon_key))
    table.insert(report(channel="latest", sequence=3, next_report_seconds=900))
    (row,) = usage_project.rows()
    assert (row["run_id"], row["channel"], row["sequence"], row["ended"]) == (FIRST, "latest", 3, False)
    assert abs(row["reported_at"] - datetime.now(timezone.utc)) < timedelta(minutes=1)

    def ask(method: str, name: str, key: str, **arguments: Any) -> int:
        headers = {"apikey": key, "authorization": f"Bearer {key}"}
        query = {"bucket": f"eq.{BUCKET}", "order": "reported_at.desc", "limit": "9"} if method != "POST" else {}
        url = f"{simulator.url}/rest/v1/{name}"
        return httpx.request(method, url, params=query, headers=headers, **arguments).status_code

    refused = [ask(method, TABLE, simulator.anon_key) for method in ("GET", "PATCH", "DELETE")]
    assert refused == [401, 401, 401]
    assert ask("GET", LATEST_VIEW, simulator.anon_key) == 401
    assert ask("GET", LATEST_VIEW, simulator.service_key) == 200
    forged = {**report().to_object(), "reported_at": "2999-01-01T00:00:00Z"}
    assert ask("POST", TABLE, simulator.anon_key, content=json.dumps(forged)) == 401
    assert ask("POST", TABLE, simulator.anon_key, content=json.dumps(report(consumer="x" * 101).to_object())) == 400
    assert len(usage_project.rows()) == 1


def test_a_role_of_the_database_reports_with_the_insert_alone(usage_project: UsageProject) -> None:
    with psycopg.connect(usage_project.database) as connection:
        connection.execute("drop role if exists reporting_consumer")
        connection.execute("create role reporting_consumer login in role anon")
    url = psycopg.conninfo.make_conninfo(usage_project.database, user="reporting_consumer")
    DatabaseTable(url=SecretStr(url)).insert(report())
    assert [row["consumer"] for row in usage_project.rows()] == ["api"]
    with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("select * from public.release_usage")


def test_a_missing_table_is_named_in_the_log(usage_project: UsageProject) -> None:
    with psycopg.connect(usage_project.database) as connection:
        connection.execute("drop table public.release_usage cascade")
    simulator = usage_project.simulator
    for table in (
        ProjectTable(url=simulator.url, key=SecretStr(simulator.anon_key)),
        DatabaseTable(url=SecretStr(usage_project.database)),
    ):
        with pytest.raises(ReportFailedError, match="there is no table release_usage"):
            table.insert(report())


def test_reports_without_a_place_to_go_are_an_error_of_the_settings(tmp_path: Path) -> None:
    environ = {"SUPABASE_BRIDGE_HOME": str(tmp_path), "SUPABASE_BRIDGE_USAGE_REPORTS": "true"}
    with pytest.raises(SettingsError, match="there is no place to report to"):
        Resolver.from_env(environ)
