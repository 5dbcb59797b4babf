"""Scenes with a gate: a settings file, and metrics on both sides of the threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from supabase_bridge.settings.model import FILE_NAME, Settings
from tests.support.scene import MakeScene, Scene

RECALL = '[gates.two_tower]\ncriteria = ["recall@20 >= 0.65"]\n'
PASSES, FAILS = {"recall_at_20": 0.70}, {"recall_at_20": 0.61}

SceneWith: TypeAlias = Callable[[str], Scene]


@pytest.fixture
def scene_with(make_scene: MakeScene, directory_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> SceneWith:
    """Make a scene with these lines in its settings file, which MLflow's plugin reads as in a server."""

    def make(toml: str) -> Scene:
        home = directory_settings.home
        home.mkdir(parents=True)
        (home / FILE_NAME).write_text(toml)
        monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(home))
        return make_scene(Settings.load(home=home, environ={}))

    return make
