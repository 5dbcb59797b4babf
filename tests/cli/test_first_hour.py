"""init, wait, activate --dry-run, the colours of status, and "did you mean"."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from supabase_bridge.settings.model import FILE_NAME, Settings
from tests.support.commands import invoke
from tests.support.scene import MODEL, Scene, files_below, supabase_environment
from tests.support.simulators.storage import StorageSimulator

RUN_ID = "20251031T093831Z"


def test_init_writes_a_file_that_is_read_and_prints_the_next_two_commands(tmp_path: Path) -> None:
    home = tmp_path / "home"
    said = invoke("init", "--home", home, environment={"SUPABASE_URL": "https://abc.supabase.co"})
    assert said.code == 0
    assert said.out == f"supabase-bridge doctor --home {home}\nsupabase-bridge server --home {home}\n"
    settings = Settings.load(home=home, environ={}, reading=True)
    assert settings.supabase_url == "https://abc.supabase.co"
    assert dict(settings.aliases) == {"champion": "latest", "challenger": "staging"}


def test_init_finds_mlflows_default_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").touch()
    assert invoke("init", "--home", tmp_path / "home").code == 0
    assert Settings.load(home=tmp_path / "home", environ={}).database_url == f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_init_writes_no_password(tmp_path: Path) -> None:
    url = "postgresql+psycopg://mlflow:hunter2@db/mlflow"
    assert invoke("init", "--home", tmp_path, environment={"MLFLOW_BACKEND_STORE_URI": url}).code == 0
    assert "hunter2" not in (tmp_path / FILE_NAME).read_text()


def test_init_does_not_change_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('bucket = "mine"\n')
    said = invoke("init", "--home", tmp_path)
    assert (said.code, "exists already" in said.error) == (2, True)
    assert (tmp_path / FILE_NAME).read_text() == 'bucket = "mine"\n'


def test_wait_ends_when_the_version_is_mirrored_and_not_active_yet(directory_scene: Scene) -> None:
    version = directory_scene.train()
    home = directory_scene.settings.home
    early = invoke("wait", MODEL, version, "--timeout", 0, "--home", home)
    assert (early.code, early.out) == (3, "")
    directory_scene.work()
    said = invoke("wait", MODEL, version, "--timeout", 0, "--home", home)
    assert (said.code, said.out) == (0, f"{RUN_ID}\n")
    assert invoke("wait", MODEL, version, "--for", "active", "--timeout", 0, "--home", home).code == 3
    directory_scene.promote(version)
    directory_scene.work()
    assert invoke("wait", MODEL, version, "--for", "active", "--timeout", 0, "--home", home).code == 0


def test_wait_fails_at_once_for_a_version_that_failed_or_does_not_exist(directory_scene: Scene) -> None:
    version = directory_scene.register(directory_scene.log_run(files={"notes.txt": b""}))
    directory_scene.work()
    said = invoke("wait", MODEL, version, "--home", directory_scene.settings.home)
    assert said.code == 1
    assert "has no ONNX file" in said.error
    assert invoke("wait", MODEL, 9, "--home", directory_scene.settings.home).code == 1


def test_a_dry_run_of_activate_prints_the_next_manifest_and_writes_nothing(directory_scene: Scene) -> None:
    directory_scene.train()
    directory_scene.work()
    home = directory_scene.settings.home
    before = files_below(home / "supabase")
    said = invoke("activate", MODEL, RUN_ID, "--dry-run", "--home", home)
    assert said.code == 0
    planned = json.loads(said.out)
    assert (planned["current"]["run_id"], planned["sequence"]) == (RUN_ID, 1)
    assert files_below(home / "supabase") == before
    assert invoke("activate", MODEL, RUN_ID, "--home", home).code == 0
    head = directory_scene.head()
    assert head is not None
    written = head.to_object()
    assert planned.keys() == written.keys()
    again = invoke("activate", MODEL, RUN_ID, "--dry-run", "--home", home)
    assert (again.code, again.out, "nothing would change" in again.err) == (0, "", True)


def test_status_shows_first_and_in_red_what_needs_a_person(
    directory_scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    directory_scene.train()
    directory_scene.register(directory_scene.log_run(files={"notes.txt": b""}))
    directory_scene.work()
    home = directory_scene.settings.home
    lines = invoke("status", "--home", home, color=True).out.splitlines()
    assert lines[1].startswith("\x1b[31m  v2")
    assert "\x1b" not in lines[2]
    assert "\x1b" not in invoke("status", "--home", home, color=True, environment={"NO_COLOR": "1"}).out
    failing = invoke("status", "--failing", "--home", home)
    assert "v2" in failing.out
    assert "v1" not in failing.out


def test_a_misspelt_command_or_setting_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    said = invoke("statsu")
    assert (said.code, "Did you mean 'status'?" in said.err) == (2, True)
    (tmp_path / FILE_NAME).write_text('buckett = "models"\n')
    assert "did you mean bucket?" in invoke("outbox", "list", "--home", tmp_path).err


def test_a_secret_in_the_file_is_told_where_it_belongs(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('SUPABASE_SECRET_KEY = "sb_secret_x"\n')
    said = invoke("outbox", "list", "--home", tmp_path)
    assert "set SUPABASE_SECRET_KEY in the environment" in said.err
    assert "sb_secret_x" not in said.err


def test_the_start_of_a_worker_names_an_ignored_legacy_key_once(
    supabase_scene: Scene, simulator: StorageSimulator
) -> None:
    environment = {**supabase_environment(simulator), "SUPABASE_SERVICE_ROLE_KEY": "of.another.project"}
    said = invoke("worker", "--once", "--home", supabase_scene.settings.home, environment=environment)
    assert said.code == 0
    line = "keys:     SUPABASE_SERVICE_ROLE_KEY is ignored, because SUPABASE_SECRET_KEY is set too"
    assert said.err.splitlines().count(line) == said.err.count("SUPABASE_SERVICE_ROLE_KEY") == 1
