"""Scenes with criteria: a settings file that has some lines, and metrics on either side of the bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from supabase_bridge.config import FILE_NAME, Settings
from tests.registry_fixtures import MakeScene, Scene

RECALL = '[gates.two_tower]\ncriteria = ["recall@20 >= 0.65"]\n'
PASSES, FAILS = {"recall_at_20": 0.70}, {"recall_at_20": 0.61}

SceneWith: TypeAlias = Callable[[str], Scene]


@pytest.fixture
def scene_with(make_scene: MakeScene, directory_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> SceneWith:
    """A scene whose settings file has some lines: MLflow's plugin reads them by itself, as in a server."""

    def make(toml: str) -> Scene:
        home = directory_settings.home
        home.mkdir(parents=True)
        (home / FILE_NAME).write_text(toml)
        monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(home))
        return make_scene(Settings.load(home=home, environ={}))

    return make
