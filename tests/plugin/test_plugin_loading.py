"""How MLflow finds the plugins, and what a process that uses them leaves when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from mlflow.tracking._model_registry.registry import ModelRegistryStoreRegistry

from mlflow_supabase.store import build
from tests.support.registry_stores import Registry, recorded

_LIMIT_SECONDS = 120

_LIST_SCHEMES = """
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
from mlflow.tracking._model_registry.utils import _get_store_registry

for registry in (_artifact_repository_registry, _get_store_registry()):
    print(*(scheme for scheme in registry._registry if scheme.startswith("supabase")))
"""

_DIE_BETWEEN_FLUSH_AND_COMMIT = """
import os, signal, sys
import sqlalchemy as sa
from mlflow_supabase.store import build
from supabase_bridge.outbox.tables import OUTBOX

store = build("supabase+" + sys.argv[1])

def die(connection):
    print(connection.scalar(sa.select(sa.func.count()).select_from(OUTBOX)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

sa.event.listen(store.engine, "commit", die)
store.transition_model_version_stage("two_tower", 2, "Production", archive_existing_versions=True)
"""


def _python(source: str, *arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "PYTEST"))}
    return subprocess.run(
        [sys.executable, "-c", source, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )


@pytest.mark.parametrize(
    "first",
    [
        "mlflow",
        pytest.param("mlflow_supabase", marks=pytest.mark.exhaustive),
        pytest.param("mlflow_supabase.artifact_repository", marks=pytest.mark.exhaustive),
        pytest.param("mlflow_supabase.store", marks=pytest.mark.exhaustive),
    ],
)
def test_both_plugins_are_registered_whatever_is_imported_first(first: str, tmp_path: Path) -> None:
    done = _python(f"import {first}\n{_LIST_SCHEMES}", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Failure attempting to register" not in done.stderr
    artifacts, registries = done.stdout.splitlines()
    assert artifacts == "supabase"
    declared = {item.name for item in entry_points(group="mlflow.model_registry_store")}
    assert set(registries.split()) == {name for name in declared if name.startswith("supabase")}
    assert "supabase+sqlite" in registries.split()


def test_importing_the_plugins_touches_neither_the_network_nor_the_directory(tmp_path: Path) -> None:
    modules = "mlflow_supabase.artifact_repository, mlflow_supabase.store"
    done = _python(f"import socket\nsocket.socket.connect = None\nimport {modules}", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_mlflow_loads_the_registry_plugin_without_what_the_store_needs(tmp_path: Path) -> None:
    done = _python(
        "import sys, mlflow, mlflow_supabase.store\nprint('supabase_bridge.outbox' in sys.modules)", directory=tmp_path
    )
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    "scheme",
    [
        "supabase+sqlite",
        "supabase+postgresql",
        "supabase+postgresql+psycopg",
        "supabase+postgresql+psycopg2",
        "supabase+postgresql+pg8000",
        "supabase+mysql",
        "supabase+mysql+pymysql",
        "supabase+mysql+mysqldb",
        "supabase+mysql+mysqlconnector",
    ],
)
def test_each_database_driver_has_a_scheme_of_its_own(scheme: str) -> None:
    registry = ModelRegistryStoreRegistry()
    registry.register_entrypoints()
    assert registry.get_store_builder(f"{scheme}://host/database") is build


def test_killing_the_process_between_flush_and_commit_leaves_neither_the_change_nor_its_event(
    registry: Registry, tmp_path: Path
) -> None:
    registry.with_versions(2)
    registry.move(1, "Production")
    before = recorded(registry.engine)
    done = _python(_DIE_BETWEEN_FLUSH_AND_COMMIT, registry.url, directory=tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert int(done.stdout) == len(before) + 2
    assert recorded(registry.engine) == before
    assert registry.stages() == {1: "Production", 2: "None"}
