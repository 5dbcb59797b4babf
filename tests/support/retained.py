"""A model whose oldest releases may be removed, and a run of retention over it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from supabase_bridge.app.retention import open_remover, planner
from supabase_bridge.app.runtime import open_runtime
from supabase_bridge.core.layout import META_NAME, ReleasePaths, RunId
from supabase_bridge.retention.plan import PlannedRelease
from supabase_bridge.retention.remover import RemovalResult
from supabase_bridge.settings.model import FILE_NAME, Settings
from supabase_bridge.storage.base import ObjectStore
from tests.support.databases import copy_sqlite
from tests.support.machine import made_once
from tests.support.scene import MODEL, Scene, fill_home, registry_client, supabase_environment
from tests.support.simulators.storage import StorageSimulator

ARCHIVE = {"then": "archive", "archive_bucket": "models-archive", "min_age_days": 0}
DELETE = {"then": "delete", "min_age_days": 0}
WAYS = {"archive": ARCHIVE, "delete": DELETE}


MakeRetained: TypeAlias = "Callable[..., Scene]"


@pytest.fixture(scope="session")
def five_releases(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home with five releases, made once and only read: each takes a second."""

    def make(home: Path) -> None:
        settings = Settings.load(home=home, environ={})
        fill_home(settings, empty_database)
        client = registry_client(settings)
        with open_runtime(settings) as runtime:
            release_five(Scene(settings=settings, runtime=runtime, client=client))

    return made_once(tmp_path_factory, "five-releases", make)


@pytest.fixture
def make_retained(five_releases: Path, tmp_path: Path) -> Iterator[MakeRetained]:
    """Yield a function that makes a scene with five releases of its own under a policy.

    Its arguments are the policy, a simulator that holds the releases instead of a directory, and the home's name.
    """
    with ExitStack() as stack:

        def make(table: Mapping[str, Any], simulator: StorageSimulator | None = None, name: str = "home") -> Scene:
            home = tmp_path / name
            bucket = five_releases / "supabase" / "models"
            home.mkdir()
            copy_sqlite(five_releases / "mlflow.db", home / "mlflow.db")
            environ: dict[str, str] = {}
            if simulator is None:
                shutil.copytree(bucket, home / "supabase" / "models")
            else:
                environ = supabase_environment(simulator)
                for path in bucket.rglob("*"):
                    if path.is_file():
                        simulator.put_object("models", path.relative_to(bucket).as_posix(), path.read_bytes())
            lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
            artifacts = f"artifacts_destination = {json.dumps(str(five_releases / 'artifacts'))}"
            (home / FILE_NAME).write_text("\n".join([artifacts, "[retention]" if table else "", *lines]))
            settings = Settings.load(home=home, environ=environ)
            client = registry_client(settings)
            scene = Scene(settings=settings, runtime=stack.enter_context(open_runtime(settings)), client=client)
            scene.trained = 5
            return scene

        yield make


def release_five(scene: Scene, count: int = 5) -> Scene:
    """Release versions, each promoted in turn: the last is current, two before it are previous, the others may go."""
    for _ in range(count):
        scene.promote(scene.train(metrics={"auc": 0.5 + scene.trained / 100}), archive=True)
        scene.work()
    return scene


def paths_of(scene: Scene, version: int) -> ReleasePaths:
    return ReleasePaths(model_key=MODEL, run_id=RunId.parse(scene.tags(version)["run_id"]))


def plan(scene: Scene, model: str | None = None) -> dict[int | str, PlannedRelease]:
    """Return the plan by version, and releases without one by run_id."""
    found = planner(scene.runtime).plan(now=scene.runtime.outbox.now(), model=model)
    releases = [release for item in found if isinstance(item, list) for release in item]
    return {
        str(release.paths.run_id) if release.version is None else release.version.version: release
        for release in releases
    }


def going(scene: Scene) -> list[int | str]:
    return [version for version, release in plan(scene).items() if release.goes]


def run(
    scene: Scene, model: str | None = None, *, over: Callable[[ObjectStore], ObjectStore] = lambda store: store
) -> Sequence[RemovalResult]:
    """Carry retention out.

    Args:
        over: Makes the store that the run uses from the real one.
    """
    with open_remover(scene.runtime) as remover:
        stores = lambda bucket: over(scene.runtime.stores(bucket))  # noqa: E731
        changed = replace(remover, open_store=stores, planner=replace(remover.planner, open_store=stores))
        return list(changed.run(model=model))


def removed_names(scene: Scene, version: int) -> set[str]:
    """Return the names of the files in the folder of a release."""
    prefix = paths_of(scene, version).prefix
    return {key.removeprefix(prefix) for key in scene.objects(prefix)}


def is_complete(scene: Scene, version: int) -> bool:
    return META_NAME in removed_names(scene, version)
