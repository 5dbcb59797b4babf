"""`freeze` and `thaw`: MLflow refuses promotions meanwhile, with the reason and the end, and takes a rollback."""

from __future__ import annotations

import getpass
import json
import sqlite3
from contextlib import closing

import pytest
from mlflow.exceptions import MlflowException

from supabase_bridge.core.documents import Cause
from tests.support.commands import Said, invoke
from tests.support.scene import MODEL, Scene


def run(scene: Scene, *arguments: object) -> Said:
    return invoke(*arguments, "--home", scene.settings.home)


def refused(scene: Scene, version: int, stage: str = "Production") -> str:
    """MLflow's answer to a promotion."""
    with pytest.raises(MlflowException) as caught:
        scene.promote(version, stage)
    assert caught.value.get_http_status_code() == 400
    return str(caught.value)


def cause_of_head(scene: Scene) -> Cause:
    head = scene.head()
    assert head is not None
    assert head.cause is not None
    return head.cause


@pytest.fixture
def scene(directory_scene: Scene) -> Scene:
    """Versions 1 and 2 were current, version 3 was not."""
    for version in (directory_scene.train(), directory_scene.train()):
        directory_scene.promote(version)
        directory_scene.work()
    directory_scene.train()
    directory_scene.work()
    return directory_scene


def test_a_freeze_refuses_promotions_but_no_rollback_until_it_is_thawed(scene: Scene) -> None:
    said = run(scene, "freeze", f"{MODEL}@latest", "--until", "2999-12-27T08:00Z", "--reason", "holiday sale")
    assert said.code == 0
    assert said.out.startswith(f"{MODEL}@latest is frozen until 2999-12-27T08:00:00Z by ")
    assert "cannot go to Production: two_tower@latest is frozen until 2999-12-27T08:00:00Z by " in refused(scene, 3)
    assert "holiday sale" in refused(scene, 3)
    scene.promote(3, "Staging")
    assert "is frozen until" in run(scene, "status").out
    assert "holiday sale" in json.loads(run(scene, "status", "--json").out)[0]["frozen"][0]
    rolled_back = run(scene, "rollback", MODEL)
    assert rolled_back.code == 0
    assert scene.current() == 1
    assert "although two_tower@latest is frozen" in scene.tags(1)["verdict"]
    cause = cause_of_head(scene)
    assert str(cause.during_freeze).startswith("two_tower@latest is frozen until 2999-12-27T08:00:00Z by ")
    assert cause.by == getpass.getuser()
    assert scene.tags(1)["channel.latest"].endswith(f" by {getpass.getuser()}")
    assert run(scene, "thaw", f"{MODEL}@latest").out == f"{MODEL}@latest is no longer frozen\n"
    scene.promote(3)
    scene.work()
    assert scene.current() == 3
    assert cause_of_head(scene).during_freeze is None
    again = run(scene, "thaw", f"{MODEL}@latest")
    assert (again.code, "two_tower@latest is not frozen" in again.error) == (1, True)


def test_a_freeze_of_a_model_covers_all_channels_follows_a_rename_and_ends_by_itself(directory_scene: Scene) -> None:
    scene = directory_scene
    version = scene.train()
    run(scene, "freeze", MODEL, "--reason", "first")
    run(scene, "freeze", MODEL, "--reason", "audit", "--until", "2999-01-01")
    for stage in ("Production", "Staging"):
        assert "two_tower is frozen until 2999-01-01T00:00:00Z" in refused(scene, version, stage)
    scene.client.rename_registered_model(MODEL, "renamed")
    with pytest.raises(MlflowException, match="renamed is frozen until"):
        scene.promote(version, model="renamed")
    with closing(sqlite3.connect(scene.settings.home / "mlflow.db")) as database, database:
        rows = database.execute("SELECT reason, ended_ms IS NULL FROM supabase_freezes ORDER BY id").fetchall()
        assert rows == [("first", 0), ("audit", 1)]
        database.execute("UPDATE supabase_freezes SET until_ms = 1")
    scene.promote(version, model="renamed")


def test_a_model_that_is_deleted_and_made_again_is_still_frozen(directory_scene: Scene) -> None:
    directory_scene.train()
    run(directory_scene, "freeze", MODEL, "--reason", "audit")
    directory_scene.client.delete_registered_model(MODEL)
    directory_scene.train()
    assert "two_tower is frozen by" in refused(directory_scene, 1)
    directory_scene.client.delete_registered_model(MODEL)
    assert run(directory_scene, "thaw", MODEL).code == 0


def test_a_freeze_of_something_else_is_refused(directory_scene: Scene) -> None:
    directory_scene.train()
    for arguments, problem, code in (
        (["missing", "--reason", "x"], "missing", 1),
        ([f"{MODEL}@nightly", "--reason", "x"], "nightly", 1),
        ([MODEL, "--reason", " "], "--reason: expected a text", 2),
        ([MODEL, "--reason", "x", "--until", "2001-01-01"], "--until: this time is over", 2),
        ([MODEL, "--reason", "x", "--until", "soon"], "is no time", 2),
    ):
        said = run(directory_scene, "freeze", *arguments)
        assert (said.code, problem in said.error) == (code, True)
