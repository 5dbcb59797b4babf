"""Fixtures of the compatibility tests."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from tests.databases import DatabaseServer, mariadb, postgresql

# Warnings are errors in our tests; what MLflow warns of while it is imported is not ours to mend.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mlflow.store.model_registry.sqlalchemy_store  # noqa: F401

    from tests.compatibility.registries import Registry

__all__ = ["mariadb", "postgresql"]

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
