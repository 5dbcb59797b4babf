"""A registry with a worker on SQLite and on PostgreSQL, against the simulator of Supabase Storage.

A conftest.py takes the fixtures by importing them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import mlflow
import pytest

from supabase_bridge.config import Settings
from supabase_bridge.runtime import runtime
from supabase_bridge.worker import Handled
from tests.databases import DatabaseServer
from tests.registry_fixtures import Scene, fill_home, registry_client, supabase_environment
from tests.simulators.storage import StorageSimulator

LIMIT_SECONDS = 30.0

MakeWorkerScene: TypeAlias = "Callable[..., Scene]"


@pytest.fixture(scope="session")
def postgresql_registry(postgresql: DatabaseServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with MLflow's tables and nothing in them, to copy."""
    home = tmp_path_factory.mktemp("postgresql")
    url = _for_this_mlflow(postgresql.create())
    registry_client(Settings.load(home=home, environ={}, database_url=url))
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def make_worker_scene(
    request: pytest.FixtureRequest, simulator: StorageSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeWorkerScene]:
    """Makes a scene on each database, with settings by keyword; a second one is of the same registry."""
    monkeypatch.chdir(tmp_path)
    url: str | None = None
    if request.param == "postgresql":
        server: DatabaseServer = request.getfixturevalue("postgresql")
        url = _for_this_mlflow(server.create(template=request.getfixturevalue("postgresql_registry")))
    with ExitStack() as stack:

        def make(**changes: Any) -> Scene:
            values: dict[str, Any] = {"home": tmp_path / "home", "database_url": url, **changes}
            settings = Settings.load(**{"environ": supabase_environment(simulator), **values})
            if url is None and not (settings.home / "mlflow.db").exists():
                fill_home(settings, request.getfixturevalue("empty_database"))
            settings.home.mkdir(exist_ok=True)
            client = registry_client(settings)
            return Scene(settings=settings, runtime=stack.enter_context(runtime(settings)), client=client)

        yield make


def _for_this_mlflow(url: str) -> str:
    """With the driver that MLflow works with: the tracking store of MLflow 2 fails with psycopg 3."""
    driver = "psycopg2" if mlflow.__version__.startswith("2.") else "psycopg"
    return url.replace("postgresql+psycopg:", f"postgresql+{driver}:")


@contextmanager
def working(scene: Scene, on_handled: Callable[[Handled], None] | None = None) -> Iterator[None]:
    """Let a worker run, as `supabase-bridge worker` does, for the length of a block."""
    stop = threading.Event()
    thread = threading.Thread(target=scene.runtime.worker(on_handled).run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(LIMIT_SECONDS)
        assert not thread.is_alive()
