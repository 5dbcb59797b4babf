"""Steps that load embedding sets, in a worker: the pointer never names a release whose set is not ready."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from supabase_bridge.app.runtime import open_runtime
from supabase_bridge.embeddings.errors import EmbeddingSetNotReadyError
from supabase_bridge.embeddings.sets import EmbeddingSets
from supabase_bridge.settings.model import Settings
from supabase_bridge.settings.steps import StepSettings
from tests.support.embedding_sets import WIDTH, rows
from tests.support.scene import MODEL, MakeScene, Scene

VARIABLE = "SUPABASE_BRIDGE_EMBEDDINGS_URL"
COMMAND = (sys.executable, "-m", "supabase_bridge.cli", "embeddings")
KILLED_LOADER = """
import os, sys
from pathlib import Path
from supabase_bridge.embeddings.sets import EmbeddingSets
from tests.embeddings import killed_loader
from tests.support.embedding_sets import release
from dataclasses import replace
fatal = Path(sys.argv[1])
step = int(fatal.read_text())
fatal.write_text("10000")
name, digest = os.environ["SUPABASE_BRIDGE_RUN_ID"], os.environ["SUPABASE_BRIDGE_ONNX_SHA256"]
found = release(1)
record = next(iter(found.files.values())).model_copy(update={"sha256": digest})
named = replace(found, run_id=name, files={f"two_tower_{name}.onnx": record})
killed_loader.release = lambda _: named
killed_loader.load(os.environ["SUPABASE_BRIDGE_EMBEDDINGS_URL"], step)
"""
"""Load a set, and be killed at the step that a file names; the next attempt is not."""


@pytest.fixture
def step(tmp_path: Path, embeddings_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StepSettings]:
    """A step with the check `embeddings check`; by default it loads a set by the command of the product."""
    monkeypatch.setenv(VARIABLE, embeddings_url)
    files = []
    for kind, count in (("items", 40), ("users", 6)):
        found = rows(count, prefix=kind[:-1])
        np.savez(tmp_path / f"{kind}.npz", ids=np.array(found.ids), embeddings=found.matrix)
        files += [f"--{kind}", str(tmp_path / f"{kind}.npz")]

    def make(*command: str, **more: object) -> StepSettings:
        run = command or (*COMMAND, "load", *files)
        variables = (VARIABLE, "PYTHONPATH")
        return StepSettings(name="load", command=run, check=(*COMMAND, "check"), environment=variables, **more)  # type: ignore[arg-type]

    return make


Step = Callable[..., StepSettings]


def promoted(scene: Scene, *stages: str) -> tuple[int, str]:
    """A mirrored version, promoted into stages; its number and run_id."""
    version = scene.train()
    scene.work()
    for stage in stages:
        scene.promote(version, stage)
    return version, scene.tags(version)["run_id"]


def test_a_step_that_ends_with_0_without_a_set_moves_no_pointer(
    make_scene: MakeScene, directory_settings: Settings, step: Step, sets: EmbeddingSets
) -> None:
    scene = make_scene(directory_settings, steps={MODEL: (step("/bin/true"),)})
    version, run_id = promoted(scene, "Production")
    scene.work()
    assert (scene.current(), sets.list()) == (None, [])
    tags = scene.tags(version)
    assert (tags["status"], "it ended with 0, but its check failed" in tags["error"]) == ("retrying", True)
    assert f"{MODEL}/{run_id}: it has no set" in tags["error"]
    with pytest.raises(EmbeddingSetNotReadyError):
        sets.match_items(MODEL, run_id, [1.0] + [0.0] * (WIDTH - 1))


def test_a_step_that_hangs_moves_no_pointer(make_scene: MakeScene, directory_settings: Settings) -> None:
    hangs = StepSettings(name="load", command=("/bin/sleep", "600"), timeout=timedelta(seconds=0.5))
    scene = make_scene(directory_settings, steps={MODEL: (hangs,)})
    version, _ = promoted(scene, "Production")
    scene.work()
    assert scene.current() is None
    tags = scene.tags(version)
    assert (tags["status"], tags["error"].endswith("failed: it did not end within 0.5 seconds")) == ("retrying", True)


@pytest.mark.exhaustive
def test_two_workers_load_the_set_of_one_release_once_and_move_both_pointers(
    make_scene: MakeScene, directory_settings: Settings, step: Step, sets: EmbeddingSets
) -> None:
    scene = make_scene(directory_settings, steps={MODEL: (step(),)})
    version, run_id = promoted(scene, "Production")
    # Each channel has a worker of its own, which needs the same step at the same moment.
    scene.client.set_registered_model_alias(MODEL, "challenger", str(version))

    def work() -> None:
        with open_runtime(scene.settings) as runtime:
            runtime.worker().drain()

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    scene.work_later()
    assert (scene.current(), scene.current("staging")) == (version, version)
    (found,) = sets.list()
    assert (found.run_id, found.state, found.item_count, found.user_count) == (run_id, "ready", 40, 6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fatal", [20, 44])
def test_a_step_that_is_killed_while_it_loads_is_completed_by_the_next_attempt(
    fatal: int,
    make_scene: MakeScene,
    directory_settings: Settings,
    step: Step,
    sets: EmbeddingSets,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (tmp_path / "fatal").write_text(str(fatal))
    killed = step(sys.executable, "-c", KILLED_LOADER, str(tmp_path / "fatal"))
    scene = make_scene(directory_settings, steps={MODEL: (killed,)})
    version, run_id = promoted(scene, "Production")
    scene.work()
    assert "it ended with 137" in scene.tags(version)["error"]
    assert scene.current() is None
    scene.work_later()
    assert scene.current() == version
    (found,) = sets.list()
    assert (found.run_id, found.state, found.item_count, found.user_count) == (run_id, "ready", 200, 20)
