"""What the policy lets go is removed and comes back with the same bytes; what is used stays."""

from __future__ import annotations

import sqlite3
from datetime import datetime, timezone

import pytest

from supabase_bridge.app.errors import CommandError
from supabase_bridge.app.retention import restore
from supabase_bridge.core.events import EventState
from supabase_bridge.core.layout import ARCHIVED_META_NAME, META_NAME, ChannelPaths
from supabase_bridge.reconcile.release_check import Scope
from supabase_bridge.releases.errors import ReleaseArchivedError
from supabase_bridge.releases.manual import activate_manually
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.storage.base import PutOptions
from tests.support.retained import (
    DELETE,
    WAYS,
    MakeRetained,
    going,
    is_complete,
    paths_of,
    plan,
    removed_names,
    run,
)
from tests.support.scene import MODEL, Scene

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def sync(scene: Scene) -> list[str]:
    found = scene.runtime.reconciler().run(now=scene.clock(), scope=Scope.FULL)
    return [f"{item.kind.value}: {item.detail}" for item in found]


@pytest.fixture(
    params=[
        "archive",
        "delete",
        pytest.param("archive in a project", marks=pytest.mark.exhaustive),
        pytest.param("delete in a project", marks=pytest.mark.exhaustive),
    ]
)
def retained(request: pytest.FixtureRequest, make_retained: MakeRetained) -> Scene:
    """Five releases under each policy on each store."""
    way, _, place = request.param.partition(" ")
    return make_retained(WAYS[way], request.getfixturevalue("simulator") if place else None)


@pytest.fixture
def deleting(make_retained: MakeRetained) -> Scene:
    return make_retained(DELETE)


def test_model_files_go_and_a_restore_brings_every_byte_back(retained: Scene) -> None:
    before = retained.objects()
    assert going(retained) == [1, 2]
    assert [result.problem for result in run(retained)] == [None, None]
    for version in (1, 2):
        documents = removed_names(retained, version)
        assert {ARCHIVED_META_NAME, "metrics.json", "summary.md"} <= documents
        assert not any(name.endswith((".onnx", ".pt")) for name in documents)
        assert META_NAME not in documents
        assert retained.tags(version)["status"] == "archived"
    assert (going(retained), run(retained), sync(retained)) == ([], [], [])
    for version in (1, 2):
        restore(retained.runtime, MODEL, paths_of(retained, version).run_id)
        assert (retained.tags(version)["status"], "archived" in retained.tags(version)) == ("superseded", False)
    assert retained.objects() == before
    assert sync(retained) == []
    with pytest.raises(CommandError, match="nothing to restore"):
        restore(retained.runtime, MODEL, paths_of(retained, 1).run_id)


def test_a_promotion_of_a_removed_version_restores_it(retained: Scene) -> None:
    before = retained.objects(paths_of(retained, 1).prefix)
    run(retained)
    retained.promote(1, archive=True)
    assert [result.state for result in retained.work()] == [EventState.DONE]
    assert (retained.current(), retained.tags(1)["status"]) == (1, "active")
    assert retained.objects(paths_of(retained, 1).prefix) == before
    assert "archived" not in retained.tags(1)


def test_a_release_that_mlflow_cannot_give_back_is_not_deleted(deleting: Scene) -> None:
    run_id = str(deleting.client.get_model_version(MODEL, "1").run_id)
    # The artifacts are those of all tests, so another place takes the place of an empty one.
    with sqlite3.connect(deleting.settings.home / "mlflow.db") as database:
        moved = "replace({0}, '/artifacts/model', '/artifacts/gone/model')".format
        change = f"source = {moved('source')}, storage_location = {moved('storage_location')}"
        database.execute(f"UPDATE model_versions SET {change} WHERE version = 1")
        database.execute("UPDATE runs SET artifact_uri = artifact_uri || '/gone' WHERE run_uuid = ?", [run_id])
    first, second = run(deleting)
    assert first.problem is not None
    assert "MLflow has no file any more" in first.problem
    assert (second.problem, is_complete(deleting, 1), is_complete(deleting, 2)) == (None, True, False)


def test_without_a_policy_nothing_goes(make_retained: MakeRetained) -> None:
    scene = make_retained({})
    assert (going(scene), run(scene)) == ([], [])
    assert plan(scene)[1].reason == "no policy is set for the model"


def test_every_other_release_has_the_reason_why_it_stays(deleting: Scene) -> None:
    deleting.client.set_registered_model_alias(MODEL, "champion", "2")
    deleting.promote(1, "Staging")
    reasons = {version: release.reason for version, release in plan(deleting).items()}
    assert reasons == {
        1: "version 1 has the stage Staging, which moves staging",
        2: "version 2 has the alias champion, which moves latest",
        3: "the manifest of latest (previous) names it",
        4: "the manifest of latest (previous) names it",
        5: "the manifest of latest (current) names it",
    }
    assert run(deleting) == []


def test_what_is_young_or_among_the_newest_stays(make_retained: MakeRetained) -> None:
    scene = make_retained({"then": "delete", "keep": 4, "min_age_days": 30})
    young, newest = (str(plan(scene)[version].reason) for version in (1, 2))
    assert young.startswith("it was changed")
    assert young.endswith("ago, and min_age is 30 days")
    assert newest == "it is among the newest 4"


def test_an_open_or_failed_event_keeps_its_version(deleting: Scene) -> None:
    deleting.client.set_registered_model_alias(MODEL, "noted", "1")
    (event,) = [event for event in deleting.events() if event.state is EventState.PENDING]
    assert plan(deleting)[1].reason == f"event {event.id} about version 1 is open"
    assert plan(deleting)[2].reason == f"event {event.id} changes the model's stages or aliases"
    deleting.work()
    assert going(deleting) == [1, 2]


def test_another_models_folder_and_foreign_objects_are_never_touched(deleting: Scene) -> None:
    foreign = {
        f"{paths_of(deleting, 1).prefix}notes.txt": b"ours",
        "elsewhere/20200101T000000Z/model_meta.json": b"{}",
        "elsewhere/20200101T000000Z/elsewhere_20200101T000000Z.onnx": b"x",
        f"{MODEL}/20200101T000000Z/model_meta.json": b"{}",
        "loose.txt": b"y",
    }
    for key, data in foreign.items():
        deleting.store.overwrite(key, data, PutOptions())
    found = plan(deleting)
    assert (found[1].goes, found[1].foreign) == (True, 1)
    assert str(found["20200101T000000Z"].reason).startswith("it is incomplete")
    assert [result.problem for result in run(deleting)] == [None, None]
    assert {key: data for key, data in deleting.objects().items() if key in foreign} == foreign


def test_a_release_of_which_no_version_is_left_stays(deleting: Scene) -> None:
    run_id = str(paths_of(deleting, 1).run_id)
    deleting.client.delete_model_version(MODEL, "1")
    deleting.work()
    assert plan(deleting)[run_id].reason == "no version of this registry names it"
    assert going(deleting) == [2]


def test_a_log_that_cannot_be_read_keeps_every_release(deleting: Scene) -> None:
    deleting.store.overwrite(f"{MODEL}/blue/history/00000001.json", b"{}", PutOptions())
    assert str(plan(deleting)[1].reason).startswith("the log of blue cannot be read")
    assert going(deleting) == []


def test_a_tag_that_names_another_versions_release_removes_nothing(deleting: Scene) -> None:
    mine, others = paths_of(deleting, 2), paths_of(deleting, 1)
    deleting.client.delete_model_version_tag(MODEL, "1", "supabase.run_id")
    deleting.client.set_model_version_tag(MODEL, "2", "supabase.run_id", str(others.run_id))
    (result,) = run(deleting)
    assert result.release.paths == others
    assert result.problem == f"its model_meta.json does not name version 2 of {MODEL}"
    verify_release(deleting.store, others)
    verify_release(deleting.store, mine)


def test_two_versions_that_name_one_release_keep_it(deleting: Scene) -> None:
    deleting.client.set_model_version_tag(MODEL, "3", "supabase.run_id", str(paths_of(deleting, 1).run_id))
    found = plan(deleting)[str(paths_of(deleting, 1).run_id)]
    assert str(found.reason).startswith("several versions name it")


def test_a_manual_activation_of_a_removed_release_says_how_to_restore_it(deleting: Scene) -> None:
    run(deleting)
    paths = paths_of(deleting, 1)
    latest = ChannelPaths(model_key=MODEL, channel="latest")
    with pytest.raises(ReleaseArchivedError, match=f"retention restore {MODEL} {paths.run_id}"):
        activate_manually(deleting.store, latest, paths.run_id, now=NOW)
    restore(deleting.runtime, MODEL, paths.run_id)
    assert activate_manually(deleting.store, latest, paths.run_id, now=NOW).activated


def test_sync_reports_a_previous_release_that_is_not_there(deleting: Scene) -> None:
    paths = paths_of(deleting, 4)
    deleting.store.delete([paths.meta])
    deleting.client.set_model_version_tag(MODEL, "4", "supabase.status", "archived")
    (found,) = sync(deleting)
    assert found.startswith("damaged_release: ")
    assert "latest/manifest.json names this release" in found
