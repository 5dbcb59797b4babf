"""A stock MLflow server without our plugin, followed over its REST API."""

from __future__ import annotations

import os
import signal
import socket
import socketserver
import subprocess
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa

from supabase_bridge.app.runtime import open_runtime
from supabase_bridge.core.events import Event, EventKind, NewEvent
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.outbox.errors import RegistryUnavailableError
from supabase_bridge.outbox.record import append
from supabase_bridge.outbox.tables import OUTBOX, WATCHED_MODELS, WATCHED_VERSIONS
from supabase_bridge.reconcile.release_check import Scope
from supabase_bridge.releases.channel import Channel
from supabase_bridge.settings.model import FILE_NAME
from supabase_bridge.storage.factory import open_store
from tests.support.announcing import SECRET
from tests.support.commands import EXECUTABLE, invoke
from tests.support.machine import free_port
from tests.support.processes import started, surroundings
from tests.support.receivers import receiving
from tests.support.remote_registry import Remote
from tests.support.served import until

pytestmark = pytest.mark.exhaustive

on_both_databases = pytest.mark.parametrize("remote", ["sqlite", "postgresql"], indirect=True)


def changes(events: list[Event]) -> list[tuple[EventKind, int | None, str | None]]:
    return [(event.kind, event.version, event.stage or event.alias) for event in events]


def test_what_is_in_a_stage_at_the_first_look_arrives_there(remote: Remote, tmp_path: Path) -> None:
    first, second = remote.train(tmp_path, stage="Production"), remote.train(tmp_path)
    assert changes(remote.follow()) == [
        (EventKind.STAGE_CHANGED, first, "Production"),
        (EventKind.VERSION_CREATED, first, "Production"),
        (EventKind.VERSION_CREATED, second, "None"),
    ]
    assert remote.current() == first
    tags = remote.client.get_model_version(remote.model, str(second)).tags
    assert tags["supabase.status"] == "mirrored"


def test_the_switches_of_a_followed_registry_are_announced(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    with receiving() as receiver:
        remote.home.mkdir()
        table = f'[announce.api]\nurl = "{receiver.url}"\nsecret_env = "WEBHOOK_SECRET"\n'
        (remote.home / FILE_NAME).write_text(table + 'events = ["release.activated", "release.mirrored"]\n')
        command = ["watch-registry", "--tracking-uri", remote.url, "--once", "--home", remote.home]
        assert invoke(*command, environment={"WEBHOOK_SECRET": SECRET}).code == 0
        version = remote.train(tmp_path, stage="Production")
        assert invoke(*command, environment={"WEBHOOK_SECRET": SECRET}).code == 0
        found = [(one.message["type"], one.message["data"]) for one in receiver.taken]
        activated = [data["current"]["model_version"] for kind, data in found if kind == "release.activated"]
        mirrored = [data["model_version"] for kind, data in found if kind == "release.mirrored"]
        assert (activated, mirrored) == ([version], [version])


def test_a_promotion_moves_the_pointer_and_nothing_is_done_twice(remote: Remote, tmp_path: Path) -> None:
    first, second = remote.train(tmp_path, stage="Production"), remote.train(tmp_path)
    remote.follow()
    assert remote.follow() == []
    remote.promote(second)
    with remote.watching() as made:
        made.poller.poll()
        assert made.poller.poll().events == ()
        remote.promote(first, "Archived")
        found = made.poller.poll()
        assert (found.full, [(event.version, event.stage) for event in found.events]) == (False, [(first, "Archived")])
        made.worker().drain()
        assert remote.current() == second
        made.poller.poll(full=True)
        seen = list(made.reconciler(made.stores).run(now=made.outbox.now(), scope=Scope.FULL))
    assert seen == []


def test_of_two_promotions_between_two_looks_the_later_one_counts(remote: Remote, tmp_path: Path) -> None:
    first, second = remote.train(tmp_path), remote.train(tmp_path)
    remote.follow()
    remote.promote(second)
    remote.promote(first)
    remote.follow()
    assert remote.current() == first


def test_of_a_stage_and_an_alias_at_the_first_look_the_alias_counts_as_the_later(
    remote: Remote, tmp_path: Path
) -> None:
    first, second = remote.train(tmp_path), remote.train(tmp_path)
    remote.client.set_registered_model_alias(remote.model, "champion", str(first))
    remote.promote(second)
    remote.follow()
    assert remote.current() == first


@on_both_databases
def test_aliases_deletions_and_renames_are_seen(remote: Remote, tmp_path: Path) -> None:
    first, second = remote.train(tmp_path), remote.train(tmp_path)
    remote.follow()
    remote.client.set_registered_model_alias(remote.model, "champion", str(first))
    with remote.watching() as made:
        made.poller.poll()
        remote.client.set_registered_model_alias(remote.model, "champion", str(second))
        found = made.poller.poll().events
        assert [(event.version, event.previous_version) for event in found] == [(second, first)]
        remote.client.delete_registered_model_alias(remote.model, "champion")
        remote.client.delete_model_version(remote.model, str(first))
        gone = {event.kind for event in made.poller.poll(full=True).events}
        assert gone == {EventKind.ALIAS_REMOVED, EventKind.VERSION_DELETED}
        assert made.poller.poll(full=True).events == ()
        renamed = f"{remote.model}-renamed"
        remote.client.rename_registered_model(remote.model, renamed)
        assert {(event.kind, event.model) for event in made.poller.poll().events} == {
            (EventKind.MODEL_DELETED, remote.model),
            (EventKind.VERSION_CREATED, renamed),
        }
        made.worker().drain()
    assert remote.client.get_model_version(renamed, str(second)).tags["supabase.status"] == "mirrored"


@pytest.mark.parametrize("remote", ["sqlite", "postgresql"], indirect=True)
def test_killed_between_two_looks_nothing_is_lost_or_doubled(remote: Remote, tmp_path: Path) -> None:
    versions = [remote.train(tmp_path) for _ in range(2)]
    remote.home.mkdir()
    # What a killed worker held is free again after its lease.
    (remote.home / "supabase-bridge.toml").write_text("lease = 1\n")
    command = [str(EXECUTABLE), "watch-registry", "--tracking-uri", remote.url, "--interval", "0.2"]
    command += ["--home", str(remote.home)]
    turns = [*versions, versions[0]]
    for turn in turns:
        remote.promote(turn, archive=True)
        with started(command, cwd=tmp_path, env=surroundings(tmp_path, **remote.environment)) as process:
            until(partial(remote.points_to, turn), "the pointer", limit_seconds=60)
            process.kill()
    with remote.watching() as made:
        assert made.outbox.engine.url == sa.make_url(remote.settings.watch_database_url)
        log = Channel(made.stores("models"), ChannelPaths(model_key=remote.model, channel="latest"))
        head = log.read_head().head
        assert head is not None
        entries = [log.entry(number).current.model_version for number in range(1, head.sequence + 1)]
        assert entries == turns
        assert [event for event in made.poller.poll().events if event.model == remote.model] == []


class Line:
    """A connection to a server that can be cut: a port that leads there while it is open."""

    def __init__(self, url: str) -> None:
        self._port = free_port()
        self._target = urlsplit(url)
        self._server: socketserver.ThreadingTCPServer | None = None
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._port}"

    def open(self) -> None:
        connections = self._open
        target = (str(self._target.hostname), int(self._target.port or 0))

        class Forward(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                connections.append(self.request)
                with socket.create_connection(target) as there:
                    answering = threading.Thread(target=pump, args=(there, self.request))
                    answering.start()
                    pump(self.request, there)
                    answering.join()

        socketserver.ThreadingTCPServer.allow_reuse_address = True
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", self._port), Forward)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def cut(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_an_outage_of_the_server_loses_nothing(remote: Remote, tmp_path: Path) -> None:
    version = remote.train(tmp_path)
    line = Line(remote.url)
    line.open()
    with open_runtime(remote.settings, remote=line.url) as made:
        made.poller.poll()
        line.cut()
        remote.promote(version)
        with pytest.raises(RegistryUnavailableError):
            made.poller.poll()
        line.open()
        assert [event.stage for event in made.poller.poll().events] == ["Production"]
        line.cut()


@on_both_databases
def test_two_watchers_of_one_database_do_not_undo_each_other(remote: Remote, tmp_path: Path) -> None:
    version = remote.train(tmp_path)
    with remote.watching() as one, remote.watching() as other:
        one.poller.poll()
        looked = other.poller._models

        def overtaken() -> Any:
            found = list(looked())
            remote.promote(version)
            assert [event.stage for event in one.poller.poll().events] == ["Production"]
            return iter(found)

        other.poller._models = overtaken  # type: ignore[method-assign]  # what is read before somebody else's poll
        assert other.poller.poll().events == ()
        assert [event.stage for event in remote.events(one)] == ["None", "Production"]


@pytest.mark.parametrize("address", ["sqlite:///x.db", "mlflow.example.com", "file:///x"])
def test_an_address_that_is_no_server_is_refused(address: str, tmp_path: Path) -> None:
    said = invoke("watch-registry", "--tracking-uri", address, "--home", tmp_path)
    assert (said.code, "--tracking-uri" in said.err) == (2, True)


def test_once_says_what_it_saw_and_the_command_stops_when_asked(remote: Remote, tmp_path: Path) -> None:
    remote.train(tmp_path, stage="Production")
    said = invoke("watch-registry", "--tracking-uri", remote.url, "--once", "--home", remote.home)
    assert (said.code, f"{remote.model} v1 -> Production: done" in said.out) == (0, True)
    command = [str(EXECUTABLE), "watch-registry", "--tracking-uri", remote.url, "--home", str(remote.home)]
    with started(command, cwd=tmp_path, env=surroundings(tmp_path), stdout=subprocess.PIPE) as process:
        until(lambda: b"ready" in (tmp_path / "stderr").read_bytes(), "the watch", limit_seconds=60)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert b"watch:    stopped" in (tmp_path / "stderr").read_bytes()


@on_both_databases
def test_a_tag_that_is_too_long_for_a_folder_stops_nothing(remote: Remote, tmp_path: Path) -> None:
    version = remote.train(tmp_path)
    other = f"{remote.model}-other"
    remote.client.create_registered_model(other)
    remote.client.set_registered_model_tag(other, "supabase.key", "x" * 5_000)
    remote.client.set_model_version_tag(remote.model, str(version), "supabase.channel.x", "y\0" * 1_000)
    remote.follow()
    remote.promote(version)
    remote.client.create_registered_model("n" * 300)
    remote.follow()
    assert remote.current() == version
    with remote.watching() as made, made.outbox.engine.connect() as connection:
        assert connection.execute(
            sa.select(WATCHED_MODELS.c.model_key).where(WATCHED_MODELS.c.model == other)
        ).all() == [(None,)]
    remote.client.delete_registered_model("n" * 300)


@pytest.mark.parametrize(("remote", "stopped"), [("sqlite", True), ("postgresql", False)], indirect=["remote"])
def test_a_model_that_was_deleted_and_made_again_between_two_looks_is_another_one(
    remote: Remote, tmp_path: Path, stopped: bool
) -> None:
    remote.train(tmp_path, stage="Production")
    remote.follow()
    with remote.watching() as made:
        made.poller.poll()
        remote.client.delete_registered_model(remote.model)
        version = remote.train(tmp_path, stage="Production")
        if not stopped:
            found = made.poller.poll()
            assert not found.full
            made.worker().drain()
    if stopped:
        remote.follow()
    with remote.watching() as made:
        assert changes(remote.events(made))[2:] == [
            (EventKind.MODEL_DELETED, None, None),
            (EventKind.STAGE_CHANGED, version, "Production"),
            (EventKind.VERSION_CREATED, version, "Production"),
        ]
        assert made.poller.poll(full=True).events == ()
    tags = remote.client.get_model_version(remote.model, str(version)).tags
    store = open_store(remote.settings, "models")
    head = Channel(store, ChannelPaths(model_key=remote.model, channel="latest")).read_head().head
    assert head is not None
    assert (head.sequence, head.current.run_id) == (2, tags["supabase.run_id"])


def test_a_version_under_the_number_of_another_one_is_mirrored(remote: Remote, tmp_path: Path) -> None:
    version = remote.train(tmp_path, stage="Production")
    remote.follow()
    with remote.watching() as made, made.outbox.engine.begin() as connection:
        # MLflow gives no number twice, while a row of its table remembers it; other registries may.
        connection.execute(WATCHED_VERSIONS.update().values(created_ms=1))
    assert changes(remote.follow()) == [
        (EventKind.VERSION_DELETED, version, None),
        (EventKind.VERSION_CREATED, version, "None"),
        (EventKind.STAGE_CHANGED, version, "Production"),
    ]
    assert remote.current() == version
    assert remote.follow() == []


def test_a_worker_that_ends_unexpectedly_ends_the_command(remote: Remote, tmp_path: Path) -> None:
    with remote.watching() as made, made.outbox.engine.begin() as connection:
        event = NewEvent(kind=EventKind.VERSION_CREATED, workspace="default", model="other", version=1)
        append(connection, event)
        connection.execute(OUTBOX.update().values(kind="a kind of a later release"))
    command = [str(EXECUTABLE), "watch-registry", "--tracking-uri", remote.url, "--home", str(remote.home)]
    with started(command, cwd=tmp_path, env=surroundings(tmp_path), stdout=subprocess.PIPE) as process:
        assert process.wait(timeout=60) == 1
    assert b"Error: the worker ended unexpectedly" in (tmp_path / "stderr").read_bytes()
