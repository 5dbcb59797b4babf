"""Somebody who can write to MLflow chooses names and tags that lead into a folder that is not theirs."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from supabase_bridge.core.errors import InvalidNameError
from supabase_bridge.core.events import EventState
from supabase_bridge.core.layout import RunId, check_channel, check_model_key, check_object_key
from supabase_bridge.settings.model import Settings
from tests.attacks.refusals import refusal
from tests.support.commands import invoke
from tests.support.scene import MODEL, MakeScene, Scene, model_files

pytestmark = pytest.mark.exhaustive

PATHS = [
    *("..", ".", "../other", "a/../b", "/etc", "a/b", "a//b", "a/", "_tmp", "_tmp/x"),
    *("%2e%2e", "%2e%2e%2fother", "..%2f", "%00", "a%2fb"),
    *("..\\other", "a\\b", "a\0b", "a\nb", "a\rb", "a\tb"),
    *("two_tower@latest", "two_tower:1", "two_tower?x=1", "two_tower#x", "https://evil.example", "supabase://models/x"),
    *("ｔwo_tower", "two\u2024tower", "two_tower\u200b", "‥", "．．", "a\u2215b", "two_tоwer", "two_tower\u0301"),
    *(" two_tower", "two_tower ", "two_tower.", ".two_tower", "-rf", "~", "", "x" * 121, "x" * 1_000_000),
]


@pytest.mark.parametrize("name", PATHS, ids=lambda name: ascii(name[:20]))
def test_a_model_name_that_is_a_path_or_looks_like_another_name_is_no_folder(name: str) -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_model_key(name)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    "name", [*PATHS, "Latest", "20251031T093831Z", "history/1", "latest\n"], ids=lambda n: ascii(n[:20])
)
def test_a_channel_name_that_is_a_path_or_a_run_id_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError):
        check_channel(name)


@pytest.mark.parametrize(
    "text",
    [
        *PATHS,
        *("20251031T093831Z/..", "20251031T093831Z/../../other", "../20251031T093831Z", "20251031T093831Z\n"),
        *("20251031T093831Z-", "20251031T093831Z-a/b", "20251031T093831Z-%2e", "20251031T093831Z-\u0661"),
        *(
            "２０２５1031T093831Z",
            "20251331T093831Z",
            "20251031T246060Z",
            "00000000T000000Z",
            "20251031T093831Z-" + "x" * 65,
        ),
    ],
    ids=lambda text: ascii(text[:24]),
)
def test_a_run_id_that_is_a_path_or_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidNameError) as caught:
        RunId.parse(text)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("suffix", ["..", "...", ".", "-", "--", ".hidden"])
def test_a_run_id_with_dots_in_its_suffix_stays_one_folder_of_its_model(suffix: str) -> None:
    key = f"two_tower/{RunId.parse(f'20251031T093831Z-{suffix}')}/model_meta.json"
    assert check_object_key(key).split("/") == ["two_tower", f"20251031T093831Z-{suffix}", "model_meta.json"]


def test_a_model_that_is_named_like_a_path_is_refused_before_anything_is_stored(directory_scene: Scene) -> None:
    for name in ("%2e%2e", "_tmp", "a\\b", "two_tоwer", "a@b", "x" * 200, "a\x1b[2Jb"):
        error = refusal(directory_scene, directory_scene.train(model=name), model=name)
        assert "cannot be a folder in Supabase Storage" in error


def test_a_model_that_is_tagged_with_a_path_is_refused_before_anything_is_stored(directory_scene: Scene) -> None:
    for number, path in enumerate(["..", "../other", "%2e%2e", "/etc", "a/b", "_tmp", "a\\b", "two_tоwer", "a@b"]):
        version = directory_scene.train(model=f"mine{number}")
        directory_scene.client.set_registered_model_tag(f"mine{number}", "supabase.key", path)
        error = refusal(directory_scene, version, model=f"mine{number}")
        assert "cannot be a folder in Supabase Storage" in error


def is_kept_out_of_a_folder(scene: Scene) -> None:
    """A model that is tagged with the folder of `MODEL` is refused, and `MODEL` goes on."""
    version = scene.train(model="mine")
    scene.client.set_registered_model_tag("mine", "supabase.key", MODEL)
    assert f"belongs to registered model '{MODEL}'" in refusal(scene, version, model="mine")
    own = scene.train()
    scene.promote(own)
    scene.work()
    assert scene.current() == own


def test_a_model_tagged_with_another_models_folder_is_refused_and_the_other_goes_on(directory_scene: Scene) -> None:
    directory_scene.promote(directory_scene.train())
    directory_scene.work()
    is_kept_out_of_a_folder(directory_scene)


def test_a_model_tagged_with_the_folder_of_one_that_is_not_mirrored_yet_is_refused(directory_scene: Scene) -> None:
    directory_scene.client.create_registered_model(MODEL)
    is_kept_out_of_a_folder(directory_scene)


@pytest.mark.parametrize("renamed", [True, False])
def test_a_model_that_is_called_like_a_mirrored_models_folder_is_refused_and_the_other_goes_on(
    directory_scene: Scene, renamed: bool
) -> None:
    if not renamed:
        directory_scene.client.create_registered_model("retrieval")
        directory_scene.client.set_registered_model_tag("retrieval", "supabase.key", MODEL)
    run = directory_scene.log_run()
    directory_scene.register(run, model=MODEL if renamed else "retrieval")
    directory_scene.work()
    if renamed:
        directory_scene.client.rename_registered_model(MODEL, "retrieval")
    # The same run, the same number, and the tags that the worker gave the other's version.
    version = directory_scene.register(run)
    directory_scene.client.set_registered_model_tag(MODEL, "supabase.key", MODEL)
    directory_scene.client.set_model_version_tag(MODEL, str(version), "supabase.run_id", "20251031T093831Z")
    an_hour_passes(directory_scene)
    assert "belongs to registered model 'retrieval'" in refusal(directory_scene, version)
    again = directory_scene.train(model="retrieval")
    directory_scene.promote(again, model="retrieval")
    directory_scene.work()
    assert directory_scene.current() == again


def an_hour_passes(scene: Scene) -> None:
    """Let the first version of the model `retrieval`, and what its release recorded, be an hour older."""
    with closing(sqlite3.connect(scene.settings.home / "mlflow.db")) as database, database:
        database.execute("UPDATE model_versions SET creation_time = creation_time - 3600000 WHERE name = 'retrieval'")
    for path in (scene.settings.home / "supabase").rglob("model_meta.json"):
        then = path.stat().st_mtime - 3600
        os.utime(path, (then, then))


@pytest.mark.parametrize("place", ["version", "run"])
def test_a_run_id_tag_that_is_a_path_is_refused_before_anything_is_stored(directory_scene: Scene, place: str) -> None:
    for run_id in ("../other/20251031T093831Z", "latest", "20251031T093831Z/../../other", "%2e%2e", "x" * 4_000):
        run = directory_scene.log_run(tags={"supabase.run_id": run_id} if place == "run" else {})
        version = directory_scene.register(run)
        if place == "version":
            directory_scene.client.set_model_version_tag(MODEL, str(version), "supabase.run_id", run_id)
        assert "is not a run_id" in refusal(directory_scene, version)


def test_a_run_id_tag_that_names_another_versions_release_is_a_conflict_and_changes_nothing(
    directory_scene: Scene,
) -> None:
    first = directory_scene.train()
    directory_scene.promote(first)
    directory_scene.work()
    head = directory_scene.head()
    assert head is not None
    version = directory_scene.train()
    directory_scene.client.set_model_version_tag(MODEL, str(version), "supabase.run_id", head.current.run_id)
    assert "is the release of two_tower version 1, not of two_tower version 2" in refusal(directory_scene, version)
    assert directory_scene.head() == head
    directory_scene.client.delete_model_version_tag(MODEL, str(version), "supabase.run_id")
    directory_scene.runtime.outbox.retry(directory_scene.events()[-1].id)
    directory_scene.work()
    assert directory_scene.current() == version


def test_a_training_that_asks_for_another_releases_run_id_gets_one_of_its_own(directory_scene: Scene) -> None:
    wanted = {"supabase.run_id": "20251031T093831Z"}
    for _ in range(2):
        directory_scene.promote(directory_scene.train(tags=wanted))
        directory_scene.work()
    head = directory_scene.head()
    assert head is not None
    assert (head.current.run_id, head.previous[0].run_id) == ("20251031T093831Z-v2", "20251031T093831Z")


def test_documents_of_the_training_cannot_say_which_folder_model_or_files_a_release_has(directory_scene: Scene) -> None:
    own = (
        b'{"model_name": "../other", "run_id": "../../other", "files": {"../../x": {"size_bytes": 1, "sha256": "'
        + b"0" * 64
        + b'"}}, "mlflow": {"registered_model": "other", "version": 99}}'
    )
    metrics = b'{"run_id": "../../other", "baseline_run_id": "../x", "metrics": {}}'
    version = directory_scene.train(files={**model_files(), "model_meta.json": own, "metrics.json": metrics})
    directory_scene.promote(version)
    directory_scene.work()
    head = directory_scene.head()
    assert head is not None
    assert head.current.model_version == version
    assert head.current.run_id == "20251031T093831Z"
    assert all(key.startswith(f"{MODEL}/") and ".." not in key for key in directory_scene.objects())
    assert not [name for name in head.current.files if "/" in name]


def test_an_alias_that_is_a_path_moves_no_pointer(make_scene: MakeScene, directory_settings: Settings) -> None:
    scene = make_scene(directory_settings, aliases={"champion": "latest"})
    version = scene.train()
    for alias in ("..", "champion/..", "..%2fchampion", "Champion", "champion ", "chаmpion"):
        with suppress(MlflowException):  # MLflow refuses some of them itself.
            scene.client.set_registered_model_alias(MODEL, alias, str(version))
    assert {handled.state for handled in scene.work()} == {EventState.DONE, EventState.SUPERSEDED}
    assert scene.head() is None
    assert not [key for key in scene.objects() if "manifest" in key]


@pytest.mark.parametrize(
    "arguments",
    [
        lambda path: ("activate", path, "20251031T093831Z"),
        lambda path: ("activate", MODEL, path),
        lambda path: ("activate", MODEL, "20251031T093831Z", "--channel", path),
        lambda path: ("rollback", path, "--without-mlflow"),
        lambda path: ("rollback", MODEL, "--without-mlflow", "--to", path),
    ],
    ids=["model", "run_id", "channel", "rollback model", "rollback run_id"],
)
@pytest.mark.parametrize("path", ["../../etc", "%2e%2e", "a\\b", "/etc", "two_tоwer", "a/../../b"])
def test_a_path_given_to_a_command_is_refused(
    tmp_path: Path, arguments: Callable[[str], tuple[str, ...]], path: str
) -> None:
    said = invoke(*arguments(path), "--home", tmp_path)
    assert said.code in {1, 2}
    assert "cannot be a" in said.error or "is not a run_id" in said.error


UNQUOTABLE = ["x'y\"z", "x'y\\", "a''b\"", "%'\"%"]
"""Model names that MLflow's search language cannot quote."""


@pytest.mark.parametrize("name", UNQUOTABLE)
def test_a_name_that_no_search_can_quote_holds_up_no_other_model(directory_scene: Scene, name: str) -> None:
    scene = directory_scene
    scene.client.create_registered_model(name)
    scene.client.set_registered_model_tag(name, "supabase.key", MODEL)
    run = scene.log_run()
    scene.client.create_model_version(name, f"{scene.client.get_run(run).info.artifact_uri}/model", run)
    scene.client.set_model_version_tag(name, "1", "supabase.run_id", "20251031T093831Z")
    version = scene.train()
    scene.promote(version)
    scene.work()
    assert scene.current() == version
    (theirs,) = scene.runtime.registry.versions(name)
    assert (theirs.model, theirs.version) == (name, 1)


def test_a_name_that_no_search_can_quote_finds_the_versions_of_no_similar_name(directory_scene: Scene) -> None:
    for name in ("x'y\"z", "x\"y'z", "X'Y\"Z"):
        directory_scene.client.create_registered_model(name)
        directory_scene.client.create_model_version(name, "runs:/none/model", None)
    assert [len(directory_scene.runtime.registry.versions(name)) for name in ("x'y\"z", "X'Y\"Z")] == [1, 1]


def test_a_model_that_cannot_be_read_is_reported_by_status_beside_the_others(directory_scene: Scene) -> None:
    scene = directory_scene
    version = scene.train()
    scene.promote(version)
    scene.work()
    for name, key in (("x'y\"z", MODEL), ("other", "../x")):
        scene.client.create_registered_model(name)
        scene.client.set_registered_model_tag(name, "supabase.key", key)
    said = invoke("status", "--json", "--home", scene.settings.home)
    assert said.code == 0, said.err
    found = {item["model"]: item for item in json.loads(said.out)}
    assert set(found) == {MODEL, "other", "x'y\"z"}
    assert found[MODEL]["channels"][0]["model_version"] == version
    assert "cannot be a folder" in found["other"]["problem"]


def test_a_model_that_mlflow_refuses_to_read_ends_no_reconcile_pass(directory_scene: Scene) -> None:
    """MLflow's client refuses a name that SQL put into its tables."""
    scene = directory_scene
    with closing(sqlite3.connect(scene.settings.home / "mlflow.db")) as database, database:
        database.execute("INSERT INTO registered_models (name) VALUES ('')")
        database.execute(
            "INSERT INTO model_versions (name, version, current_stage, creation_time) VALUES ('', 1, 'Production', 1)"
        )
    version = scene.train()
    scene.promote(version)
    said = invoke("sync", "--home", scene.settings.home)
    assert "Error:" not in said.err
    assert "is blocked" in said.out
    scene.work()
    assert scene.current() == version
