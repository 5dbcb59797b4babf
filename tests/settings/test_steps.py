"""The settings of steps."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from supabase_bridge.core.errors import SettingsError
from supabase_bridge.settings.model import Settings
from supabase_bridge.settings.steps import StepSettings


def load(home: Path, text: str) -> Settings:
    (home / "supabase-bridge.toml").write_text(text)
    return Settings.load(home=home, environ={})


def test_the_steps_of_a_model_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "[steps.two_tower.warm]\ncall = 'ours.steps:warm'\n"
        "[steps.two_tower.embeddings]\nrun = ['load', '--all']\ncheck = ['check']\nchannels = ['latest']\n"
        "timeout = 1.5\nenvironment = ['FEATURES', 'SUPABASE_BRIDGE_EMBEDDINGS_URL']\n",
    )
    warm = StepSettings(name="warm", call="ours.steps:warm")
    embeddings = StepSettings(
        name="embeddings",
        command=("load", "--all"),
        check=("check",),
        channels=("latest",),
        timeout=timedelta(seconds=1.5),
        environment=("FEATURES", "SUPABASE_BRIDGE_EMBEDDINGS_URL"),
    )
    assert settings.steps_of("two_tower", "two_tower", "latest") == (warm, embeddings)
    assert settings.steps_of("Renamed", "two_tower", "staging") == (warm,)
    assert settings.steps_of(None, "two_tower", "staging") == (warm,)
    assert settings.steps_of("ranker", "ranker", "latest") == ()
    assert settings.with_changes(bucket="other").steps == settings.steps


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("steps = 1", r"\[steps\]: expected a table for each step"),
        ("[steps]\ntwo_tower = 1", r"\[steps.two_tower\]: expected a table for each step"),
        ("[steps.m.s]", r"\[steps.m.s\]: expected either run \(a command\) or call"),
        ("[steps.m.s]\nrun = ['x']\ncall = 'a:b'", "expected either run"),
        ("[steps.m.s]\nrun = 'x y'", r"\[steps.m.s\] run: expected a list of texts"),
        ("[steps.m.s]\nrun = []", "run: expected a program and its arguments, found nothing"),
        ("[steps.m.s]\ncall = 'a.b'", 'call: expected "package.module:function"'),
        ("[steps.m.s]\nrun = ['x']\ntimeout = 0", "timeout: expected a number of seconds from 1 to 604800"),
        ("[steps.m.s]\nrun = ['x']\nbefore = ['latest']", "before: no such field; there are call, channels"),
        ("[steps.m.s]\nrun = ['x']\nchannels = ['Latest']", "'Latest' cannot be a channel"),
        ("[steps.m.S]\nrun = ['x']", "a step's name has lower-case letters"),
        *(
            (f"[steps.m.s]\nrun = ['x']\nenvironment = ['{name}']", f"no step gets {name}")
            for name in (
                "SUPABASE_SERVICE_ROLE_KEY",
                "SUPABASE_SECRET_KEY",
                "SUPABASE_BRIDGE_SIGNING_KEY",
                "SUPABASE_BRIDGE_DIGEST_KEY",
            )
        ),
    ],
)
def test_a_malformed_step_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(Exception, match=problem) as raised:
        load(tmp_path, text)
    assert type(raised.value).__module__ == SettingsError.__module__
