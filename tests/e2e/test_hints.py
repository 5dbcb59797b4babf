"""Hints over Supabase Realtime: a consumer polls at once after a switch, and no hint is trusted with more than that."""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from supabase_bridge import Resolver
from supabase_bridge.client.release import Release
from supabase_bridge.core.layout import HINT_EVENT
from supabase_bridge.releases.hints import HintSender
from supabase_bridge.settings.model import Settings
from tests.support.commands import EXECUTABLE, clean_environment, execute
from tests.support.consumers import BUCKET, FIRST, LATEST, MODEL, SECOND, Bucket
from tests.support.peers import peer
from tests.support.scene import supabase_environment
from tests.support.served import until
from tests.support.simulators.hostile import hostile
from tests.support.simulators.realtime import RealtimeProject
from tests.support.simulators.storage import StorageSimulator

pytestmark = pytest.mark.exhaustive

LIMIT_SECONDS = 20
TOPIC = LATEST.topic(BUCKET)
NEVER = timedelta(hours=1)
"""An interval of polling that no test waits for."""


class Project(RealtimeProject):
    """A project with one current release and both services, and a sender with the secret key."""

    def __init__(self, storage: StorageSimulator) -> None:
        super().__init__(storage)
        self.storage = storage
        storage.let_anon_read(BUCKET)
        self.bucket = Bucket.of_simulator(storage)
        self.bucket.promote(FIRST)

    def polls(self) -> list[int]:
        """Return the status of each read of the manifest."""
        return [call.status for call in self.storage.calls() if call.path.endswith(LATEST.manifest)]


@pytest.fixture
def project() -> Iterator[Project]:
    with StorageSimulator() as storage:
        storage.put_object(BUCKET, "x", b"")
        with Project(storage) as found:
            yield found


@pytest.fixture
def reported(project: Project) -> Iterator[queue.Queue[str]]:
    """Yield the releases that a subscribed consumer with the publishable key reports; the first one is taken out."""
    found: queue.Queue[str] = queue.Queue()

    def report(release: Release) -> None:
        found.put(release.run_id)

    with (
        Resolver(url=project.url, key=project.storage.anon_key, realtime=True) as resolver,
        resolver.watch(MODEL, report, interval=NEVER),
    ):
        assert found.get(timeout=LIMIT_SECONDS) == FIRST
        project.wait_for_subscribers(1, TOPIC)
        yield found


def sender(project: Project) -> HintSender:
    settings = Settings.load(
        environ={"SUPABASE_URL": project.url, "SUPABASE_SECRET_KEY": project.storage.service_key}, realtime=True
    )
    return HintSender.of_settings(settings)


def test_a_hint_lets_a_consumer_report_a_switch_long_before_its_next_poll(
    project: Project, reported: queue.Queue[str]
) -> None:
    project.bucket.promote(SECOND)
    with closing(sender(project)) as hints:
        hints.send(BUCKET, LATEST)
    assert reported.get(timeout=LIMIT_SECONDS) == SECOND
    assert project.bodies == [{"messages": [{"topic": TOPIC, "event": HINT_EVENT, "payload": {}, "private": False}]}]


def test_a_forged_hint_costs_one_conditional_request_and_many_at_once_cost_no_more_than_one_a_second(
    project: Project, reported: queue.Queue[str]
) -> None:
    # One poll at the start, and one when the subscription began.
    until(lambda: project.polls() == [200, 304], "the second poll", limit_seconds=LIMIT_SECONDS)
    project.broadcast(TOPIC, HINT_EVENT)
    until(lambda: project.polls() == [200, 304, 304], "the poll after the hint", limit_seconds=LIMIT_SECONDS)
    started = time.monotonic()
    for _ in range(50):
        project.broadcast(TOPIC, HINT_EVENT)
    project.bucket.promote(SECOND)
    project.broadcast(TOPIC, HINT_EVENT)
    assert reported.get(timeout=LIMIT_SECONDS) == SECOND
    assert len(project.polls()) <= 3 + 2 + (time.monotonic() - started)


def test_a_broken_subscription_is_made_again_and_what_was_missed_meanwhile_is_found(
    project: Project, reported: queue.Queue[str]
) -> None:
    project.cut()
    project.bucket.promote(SECOND)
    assert reported.get(timeout=LIMIT_SECONDS) == SECOND
    project.wait_for_subscribers(1, TOPIC)
    project.bucket.promote(FIRST)
    project.broadcast(TOPIC, HINT_EVENT)
    assert reported.get(timeout=LIMIT_SECONDS) == FIRST


def test_without_a_subscription_polling_goes_on(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "realtime")
    project.refuses_joins = True
    found: queue.Queue[str] = queue.Queue()
    with (
        Resolver(url=project.url, key=project.storage.anon_key, realtime=True) as resolver,
        resolver.watch(MODEL, lambda release: found.put(release.run_id), interval=timedelta(seconds=1)),
    ):
        assert found.get(timeout=LIMIT_SECONDS) == FIRST
        project.bucket.promote(SECOND)
        assert found.get(timeout=LIMIT_SECONDS) == SECOND


def test_a_secret_key_is_not_put_into_the_url_of_a_socket(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    found: queue.Queue[str] = queue.Queue()
    with (
        Resolver(url=project.url, key=project.storage.service_key, realtime=True) as resolver,
        resolver.watch(MODEL, lambda release: found.put(release.run_id), interval=timedelta(seconds=1)),
    ):
        project.bucket.promote(SECOND)
        assert found.get(timeout=LIMIT_SECONDS) in {FIRST, SECOND}
    assert "hints need the publishable key" in caplog.text
    assert project.sockets == 0


def test_the_command_watch_prints_a_switch_after_its_hint(project: Project, tmp_path: Path) -> None:
    environment = {
        "SUPABASE_URL": project.url,
        "SUPABASE_PUBLISHABLE_KEY": project.storage.anon_key,
        "SUPABASE_BRIDGE_REALTIME": "true",
    }
    command = [str(EXECUTABLE), "watch", MODEL, "--interval", "3600", "--json"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment(tmp_path, environment), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["run_id"] == FIRST
        project.wait_for_subscribers(1, TOPIC)
        project.bucket.promote(SECOND)
        project.broadcast(TOPIC, HINT_EVENT)
        assert json.loads(process.stdout.readline())["run_id"] == SECOND
        process.terminate()
        assert process.wait(LIMIT_SECONDS) == 0


def test_a_sender_neither_raises_nor_waits_for_a_server_that_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    with hostile(lambda talk: talk.hang()) as server:
        hints = HintSender.of_settings(
            Settings.load(environ={"SUPABASE_URL": server.url, "SUPABASE_SECRET_KEY": "k"}, realtime=True)
        )
        started = time.monotonic()
        for _ in range(1000):
            hints.send(BUCKET, LATEST)
        assert time.monotonic() - started < 1
        hints.close()
        assert time.monotonic() - started < 4
    assert "Traceback" not in caplog.text


def test_nothing_is_sent_where_realtime_is_not_switched_on(project: Project) -> None:
    settings = Settings.load(environ={"SUPABASE_URL": project.url, "SUPABASE_SECRET_KEY": project.storage.service_key})
    with closing(HintSender.of_settings(settings)) as hints:
        hints.send(BUCKET, LATEST)
    assert project.bodies == []


def test_activate_and_rollback_without_mlflow_send_hints(project: Project, tmp_path: Path) -> None:
    project.bucket.promote(SECOND)
    environment = {
        **supabase_environment(project.storage),
        "SUPABASE_URL": project.url,
        "SUPABASE_BRIDGE_REALTIME": "true",
    }
    for arguments in (["activate", MODEL, FIRST], ["rollback", MODEL, "--without-mlflow"]):
        said = execute(*arguments, directory=tmp_path, environment=environment)
        assert said.code == 0, said.err
    assert [body["messages"][0]["topic"] for body in project.bodies] == [TOPIC, TOPIC]


def test_javascript_listens_with_supabases_own_client_and_a_hint_that_it_sends_reaches_python(
    project: Project, reported: queue.Queue[str]
) -> None:
    options = {"url": project.url, "key": project.storage.anon_key, "model": MODEL, "intervalMs": 3_600_000}
    with subprocess.Popen(
        [*peer("watch.mjs"), json.dumps(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"runId": FIRST}
        project.wait_for_subscribers(2, TOPIC)
        project.bucket.promote(SECOND)
        with closing(sender(project)) as hints:
            hints.send(BUCKET, LATEST)
        assert json.loads(process.stdout.readline()) == {"runId": SECOND}
        assert reported.get(timeout=LIMIT_SECONDS) == SECOND
        project.bucket.promote(FIRST)
        print("hint", file=process.stdin, flush=True)
        assert reported.get(timeout=LIMIT_SECONDS) == FIRST
        assert json.loads(process.stdout.readline()) == {"sent": "ok"}
        process.stdin.close()
        assert process.wait(LIMIT_SECONDS) == 0
