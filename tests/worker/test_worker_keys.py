"""Several secret keys, one for each component, and their replacement while a worker and a trainer are at work."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from supabase_bridge.core.events import EventState
from supabase_bridge.settings.model import Settings
from tests.support.project_artifacts import settings_in_project, train_in_project
from tests.support.scene import BUCKET, MODEL, MakeScene, Scene
from tests.support.served import until
from tests.support.simulators.storage import StorageSimulator
from tests.support.worker_scenes import LIMIT_SECONDS, working

WEIGHTS = "two_tower_latest.pt"


def downloads_of_weights(simulator: StorageSimulator) -> list[str]:
    whole = [call.path for call in simulator.calls() if call.method == "GET" and call.status == 200]
    return [path for path in whole if path.endswith(WEIGHTS) and "/info/" not in path]


@pytest.mark.exhaustive
def test_keys_are_replaced_one_by_one_while_everything_runs_and_digests_stay_trusted(
    make_scene: MakeScene,
    supabase_settings: Settings,
    simulator: StorageSimulator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The trainer's server has one key, each worker its own; two are replaced, and the old ones deleted."""
    settings = settings_in_project(supabase_settings, simulator, monkeypatch)
    gateway = simulator.gateway

    def worker() -> tuple[Scene, str]:
        key = gateway.create_secret_key()
        return make_scene(settings.with_changes(service_key=SecretStr(key))), key

    def set_key_of_server() -> str:
        key = gateway.create_secret_key()
        monkeypatch.setenv("SUPABASE_SECRET_KEY", key)
        return key

    def promote(scene: Scene) -> int:
        """Train and promote a version, and wait until a worker has made it current, without reading its weights."""
        version = train_in_project(scene, tmp_path)
        simulator.reset_calls()
        scene.promote(version)

        def is_done() -> bool:
            return all(event.state is EventState.DONE for event in scene.events())

        until(is_done, "the promotion", limit_seconds=LIMIT_SECONDS)
        assert downloads_of_weights(simulator) == []
        return version

    (first, first_key), (second, _) = worker(), worker()
    server_key = set_key_of_server()
    with working(second):
        with working(first):
            assert promote(first) == second.current()
        replaced, _ = worker()
        with working(replaced):
            gateway.delete_key(first_key)
            set_key_of_server()
            gateway.delete_key(server_key)
            assert promote(first) == second.current()
    assert sum(key.endswith(".pt") for key in simulator.object_keys(BUCKET, f"{MODEL}/")) == 2
