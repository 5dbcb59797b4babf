"""Bad input gets one clear line, exit code 2 for wrong use and 1 for a failure, and leaves nothing half-written."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from supabase_bridge.app.runtime import open_runtime
from supabase_bridge.settings.model import Settings
from tests.support.commands import execute, invoke
from tests.support.machine import free_port
from tests.support.scene import (
    MODEL,
    Scene,
    files_below,
    fill_home,
    registry_client,
    supabase_environment,
    tiny_onnx,
)
from tests.support.simulators.storage import Fault, Respond, StorageSimulator

RUN_ID = "20251031T093831Z"
WRONG_KEY = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.not-this-projects"


@pytest.fixture(scope="module")
def partly_released(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Version 1 is released; 2 has no ONNX file, 3 a corrupt one. Made once: no test changes it."""
    settings = Settings.load(home=tmp_path_factory.mktemp("released"), environ={})
    fill_home(settings, empty_database)
    with open_runtime(settings) as made:
        scene = Scene(settings=settings, runtime=made, client=registry_client(settings))
        scene.promote(scene.train())
        scene.train(files={"notes.txt": b""})
        scene.train(files={"model/model.onnx": tiny_onnx()[:-20]})
        scene.work()
        yield scene


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["mirror", "nobody", "1"], 1, "Error: registered model 'nobody' has no version 1"),
        (["status", "nobody"], 1, "Error: MLflow has no registered model 'nobody'"),
        (["rollback", "nobody"], 1, "Error: MLflow has no registered model 'nobody'"),
        (["activate", "nobody", RUN_ID], 1, "Error: nobody has no complete release 20251031T093831Z"),
        (["mirror", MODEL, "99"], 1, "Error: registered model 'two_tower' has no version 99"),
        (["mirror", MODEL, "2"], 1, "Error: two_tower version 2 has no ONNX file.* log it with "),
        (["mirror", MODEL, "3"], 1, "Error: model.onnx is not a valid ONNX model: "),
        (["mirror", MODEL, "0"], 2, "Error: Invalid value for 'VERSION': 0 is not in the range"),
        (["mirror", MODEL, "one"], 2, "Error: Invalid value for 'VERSION': 'one' is not a valid integer"),
        (["mirror", MODEL], 2, "Error: Missing argument 'VERSION'"),
        (["activate", MODEL, "2025-10-31"], 2, "Error: '2025-10-31' is not a run_id: expected the UTC time"),
        (["activate", MODEL, "20251331T093831Z"], 2, "Error: '20251331T093831Z' is not a run_id"),
        (["activate", MODEL, "20200101T000000Z"], 1, "Error: two_tower has no complete release 20200101T000000Z"),
        (["activate", "../two_tower", RUN_ID], 2, "Error: model '../two_tower' cannot be a folder"),
        (["activate", MODEL, RUN_ID, "--channel", "Latest"], 2, "Error: 'Latest' cannot be a channel"),
        (["rollback", MODEL], 1, "Error: two_tower/latest has no earlier release to roll back to"),
        (["rollback", MODEL, "--to", "yesterday"], 2, "Error: 'yesterday' is not a run_id"),
        (["rollback", MODEL, "--to", "20200101T000000Z"], 1, "Error: two_tower has no complete release"),
        (["rollback", MODEL, "--to", RUN_ID, "--channel", "canary"], 2, "Error: --channel: no stage and no alias"),
        (["rollback", MODEL, "--without-mlflow"], 1, "Error: two_tower/latest has no earlier release"),
        (["outbox", "retry", "999"], 1, "Error: the outbox has no event 999 that is dead or waiting"),
        (["outbox", "retry", "1"], 1, "Error: the outbox has no event 1 that is dead or waiting"),
        (["outbox", "discard", "0"], 2, "Error: Invalid value for 'EVENT_ID'"),
        (["outbox", "list", "--state", "lost"], 2, "Error: Invalid value for '--state'"),
        (["promote"], 2, "Error: No such command 'promote'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_gets_one_line_and_changes_nothing(
    partly_released: Scene, arguments: Sequence[str], code: int, line: str
) -> None:
    home = partly_released.settings.home
    before = partly_released.objects(), partly_released.events()
    # A command that does not exist takes no --home.
    said = invoke(*arguments, *(() if arguments == ["promote"] else ("--home", home)))
    assert re.match(line, said.error)
    assert said.code == code
    assert (partly_released.objects(), partly_released.events()) == before
    assert files_below(home / "supabase" / "models" / "_tmp") == {}


@pytest.mark.exhaustive
def test_the_executable_fails_the_same_way(partly_released: Scene) -> None:
    said = execute("mirror", MODEL, 3, "--home", partly_released.settings.home, directory=partly_released.settings.home)
    assert said.error.startswith("Error: model.onnx is not a valid ONNX model: ")
    assert said.code == 1


def test_verbose_shows_the_traceback_too(partly_released: Scene) -> None:
    said = invoke("-v", "mirror", MODEL, 99, "--home", partly_released.settings.home)
    assert "Traceback" in said.err
    assert said.err.splitlines()[-1] == "Error: registered model 'two_tower' has no version 99"


# --- Supabase ---------------------------------------------------------------------------------------------------------


def test_a_bucket_that_cannot_be_created_is_said_in_one_line(
    supabase_scene: Scene, simulator: StorageSimulator
) -> None:
    simulator.inject(
        Fault(
            action=Respond(400, b'{"statusCode":"403","error":"Unauthorized","message":"new row violates policy"}'),
            method="POST",
            path_contains="/bucket",
        )
    )
    version = supabase_scene.train()
    environment = supabase_environment(simulator)
    said = invoke("mirror", MODEL, version, "--home", supabase_scene.settings.home, environment=environment)
    assert "creating the bucket was refused (" in said.error
    assert said.code == 1
    assert simulator.buckets() == []


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["mirror", MODEL, "1"], "check SUPABASE_SECRET_KEY, it must be a secret key of this project"),
        (["rollback", MODEL], "check SUPABASE_SECRET_KEY, it must be a secret key of this project"),
        (["status"], "check SUPABASE_SECRET_KEY, it must be a secret key of this project"),
        # To whom reads an object with a key of another project, Supabase says that there is no such bucket.
        (["activate", MODEL, RUN_ID], "no bucket 'models': create it in Supabase, or check that the key belongs to"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_key_is_refused_and_not_shown(
    supabase_scene: Scene, simulator: StorageSimulator, arguments: Sequence[str], advice: str
) -> None:
    supabase_scene.promote(supabase_scene.train())
    supabase_scene.work()
    before = supabase_scene.objects(), supabase_scene.events()
    environment = {"SUPABASE_URL": simulator.url, "SUPABASE_SECRET_KEY": WRONG_KEY}
    said = invoke(*arguments, "--home", supabase_scene.settings.home, environment=environment)
    assert advice in said.error
    assert said.code == 1
    verbose = invoke("-v", *arguments, "--home", supabase_scene.settings.home, environment=environment)
    assert WRONG_KEY not in said.err + verbose.out + verbose.err
    assert (supabase_scene.objects(), supabase_scene.events()) == before


@pytest.mark.parametrize("arguments", [["mirror", MODEL, "1"], ["activate", MODEL, RUN_ID]], ids=" ".join)
def test_supabase_being_down_is_said_in_one_line(directory_scene: Scene, arguments: Sequence[str]) -> None:
    directory_scene.train()
    environment = {"SUPABASE_URL": nobody_listens(), "SUPABASE_SECRET_KEY": WRONG_KEY}
    before = directory_scene.events()
    said = invoke(*arguments, "--home", directory_scene.settings.home, environment=environment)
    assert re.search(r"Supabase 127\.0\.0\.1:\d+ bucket models: .* did not succeed: .* may be tried again", said.error)
    assert (said.code, directory_scene.events()) == (1, before)
    assert directory_scene.objects() == {}


def nobody_listens() -> str:
    return f"http://127.0.0.1:{free_port()}"


# --- the database -----------------------------------------------------------------------------------------------------

NEED_A_DATABASE = [
    ["worker", "--once"],
    ["mirror", MODEL, "1"],
    ["rollback", MODEL],
    ["status"],
    ["outbox", "list"],
    ["outbox", "retry", "1"],
]


@pytest.mark.parametrize("arguments", NEED_A_DATABASE, ids=" ".join)
def test_a_database_that_is_not_there_is_not_made(tmp_path: Path, arguments: Sequence[str]) -> None:
    said = invoke(*arguments, "--home", tmp_path / "home")
    assert re.match(r"Error: sqlite:////.*/home/mlflow\.db is not an MLflow database", said.error)
    assert said.code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", NEED_A_DATABASE, ids=" ".join)
def test_a_database_that_is_not_mlflows_is_left_alone(tmp_path: Path, arguments: Sequence[str]) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("CREATE TABLE shop (id INTEGER)")
    before = files_below(tmp_path)
    said = invoke(*arguments, "--home", tmp_path)
    assert "is not an MLflow database (it has no table registered_models)" in said.error
    assert said.code == 1
    assert files_below(tmp_path) == before


def test_a_file_that_is_no_database_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database, but long enough to look at" * 100)
    said = invoke("status", "--home", tmp_path)
    assert said.error == "Error: MLflow could not open its database: file is not a database"
    assert said.code == 1


@pytest.mark.parametrize("command", [["worker"], ["mirror", MODEL, "1"], ["server"], ["status"]], ids=" ".join)
def test_a_database_without_our_plugin_is_refused(tmp_path: Path, command: Sequence[str]) -> None:
    environment = {"SUPABASE_BRIDGE_DATABASE_URL": "postgresql+asyncpg://sa:hunter2@localhost/mlflow"}
    said = invoke(*command, "--home", tmp_path / "home", environment=environment)
    assert said.error.startswith(
        "Error: MLflow has no registry store for supabase+postgresql+asyncpg:// in this environment"
    )
    assert "hunter2" not in said.err
    assert said.code == 1
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("nonsense", "expected <kind of database>://"),
        ("sqlite", "expected <kind of database>://"),
        ("oracle+nobody://u:hunter2@h/d", "'oracle' is not supported"),
        ("postgresql+asyncnothing://u:hunter2@h/d", "SQLAlchemy cannot use this database URL here"),
    ],
)
def test_a_database_url_that_cannot_be_used_is_said_without_its_password(
    tmp_path: Path, url: str, problem: str
) -> None:
    said = invoke("outbox", "list", "--home", tmp_path, environment={"SUPABASE_BRIDGE_DATABASE_URL": url})
    assert said.error.startswith(f"Error: SUPABASE_BRIDGE_DATABASE_URL: {problem}")
    assert "hunter2" not in said.err
    assert said.code == 2


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("bucket = ", "cannot be read: "),
        ("buckets = 'models'", "buckets: no such setting; did you mean bucket"),
        ("service_key = 'secret-in-a-file'", "service_key: a secret must not be in a file"),
        ("lease = 'long'", "lease: expected a number of seconds"),
        ("allowed_sources = 's3://'", "allowed_sources: expected a list of texts"),
        ("[channels.stages]\nProd = 'latest'", "Prod: no MLflow stage; there are None, Staging, Production, Archived"),
        ("[channels.aliases]\nchampion = 'No Channel'", "'No Channel' cannot be a channel"),
    ],
)
@pytest.mark.parametrize("command", [["status"], ["worker", "--once"], ["server"], ["outbox", "list"]], ids=" ".join)
def test_a_malformed_settings_file_is_wrong_use(
    tmp_path: Path, text: str, problem: str, command: Sequence[str]
) -> None:
    (tmp_path / "supabase-bridge.toml").write_text(text)
    said = invoke(*command, "--home", tmp_path)
    assert problem in said.error
    assert "secret-in-a-file" not in said.err
    assert said.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["supabase-bridge.toml"]


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"SUPABASE_URL": "https://project.supabase.co"}, "SUPABASE_SECRET_KEY: missing"),
        ({"SUPABASE_SECRET_KEY": WRONG_KEY}, "SUPABASE_URL: missing"),
        ({"SUPABASE_URL": "project", "SUPABASE_SECRET_KEY": WRONG_KEY}, "SUPABASE_URL: expected https://"),
        ({"SUPABASE_BRIDGE_CONFIG": "/nowhere.toml"}, "SUPABASE_BRIDGE_CONFIG: /nowhere.toml does not exist"),
    ],
)
def test_settings_that_contradict_each_other_are_wrong_use(
    tmp_path: Path, environment: dict[str, str], problem: str
) -> None:
    said = invoke("status", "--home", tmp_path / "home", environment=environment)
    assert said.error.startswith(f"Error: {problem}")
    assert WRONG_KEY not in said.err
    assert said.code == 2


def test_a_version_whose_source_is_not_allowed_is_refused(directory_scene: Scene, tmp_path: Path) -> None:
    scene = directory_scene
    (tmp_path / "model.onnx").write_bytes(tiny_onnx())
    version = scene.register(scene.log_run(files={"notes.txt": b""}), source=str(tmp_path))
    said = invoke("mirror", MODEL, version, "--home", scene.settings.home)
    assert "is not read: it is outside the allowed roots" in said.error
    assert said.code == 1
    assert scene.objects() == {}


_WITHOUT = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None
from supabase_bridge.cli import main
main()
"""


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("mlflow", ["demo"], "mlflow"),
        ("mlflow", ["status"], "mlflow"),
        ("mlflow", ["server"], "mlflow"),
        ("sqlalchemy", ["outbox", "list"], "mlflow"),
    ],
)
def test_a_command_without_its_extra_names_it(tmp_path: Path, missing: str, arguments: list[str], extra: str) -> None:
    command = [sys.executable, "-c", _WITHOUT, missing, *arguments, "--home", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert ended.returncode == 1
    assert f"pip install 'mlflow-supabase-bridge[{extra}]'" in ended.stderr
    assert "unexpected" not in ended.stderr
