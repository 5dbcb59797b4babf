"""The outbox's tables: where they are made, where they are not, and what happens when several make them at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.core.errors import SettingsError
from supabase_bridge.outbox.errors import DatabaseError, RegistryUnavailableError
from supabase_bridge.outbox.queue import Outbox, open_outbox
from supabase_bridge.outbox.schema import ensure_schema
from supabase_bridge.outbox.tables import META
from supabase_bridge.settings.model import Settings
from tests.support.outboxes import claim
from tests.support.outboxes import connect as connect_to


def connect(path: Path) -> Engine:
    return connect_to(f"sqlite:///{path}")


def test_an_mlflow_database_is_prepared_and_keeps_its_identity(tmp_path: Path) -> None:
    settings = Settings(database_url=f"sqlite:///{tmp_path / 'mlflow.db'}")
    engine = connect(tmp_path / "mlflow.db")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE registered_models (name TEXT)"))
    engine.dispose()
    identities = set()
    for _ in range(2):
        with open_outbox(settings) as outbox:
            identities.add(outbox.registry_id())
            assert claim(outbox) is None
    assert len(identities) == 1


def test_a_database_that_is_not_mlflows_is_refused_and_left_alone(tmp_path: Path) -> None:
    engine = connect(tmp_path / "other.db")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE invoices (id INTEGER)"))
    with pytest.raises(DatabaseError):
        Outbox(engine).prepare()
    assert sa.inspect(engine).get_table_names() == ["invoices"]
    engine.dispose()


def test_a_database_that_is_not_there_is_refused_and_not_created(tmp_path: Path) -> None:
    path = tmp_path / "absent.db"
    with pytest.raises(DatabaseError), open_outbox(Settings(database_url=f"sqlite:///{path}")):
        pass
    assert not path.exists()


def test_a_file_that_is_no_database_is_an_outage_and_not_the_end(tmp_path: Path) -> None:
    settings = Settings(database_url=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be taken for one" * 20)
    with pytest.raises(RegistryUnavailableError), open_outbox(settings):
        pass


@pytest.mark.parametrize("url", ["mlflow.db", "nosuchdatabase://x/y", "sqlite+nosuchdriver:///x"])
def test_a_url_that_names_no_database_is_a_wrong_setting(url: str) -> None:
    with pytest.raises(SettingsError, match="SUPABASE_BRIDGE_DATABASE_URL"), open_outbox(Settings(database_url=url)):
        pass


def prepare_at_once(path: Path, ready: Any) -> None:
    """Create the tables at the same moment as the other processes do."""
    engine = connect(path)
    ready.wait()
    ensure_schema(engine)
    engine.dispose()


def test_threads_that_start_at_once_make_one_outbox(tmp_path: Path) -> None:
    for number in range(10):
        path = tmp_path / f"{number}.db"
        barrier = threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _, path=path, ready=barrier: prepare_at_once(path, ready), range(4)))
        engine = connect(path)
        with engine.connect() as connection:
            assert connection.execute(sa.select(sa.func.count()).select_from(META)).scalar_one() == 1
        engine.dispose()


def test_a_sqlite_file_uses_the_write_ahead_log_and_mlflow_goes_on_with_it(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    engine = connect(path)
    ensure_schema(engine)
    stock = sa.create_engine(f"sqlite:///{path}")
    with stock.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    with stock.begin() as writer, engine.connect() as reader:
        writer.execute(META.update().values(registry_id="another"))
        assert reader.execute(sa.select(META.c.registry_id)).scalar_one() != "another"
    for each in (stock, engine):
        each.dispose()


def test_a_file_that_cannot_have_the_log_is_used_without(tmp_path: Path) -> None:
    # This way of locking has no shared memory, which the log needs; a network's file system may have none either.
    engine = sa.create_engine(f"sqlite:///file:{tmp_path / 'mlflow.db'}?vfs=unix-dotfile&uri=true")
    ensure_schema(engine)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
    assert claim(Outbox(engine)) is None
    engine.dispose()
