"""The user of MLflow, or of the operating system, that an event names."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest
import sqlalchemy as sa
from flask import Flask, g

from mlflow_supabase import capture
from mlflow_supabase.gate import TransitionGate
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.outbox.tables import OUTBOX
from supabase_bridge.settings.model import Settings
from tests.support.registry_stores import Registry

HEADER = "X-Forwarded-User"
FORGED = {HEADER: "mallory", "X-User": "mallory", "Authorization": "Basic bWFsbG9yeTp4"}


@contextmanager
def request(user: str | None = None, **headers: str) -> Iterator[None]:
    """A request of an MLflow server; `user` is whom its basic-auth app has authenticated."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with Flask("server").test_request_context(headers=named):
        if user is not None:
            g.mlflow_authenticated_user = user
        yield


@pytest.fixture
def registry(sqlite_registry: Registry) -> Iterator[Registry]:
    """One with a version, and no setting of a header."""
    sqlite_registry.with_versions(1)
    trust(sqlite_registry, None)
    yield sqlite_registry
    capture.watch(sqlite_registry.engine, TransitionGate(Settings.for_registry))


def trust(registry: Registry, header: str | None) -> None:
    settings = Settings() if header is None else Settings(trusted_user_header=header)
    capture.watch(registry.engine, TransitionGate(lambda: settings))


def who(registry: Registry) -> str | None:
    """Who made the next change."""
    registry.move(1, "Production")
    query = sa.select(OUTBOX.c.made_by).order_by(OUTBOX.c.id.desc()).limit(1)
    with registry.engine.connect() as connection:
        found: str | None = connection.execute(query).scalar_one()
    return found


def test_a_change_outside_a_server_is_that_of_the_operating_systems_user(registry: Registry) -> None:
    assert who(registry) == getpass.getuser()


def test_an_authenticated_request_names_its_user_also_in_the_events_that_it_entails(registry: Registry) -> None:
    with request("alice@example.com"):
        assert who(registry) == "alice@example.com"
        registry.store.set_registered_model_alias("two_tower", "champion", 1)
        registry.store.delete_model_version("two_tower", 1)
    with registry.engine.connect() as connection:
        names = connection.execute(sa.select(OUTBOX.c.made_by).order_by(OUTBOX.c.id)).scalars().all()
    assert names[-4:] == ["alice@example.com"] * 4


def test_where_mlflow_does_not_keep_the_name_its_basic_auth_app_is_asked_again_if_it_is_in_use(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, auth = Flask("server"), SimpleNamespace(_before_request=lambda: None)
    auth.authenticate_request = lambda: SimpleNamespace(username="alice")
    monkeypatch.setitem(sys.modules, "mlflow.server.auth", cast("ModuleType", auth))
    with app.test_request_context():
        assert who(registry) is None
    app.before_request(auth._before_request)
    with app.test_request_context():
        assert who(registry) == "alice"


def test_a_request_that_nobody_authenticated_has_no_user(registry: Registry) -> None:
    with request():
        assert who(registry) is None


def test_the_header_of_a_trusted_proxy_names_the_user(registry: Registry) -> None:
    trust(registry, HEADER)
    with request(X_Forwarded_User=" Zoë ".encode().decode("latin-1")):
        assert who(registry) == "Zoë"
    with request():
        assert who(registry) is None


def test_a_name_that_is_too_long_for_the_column_is_cut(registry: Registry) -> None:
    trust(registry, HEADER)
    with request(X_Forwarded_User="x" * 5_000):
        assert who(registry) == "x" * 256


def test_settings_that_cannot_be_read_leave_a_change_that_is_no_promotion_without_a_name(registry: Registry) -> None:
    def unreadable() -> Settings:
        raise SettingsError("bucket", "malformed")

    capture.watch(registry.engine, TransitionGate(unreadable))
    with request(X_Forwarded_User="alice"):
        registry.store.create_model_version("two_tower", "s3://bucket/model")
    with registry.engine.connect() as connection:
        assert connection.execute(sa.select(OUTBOX.c.made_by).order_by(OUTBOX.c.id.desc())).scalars().first() is None


# --- attacks ----------------------------------------------------------------------------------------------------------


def test_a_forged_user_header_has_no_effect_without_the_setting(registry: Registry) -> None:
    with request(**FORGED):
        assert who(registry) is None
    with request("alice", **FORGED):
        assert who(registry) == "alice"


def test_a_forged_user_header_does_not_replace_whom_mlflow_has_authenticated(registry: Registry) -> None:
    trust(registry, HEADER)
    with request("alice", **FORGED):
        assert who(registry) == "alice"


@pytest.mark.parametrize("value", ["alice,mallory", "mallory, alice"])
def test_a_second_user_header_leaves_the_change_without_a_name(registry: Registry, value: str) -> None:
    """WSGI joins headers of one name, and takes `X_Forwarded_User` for the same name as `X-Forwarded-User`."""
    trust(registry, HEADER)
    with request(X_Forwarded_User=value):
        assert who(registry) is None
