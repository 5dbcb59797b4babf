"""A registry with a worker on SQLite and on PostgreSQL, against the simulator of Supabase Storage."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import mlflow
import pytest

from supabase_bridge.app.runtime import open_runtime
from supabase_bridge.settings.model import Settings
from supabase_bridge.worker.worker import EventResult
from tests.support.databases import DatabaseServer
from tests.support.processes import surroundings
from tests.support.scene import Scene, fill_home, registry_client, supabase_environment
from tests.support.simulators.storage import StorageSimulator

LIMIT_SECONDS = 120.0
"""The time for a process to start; on a busy machine it needs a minute to import MLflow."""

MakeWorkerScene: TypeAlias = "Callable[..., Scene]"


@pytest.fixture(scope="session")
def postgresql_registry(postgresql: DatabaseServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URL of a database with MLflow's empty tables, to copy."""
    home = tmp_path_factory.mktemp("postgresql")
    url = _for_this_mlflow(postgresql.create())
    registry_client(Settings.load(home=home, environ={}, database_url=url))
    return url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.exhaustive)])
def make_worker_scene(
    request: pytest.FixtureRequest, simulator: StorageSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeWorkerScene]:
    """Yield a function that makes a scene on each database; a second scene has the same registry."""
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
            return Scene(settings=settings, runtime=stack.enter_context(open_runtime(settings)), client=client)

        yield make


def _for_this_mlflow(url: str) -> str:
    """Return the URL with a driver that this MLflow supports: the tracking store of MLflow 2 fails with psycopg 3."""
    driver = "psycopg2" if mlflow.__version__.startswith("2.") else "psycopg"
    return url.replace("postgresql+psycopg:", f"postgresql+{driver}:")


@contextmanager
def working(scene: Scene, on_handled: Callable[[EventResult], None] | None = None) -> Iterator[None]:
    """Run a worker like `supabase-bridge worker` for the length of a block."""
    stop = threading.Event()
    thread = threading.Thread(target=scene.runtime.worker(on_handled).run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(LIMIT_SECONDS)
        assert not thread.is_alive()


@contextmanager
def worker_process(scene: Scene, simulator: StorageSimulator, said: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a real `supabase-bridge worker`, and kill it at the end."""
    command = [sys.executable, "-m", "supabase_bridge.cli", "worker", "--home", str(scene.settings.home)]
    environ = surroundings(
        said.parent, **supabase_environment(simulator), SUPABASE_BRIDGE_DATABASE_URL=scene.settings.database_url
    )
    with said.open("wb") as out:
        process = subprocess.Popen(command, cwd=said.parent, env=environ, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
