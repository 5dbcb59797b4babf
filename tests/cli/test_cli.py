"""What each command prints and does, as an executable and within this process."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

import click
import pytest

from supabase_bridge.cli import main
from supabase_bridge.core.events import EventState
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.settings.model import Settings
from tests.support.commands import Said, clean_environment, execute, invoke
from tests.support.scene import MODEL, MakeScene, Scene, supabase_environment, tiny_onnx
from tests.support.simulators.storage import StorageSimulator

RUN_ID = "20251031T093831Z"
SECOND_RUN_ID = "20251031T093931Z"
MANIFEST = ChannelPaths(model_key=MODEL, channel="latest").manifest
COMMANDS = [
    ("demo",),
    ("init",),
    ("doctor",),
    ("wait",),
    ("server",),
    ("worker",),
    ("mirror",),
    ("remake",),
    ("activate",),
    ("adopt",),
    ("freeze",),
    ("thaw",),
    ("rollback",),
    ("status",),
    ("history",),
    ("diff",),
    ("consumers",),
    ("announcements", "list"),
    ("announcements", "retry"),
    ("announcements", "discard"),
    ("announcements", "test"),
    ("keys", "generate"),
    ("keys", "list"),
    ("keys", "sign-manifest"),
    ("keys", "sign-release"),
    ("pull",),
    ("watch",),
    ("verify",),
    ("look",),
    ("sync",),
    ("watch-registry",),
    ("outbox", "list"),
    ("outbox", "retry"),
    ("outbox", "discard"),
    ("embeddings", "init"),
    ("embeddings", "load"),
    ("embeddings", "list"),
    ("embeddings", "check"),
    ("embeddings", "drop"),
    ("retention", "plan"),
    ("retention", "run"),
    ("retention", "restore"),
]


def run_command(scene: Scene, *arguments: object) -> Said:
    """The executable on a scene's home; what it says of the store is on stderr."""
    return execute(*arguments, "--home", scene.settings.home, directory=scene.settings.home)


@pytest.fixture
def released(directory_scene: Scene) -> Scene:
    """Two versions, released one after the other."""
    for _ in range(2):
        directory_scene.promote(directory_scene.train(metrics={"auc": 0.5}), archive=True)
        directory_scene.work()
    return directory_scene


def current(scene: Scene) -> str:
    head = scene.head()
    assert head is not None
    return head.current.run_id


# --- help -------------------------------------------------------------------------------------------------------------


def test_every_command_is_tested_here() -> None:
    context = click.Context(main)
    found: set[tuple[str, ...]] = set()
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        inner = command.list_commands(context) if isinstance(command, click.Group) else []
        found |= {(name, one) for one in inner} or {(name,)}
    assert found == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_has_an_example(command: tuple[str, ...]) -> None:
    said = invoke(*command, "--help")
    assert (said.code, said.err) == (0, "")
    assert f"Example:  supabase-bridge {' '.join(command)}" in said.out


def test_help_names_every_command_and_something_to_try(tmp_path: Path) -> None:
    said = execute("--help", directory=tmp_path)
    assert (said.code, said.err) == (0, "")
    assert "Try it:" in said.out
    for command in COMMANDS:
        assert f"\n  {command[0]} " in said.out


@pytest.mark.parametrize("command", [(), *COMMANDS], ids=" ".join)
def test_help_loads_nothing_slow(command: tuple[str, ...], tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from supabase_bridge.cli import main\n"
        f"main([*{command!r}, '--help'], standalone_mode=False)\n"
        "print([name for name in ('mlflow', 'sqlalchemy', 'pydantic', 'onnx', 'numpy') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    said = execute("--version", directory=tmp_path)
    assert said.out == f"supabase-bridge, version {installed_version('mlflow-supabase-bridge')}\n"


# --- executables: results on stdout, the rest on stderr ---------------------------------------------------------------


def test_worker_once_prints_each_change(directory_scene: Scene) -> None:
    version = directory_scene.train()
    directory_scene.promote(version)
    said = run_command(directory_scene, "worker", "--once")
    assert said.code == 0
    assert said.out == (
        f"#2 two_tower v1 -> Production: done: latest is {RUN_ID} (entry 1)\n"
        f"#1 two_tower v1 version_created: done: mirrored as {RUN_ID}\n"
    )
    home = directory_scene.settings.home
    assert said.err == (
        f"store:    directory {home}/supabase/models (embedded, no SUPABASE_URL set)\n"
        f"database: sqlite:///{home}/mlflow.db\n"
        "2 events processed, 0 failed\n"
    )
    assert directory_scene.current() == version


@pytest.mark.exhaustive
def test_warnings_come_with_their_facts_and_nothing_of_mlflows(released: Scene) -> None:
    released.promote(2, "Archived")
    said = run_command(released, "worker", "--once")
    (warning,) = [line for line in said.err.splitlines() if not line.startswith(("store: ", "database: ", "1 events"))]
    assert warning.endswith(
        " WARNING supabase_bridge.worker.processor: a channel has no successor and stays where it is "
        "(model=two_tower channel=latest left=Production)"
    )


def test_worker_once_ends_with_1_if_anything_failed_for_good(directory_scene: Scene) -> None:
    directory_scene.train(files={})
    said = invoke("worker", "--once", "--home", directory_scene.settings.home)
    assert said.code == 1
    assert said.out.startswith("#1 two_tower v1 version_created: dead: two_tower version 1 has no ONNX file")
    assert said.err.endswith("1 events processed, 1 failed\n")


def test_mirror_prints_the_run_id_and_moves_no_pointer(directory_scene: Scene) -> None:
    version = directory_scene.train()
    said = run_command(directory_scene, "mirror", MODEL, version)
    assert (said.code, said.out) == (0, f"{RUN_ID}\n")
    assert said.err.startswith("store:    directory ")
    assert len(directory_scene.objects(f"{MODEL}/{RUN_ID}/")) == 9
    assert directory_scene.head() is None
    before = directory_scene.objects()
    again = invoke("mirror", MODEL, version, "--home", directory_scene.settings.home)
    assert (again.code, again.out, directory_scene.objects()) == (0, said.out, before)


def test_activate_points_a_channel_to_a_release(released: Scene) -> None:
    said = run_command(released, "activate", MODEL, RUN_ID)
    assert (said.code, said.out) == (0, f"{MANIFEST} is now {RUN_ID} (entry 3)\n")
    again = invoke("activate", MODEL, RUN_ID, "--home", released.settings.home)
    assert (again.code, again.out) == (0, f"{MANIFEST} was already {RUN_ID} (entry 3)\n")
    other = invoke("activate", MODEL, SECOND_RUN_ID, "--channel", "canary", "--home", released.settings.home)
    assert (other.code, other.out) == (0, f"{MODEL}/canary/manifest.json is now {SECOND_RUN_ID} (entry 1)\n")
    assert current(released) == RUN_ID


def test_rollback_promotes_the_version_before(released: Scene) -> None:
    said = run_command(released, "rollback", MODEL)
    assert (said.code, said.out) == (0, f"{MODEL} latest is now {RUN_ID}\n")
    assert current(released) == RUN_ID
    assert [released.client.get_model_version(MODEL, str(number)).current_stage for number in (1, 2)] == [
        "Production",
        "Archived",
    ]


def test_rollback_goes_to_the_release_asked_for(released: Scene) -> None:
    for run_id in (RUN_ID, SECOND_RUN_ID):
        said = invoke("rollback", MODEL, "--to", run_id, "--home", released.settings.home)
        assert (said.code, said.out) == (0, f"{MODEL} latest is now {run_id}\n")


def test_rollback_without_mlflow_moves_the_pointer_alone(released: Scene) -> None:
    (released.settings.home / "mlflow.db").rename(released.settings.home / "away.db")
    said = invoke("rollback", MODEL, "--without-mlflow", "--home", released.settings.home)
    assert (said.code, said.out) == (0, f"{MANIFEST} is now {RUN_ID} (entry 3)\n")


def test_rollback_follows_an_alias_where_no_stage_is_mapped(
    make_scene: MakeScene, directory_settings: Settings
) -> None:
    scene = make_scene(directory_settings)
    (scene.settings.home / "supabase-bridge.toml").write_text('[channels.aliases]\nchampion = "production"\n')
    for _ in range(2):
        scene.client.set_registered_model_alias(MODEL, "champion", str(scene.train()))
        assert invoke("worker", "--once", "--home", scene.settings.home).code == 0
    said = invoke("rollback", MODEL, "--channel", "production", "--home", scene.settings.home)
    assert (said.code, said.out) == (0, f"{MODEL} production is now {RUN_ID}\n")
    assert int(scene.client.get_model_version_by_alias(MODEL, "champion").version) == 1


def test_status_shows_pointers_versions_and_what_waits(released: Scene) -> None:
    released.train()
    said = run_command(released, "status")
    head = released.head()
    assert head is not None
    since = head.to_object()["current"]["published_at"]
    assert said.code == 0
    assert said.out == (
        "two_tower\n"
        f"  latest     -> {SECOND_RUN_ID} (version 2) since {since}\n"
        f"  v1    Archived   {RUN_ID}   superseded\n"
        f"  v2    Production {SECOND_RUN_ID}   active\n"
        "  v3    None       -                  not mirrored\n"
        "  outbox: 1 waiting, 0 failed\n"
    )


def test_status_as_json_has_the_same_in_it(released: Scene) -> None:
    said = invoke("status", MODEL, "--json", "--home", released.settings.home)
    (model,) = json.loads(said.out)
    assert (model["model"], model["key"], model["waiting"], model["dead"]) == (MODEL, MODEL, 0, 0)
    assert [channel["run_id"] for channel in model["channels"]] == [SECOND_RUN_ID]
    assert [version["status"] for version in model["versions"]] == ["superseded", "active"]


def test_status_says_that_a_pointer_was_moved_by_hand_or_is_out_of_step(released: Scene) -> None:
    invoke("activate", MODEL, RUN_ID, "--home", released.settings.home)
    assert ", activated manually\n" in invoke("status", "--home", released.settings.home).out
    (released.settings.home / "supabase" / "models" / MANIFEST).write_bytes(b"{}")
    assert "MANIFEST DIFFERS FROM ITS LOG" in invoke("status", "--home", released.settings.home).out


def test_status_of_an_empty_registry_is_empty(directory_scene: Scene) -> None:
    home = directory_scene.settings.home
    said = invoke("status", "--home", home)
    assert (said.code, said.out, said.err.splitlines()[-1]) == (0, "", "no registered models yet")
    assert invoke("status", "--json", "--home", home).out == "[]\n"


def test_outbox_lists_what_failed_and_its_retry_succeeds_once_the_cause_is_gone(directory_scene: Scene) -> None:
    run_id = directory_scene.log_run(files={"notes.txt": b""})
    directory_scene.register(run_id)
    directory_scene.work()
    listed = run_command(directory_scene, "outbox", "list")
    assert listed.code == 0
    assert "Z two_tower v1 version_created [dead]: two_tower version 1 has no ONNX file" in listed.out
    model = Path(directory_scene.client.get_run(run_id).info.artifact_uri or "") / "two_tower_latest.onnx"
    model.write_bytes(tiny_onnx())
    retried = run_command(directory_scene, "outbox", "retry", 1)
    assert (retried.code, retried.out) == (0, "event 1 is due; a worker will process it\n")
    directory_scene.work()
    assert directory_scene.tags(1)["status"] == "mirrored"


def test_outbox_discard_lets_a_change_go(directory_scene: Scene) -> None:
    directory_scene.train()
    said = run_command(directory_scene, "outbox", "discard", 1)
    assert (said.code, said.out) == (0, "event 1 is discarded\n")
    assert directory_scene.work() == []
    assert directory_scene.events()[0].state is EventState.DISCARDED


def test_outbox_list_as_json_is_one_change_a_line(released: Scene) -> None:
    said = invoke("outbox", "list", "--all", "--json", "--home", released.settings.home)
    listed = [json.loads(line) for line in said.out.splitlines()]
    assert [change["id"] for change in listed] == [event.id for event in released.events()]
    assert {change["state"] for change in listed} == {"done", "superseded"}
    assert all(change["created_at"].endswith("Z") for change in listed)
    nothing = invoke("outbox", "list", "--home", released.settings.home)
    assert (nothing.out, nothing.err) == ("", "no waiting and no failed events\n")


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_the_key_is_never_printed(supabase_scene: Scene, simulator: StorageSimulator) -> None:
    environment = supabase_environment(simulator)
    home = ("--home", supabase_scene.settings.home)
    for _ in range(2):
        supabase_scene.promote(supabase_scene.train())
        supabase_scene.work()
    supabase_scene.promote(supabase_scene.train())
    commands: list[tuple[object, ...]] = [
        ("worker", "--once"),
        ("mirror", MODEL, 1),
        ("status", "--json"),
        ("rollback", MODEL),
        ("activate", MODEL, RUN_ID),
        ("outbox", "list", "--all"),
    ]
    for command in commands:
        said = invoke("-v", *command, *home, environment=environment)
        assert simulator.service_key not in said.out + said.err
        assert said.code == 0, said.err
    simulator.stop()
    said = invoke("-v", "mirror", MODEL, 3, *home, environment=environment)
    assert simulator.service_key not in said.out + said.err
    assert said.code == 1
