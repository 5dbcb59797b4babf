"""What a person at a terminal sees of an upload, and what a log file does not."""

from __future__ import annotations

import os
import pty
import subprocess
from contextlib import suppress

import pytest

from tests.support.commands import EXECUTABLE, clean_environment
from tests.support.scene import MODEL, Scene


def _stderr_at_a_terminal(scene: Scene, version: int) -> str:
    """What `mirror` writes to a stderr that is a terminal."""
    ours, theirs = pty.openpty()
    command = [str(EXECUTABLE), "mirror", MODEL, str(version), "--home", str(scene.settings.home)]
    environment = clean_environment(scene.settings.home, {"TERM": "xterm"})
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        with suppress(OSError):  # Linux says so when the other side has closed.
            while piece := os.read(ours, 65_536):
                seen += piece
        os.close(ours)
    assert process.returncode == 0, seen.decode()
    return seen.decode()


@pytest.mark.exhaustive
def test_a_person_at_a_terminal_sees_how_far_an_upload_is(directory_scene: Scene) -> None:
    version = directory_scene.train()
    seen = _stderr_at_a_terminal(directory_scene, version)
    assert "uploading" in seen
    assert "100%" in seen


@pytest.mark.exhaustive
def test_a_release_that_is_there_already_shows_no_progress(directory_scene: Scene) -> None:
    version = directory_scene.train()
    directory_scene.work()
    assert "uploading" not in _stderr_at_a_terminal(directory_scene, version)


@pytest.mark.exhaustive
def test_a_log_file_shows_no_progress(directory_scene: Scene) -> None:
    version = directory_scene.train()
    command = [str(EXECUTABLE), "mirror", MODEL, str(version), "--home", str(directory_scene.settings.home)]
    environment = clean_environment(directory_scene.settings.home)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
    assert "uploading" not in done.stderr
