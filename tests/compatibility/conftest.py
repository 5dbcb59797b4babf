"""Fixtures of the compatibility tests."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from tests.databases import DatabaseServer, mariadb, postgresql

# Warnings are errors in our tests; what MLflow warns of while it is imported is not ours to mend.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mlflow.store.model_registry.sqlalchemy_store  # noqa: F401

    from tests.compatibility.registries import Registry

from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.schema import OUTBOX, ensure_schema
from tests.compatibility.outboxes import connect
from tests.compatibility.worker_scenes import make_worker_scene, postgresql_registry
from tests.registry_fixtures import empty_database, simulator

__all__ = ["empty_database", "make_worker_scene", "mariadb", "postgresql", "postgresql_registry", "simulator"]

DATABASES = ("sqlite", "postgresql", "mariadb")


@pytest.fixture(scope="session")
def _registries() -> Iterator[dict[str, Registry]]:
    """The session's registries by kind of database: MLflow takes seconds to set one up."""
    registries: dict[str, Registry] = {}
    yield registries
    for registry in registries.values():
        registry.engine.dispose()


@pytest.fixture
def sqlite_registry(_registries: dict[str, Registry], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """An empty registry behind our store, on SQLite, where nothing depends on the database."""
    if "sqlite" not in _registries:
        _registries["sqlite"] = Registry(f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}")
    yield _registries["sqlite"]
    _registries["sqlite"].clear()


@pytest.fixture(params=DATABASES)
def registry(request: pytest.FixtureRequest, _registries: dict[str, Registry]) -> Iterator[Registry]:
    """An empty registry behind our store, on each kind of database."""
    kind: str = request.param
    if kind == "sqlite":
        yield request.getfixturevalue("sqlite_registry")
        return
    if kind not in _registries:
        server: DatabaseServer = request.getfixturevalue(kind)
        _registries[kind] = Registry(server.create())
    yield _registries[kind]
    _registries[kind].clear()


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
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


@pytest.fixture(params=DATABASES)
def engine(
    request: pytest.FixtureRequest, _outboxes: dict[str, Engine], tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    """A database of each kind with an empty outbox, and nothing of MLflow's."""
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
