"""The wiring: the same objects for a local and a remote registry, and the stores of a process."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from supabase_bridge.app.errors import CommandError
from supabase_bridge.app.runtime import Stores, open_runtime
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.settings.model import Settings


def test_stores_that_create_nothing_leave_a_missing_bucket_missing(directory_settings: Settings) -> None:
    bucket = directory_settings.home / "supabase" / directory_settings.bucket
    with closing(Stores(directory_settings, create=False)) as stores:
        stores(directory_settings.bucket)
    assert not bucket.exists()
    with closing(Stores(directory_settings)) as stores:
        assert stores(directory_settings.bucket) is stores(directory_settings.bucket)
    assert bucket.exists()


def test_a_runtime_needs_the_plugin_for_a_local_registry_only(tmp_path: Path) -> None:
    url = "postgresql+asyncpg://localhost/mlflow"
    settings = Settings.load(home=tmp_path, environ={"SUPABASE_BRIDGE_DATABASE_URL": url})
    with pytest.raises(CommandError, match=r"no registry store for supabase\+postgresql"), open_runtime(settings):
        pass
    with open_runtime(settings, remote="https://one.example.com") as runtime:
        assert runtime.settings.tracking_uri == "https://one.example.com"


@pytest.mark.parametrize("address", ["sqlite:///x.db", "mlflow.example.com", "file:///x"])
def test_an_address_that_is_no_server_is_refused(address: str, tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path, environ={})
    with pytest.raises(SettingsError, match="--tracking-uri"), open_runtime(settings, remote=address):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_follows_another_server_is_refused(tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path, environ={})
    with open_runtime(settings, remote="https://name:secret@one.example.com"):
        pass
    follows = pytest.raises(SettingsError, match=r"follows https://one\.example\.com already")
    with follows as refused, open_runtime(settings, remote="https://two.example.com"):
        pass
    assert "secret" not in str(refused.value)


def test_mlflows_own_database_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "watch.db")) as database:
        database.execute("CREATE TABLE registered_models (name TEXT)")
    with (
        pytest.raises(SettingsError, match="MLflow's own database"),
        open_runtime(Settings.load(home=tmp_path, environ={}), remote="https://one.example.com"),
    ):
        pass
