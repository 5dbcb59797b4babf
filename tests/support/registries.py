"""Fixtures: an MLflow registry, or an outbox alone, on each kind of database."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from tests.support.databases import DatabaseServer, copy_sqlite

# Warnings are errors in our tests; what MLflow warns of while it is imported is not ours to mend.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mlflow.store.model_registry.sqlalchemy_store  # noqa: F401

    from tests.support.registry_stores import Registry

from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.schema import ensure_schema
from supabase_bridge.outbox.tables import OUTBOX
from tests.support.outboxes import connect

_ON_POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.exhaustive)
"""Tests of what differs between databases name theirs, and run by default, but on MariaDB; see tests/conftest.py."""


@pytest.fixture(scope="session")
def _registries() -> Iterator[dict[str, Registry]]:
    """Return the session's registries by kind of database; MLflow needs seconds to make one."""
    registries: dict[str, Registry] = {}
    yield registries
    for registry in registries.values():
        registry.engine.dispose()


@pytest.fixture
def sqlite_registry(
    _registries: dict[str, Registry], empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    """Make an empty registry behind our store on SQLite, for tests that do not depend on the database."""
    if "sqlite" not in _registries:
        database = tmp_path_factory.mktemp("registry") / "mlflow.db"
        copy_sqlite(empty_database, database)
        _registries["sqlite"] = Registry(f"sqlite:///{database}")
    yield _registries["sqlite"]
    _registries["sqlite"].clear()


@pytest.fixture(params=["sqlite", _ON_POSTGRESQL, "mariadb"])
def registry(request: pytest.FixtureRequest, _registries: dict[str, Registry]) -> Iterator[Registry]:
    """Make an empty registry behind our store, on each kind of database."""
    kind: str = request.param
    if kind == "sqlite":
        yield request.getfixturevalue("sqlite_registry")
        return
    if kind not in _registries:
        server: DatabaseServer = request.getfixturevalue(kind)
        _registries[kind] = Registry(server.create())
    yield _registries[kind]
    _registries[kind].clear()


@pytest.fixture(params=["sqlite", _ON_POSTGRESQL, "mariadb"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Make an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'mlflow.db'}"
    server: DatabaseServer = request.getfixturevalue(request.param)
    return server.create()


@pytest.fixture(scope="session")
def _outboxes() -> Iterator[dict[str, Engine]]:
    engines: dict[str, Engine] = {}
    yield engines
    for engine in engines.values():
        engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def engine(
    request: pytest.FixtureRequest, _outboxes: dict[str, Engine], tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    """Make a database of each kind with an empty outbox and no tables of MLflow."""
    kind: str = request.param
    if kind not in _outboxes:
        path = tmp_path_factory.mktemp("outbox") / "mlflow.db"
        server: DatabaseServer | None = None if kind == "sqlite" else request.getfixturevalue(kind)
        _outboxes[kind] = connect(f"sqlite:///{path}" if server is None else server.create())
        ensure_schema(_outboxes[kind])
    with _outboxes[kind].begin() as connection:
        connection.execute(OUTBOX.delete())
    return _outboxes[kind]


@pytest.fixture
def outbox(engine: Engine) -> Outbox:
    return Outbox(engine)
