"""Every step that changes something is a point at which a worker is killed: a new one fails until it is counted."""

from __future__ import annotations

import ast
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import supabase_bridge
from supabase_bridge.core.events import Event, EventState
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore, PutOptions
from supabase_bridge.storage.factory import open_store
from tests.crash.effects import CountedClient, CountedOutbox, CountedStore, Effects
from tests.support.databases import copy_sqlite
from tests.support.outboxes import LATEST, LEASE, NOW, claimed, connect, record
from tests.support.scene import MODEL, MakeScene, files_below

OF_STORE: Mapping[str, Callable[[ObjectStore], Any]] = {
    "ensure_bucket": lambda store: store.ensure_bucket(),
    "create": lambda store: store.create("m/new", b"new", PutOptions()),
    "overwrite": lambda store: store.overwrite("m/a", b"new", PutOptions()),
    "copy_in": lambda store: store.copy_in("models", store.stat("m/a"), "m/copy", PutOptions()),
    "move": lambda store: store.move("m/a", "m/moved"),
    "delete": lambda store: store.delete(["m/a"]),
}
READ_FROM_STORE: Mapping[str, Callable[[ObjectStore], Any]] = {
    "name": lambda store: store.name,
    "read": lambda store: store.read("m/a", limit_bytes=100),
    "stream": lambda store: list(store.stream("m/a")),
    "read_part": lambda store: store.read_part(store.stat("m/a"), start=0, size_bytes=1),
    "stat": lambda store: store.stat("m/a"),
    "list": lambda store: list(store.list("")),
    "close": lambda store: store.close(),
}

OF_OUTBOX: Mapping[str, Callable[[Outbox, Event], Any]] = {
    "claim": lambda outbox, _: outbox.claim("w", lease=LEASE, now=NOW),
    "start_upload": lambda outbox, event: outbox.start_upload(event, 1),
    "end_upload": lambda outbox, event: outbox.end_upload(event),
    "supersede": lambda outbox, event: outbox.supersede(event, [LATEST], [], now=NOW),
    "finish": lambda outbox, event: outbox.finish(event, "w", EventState.DONE, "done", now=NOW),
    "postpone": lambda outbox, event: outbox.postpone(event, "w", "later", until=NOW),
}
READ_FROM_OUTBOX: Mapping[str, Callable[[Outbox, Event], Any]] = {
    "now": lambda outbox, _: outbox.now(),
    "registry_id": lambda outbox, _: outbox.registry_id(),
    "until_due": lambda outbox, _: outbox.until_due(now=NOW),
    "assignments": lambda outbox, _: outbox.assignments("default", "a", LATEST),
    "last_activated": lambda outbox, _: outbox.last_activated("default", "a", LATEST, other_than=1),
    "was_activated": lambda outbox, _: outbox.was_activated("default", "a", LATEST, version=1),
    "has_failed_since": lambda outbox, event: outbox.has_failed_since(event),
    "events": lambda outbox, _: list(outbox.events()),
    "get": lambda outbox, event: outbox.get(event.id),
}
NO_STEP_OF_AN_EVENT = {
    "prepare": "makes the tables, before there are events",
    "renew": "comes by the clock on the wall; it changes until when an event is held, and a lease may end at any time",
    "remove_finished": "a periodic task, each batch one transaction; the next run removes the rest",
    "retry": "a person asks for it: one transaction",
    "discard": "a person asks for it: one transaction",
}

OF_CLIENT: Mapping[str, Callable[[MlflowClient], Any]] = {
    "set_registered_model_tag": lambda client: client.set_registered_model_tag(MODEL, "a", "1"),
    "set_model_version_tag": lambda client: client.set_model_version_tag(MODEL, "1", "a", "1"),
    "delete_model_version_tag": lambda client: client.delete_model_version_tag(MODEL, "1", "a"),
}
READ_BY_CLIENT = {
    "get_logged_model",
    "get_model_version",
    "get_model_version_download_uri",
    "get_registered_model",
    "get_run",
    "search_model_versions",
    "search_registered_models",
}
ASKED_FOR_BY_PEOPLE = {"set_registered_model_alias", "transition_model_version_stage"}
"""Calls of `rollback`, which acts as an operator does; a worker never makes them."""
RUN_BY_A_WORKER = ("worker", "reconcile", "follower", "mirror", "registry", "releases", "outbox", "storage")
"""The packages whose code a worker runs."""


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def last_name(node: ast.expr) -> str | None:
    """The last name of a dotted expression."""
    match node:
        case ast.Name(name) | ast.Attribute(_, name):
            return name
    return None


def test_every_method_of_a_store_and_of_the_outbox_is_counted_or_known_to_change_nothing() -> None:
    assert public(ObjectStore) == OF_STORE.keys() | READ_FROM_STORE.keys()
    assert public(Outbox) == OF_OUTBOX.keys() | READ_FROM_OUTBOX.keys() | NO_STEP_OF_AN_EVENT.keys()


def test_every_call_of_mlflows_client_is_counted_or_known_to_change_nothing() -> None:
    called: set[str] = set()
    product = Path(supabase_bridge.__file__).parent
    for path in [path for package in RUN_BY_A_WORKER for path in (product / package).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(of, name) | ast.Call(ast.Name("getattr"), [of, ast.Constant(str(name)), *_]):
                    called |= {name} if last_name(of) == "client" else set()
    assert called == OF_CLIENT.keys() | READ_BY_CLIENT | ASKED_FOR_BY_PEOPLE
    assert public(CountedClient) == OF_CLIENT.keys() | {"count"}


def counted(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.parametrize("method", [*OF_STORE, *READ_FROM_STORE])
def test_what_changes_a_store_is_a_side_effect_and_nothing_else_is(
    method: str, directory_settings: Settings, tmp_path: Path
) -> None:
    with closing(open_store(directory_settings, "models")) as filled:
        filled.ensure_bucket()
        filled.create("m/a", b"old", PutOptions())
    before = files_below(directory_settings.home)
    store = CountedStore(open_store(directory_settings, "models"), Effects(tmp_path / "log", None))
    {**OF_STORE, **READ_FROM_STORE}[method](store)
    store.close()
    assert counted(tmp_path / "log") == (method in OF_STORE)
    assert (files_below(directory_settings.home) != before) == (method in OF_STORE.keys() - {"ensure_bucket"})


@pytest.mark.parametrize("method", [*OF_OUTBOX, *READ_FROM_OUTBOX])
def test_what_changes_the_outbox_is_a_side_effect_and_nothing_else_is(
    method: str, empty_database: Path, tmp_path: Path
) -> None:
    copy_sqlite(empty_database, tmp_path / "mlflow.db")
    engine = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    outbox = CountedOutbox(engine, Effects(tmp_path / "log", None))
    for model in ("a", "a", "b"):
        record(engine, model=model)
    event = claimed(Outbox(engine))
    Outbox(engine).start_upload(event, 2)
    before = dump(tmp_path / "mlflow.db")
    {**OF_OUTBOX, **READ_FROM_OUTBOX}[method](outbox, event)
    assert counted(tmp_path / "log") == (method in OF_OUTBOX)
    assert (dump(tmp_path / "mlflow.db") != before) == (method in OF_OUTBOX)
    engine.dispose()


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


def test_what_changes_the_registry_is_a_side_effect(
    make_scene: MakeScene, directory_settings: Settings, tmp_path: Path
) -> None:
    scene = make_scene(directory_settings)
    scene.train()
    client = CountedClient(tracking_uri=scene.settings.database_url, registry_uri=scene.settings.registry_uri)
    client.count(Effects(tmp_path / "log", None))
    for number, call in enumerate(OF_CLIENT.values(), start=1):
        call(client)
        assert counted(tmp_path / "log") == number
