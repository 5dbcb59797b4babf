"""What a worker makes of promotions: every channel follows the registry."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from supabase_bridge.app.runtime import open_runtime
from supabase_bridge.core.events import EventState
from supabase_bridge.core.layout import ChannelPaths, RunId
from supabase_bridge.releases.manual import activate_manually
from supabase_bridge.settings.model import Settings
from tests.support.commands import invoke
from tests.support.databases import copy_sqlite
from tests.support.scene import MODEL, MakeScene, Scene
from tests.support.simulators.storage import Fault, Respond, StorageSimulator

LATEST = ChannelPaths(model_key=MODEL, channel="latest")


def two_versions(scene: Scene) -> tuple[int, int]:
    """Two versions, both mirrored."""
    versions = scene.train(), scene.train()
    scene.work()
    return versions


def run_ids(scene: Scene, *versions: int) -> list[str]:
    return [scene.tags(version)["run_id"] for version in versions]


def outcomes(scene: Scene) -> list[tuple[EventState, str]]:
    """What became of the stage changes and aliases, in their order."""
    return [(event.state, event.outcome or "") for event in scene.events() if event.kind.value != "version_created"]


def by_hand(scene: Scene, version: int, *, at: datetime | None = None) -> None:
    (run_id,) = run_ids(scene, version)
    activate_manually(scene.store, LATEST, RunId.parse(run_id), now=at or datetime.now(timezone.utc))


# --- stages, aliases, channels ----------------------------------------------------------------------------------------


def test_production_switches_latest_and_staging_switches_staging(scene: Scene) -> None:
    first, second = two_versions(scene)
    scene.promote(first)
    scene.promote(second, "Staging")
    scene.work()
    assert (scene.current("latest"), scene.current("staging")) == (first, second)


def test_a_version_that_nobody_promoted_moves_no_pointer(scene: Scene) -> None:
    two_versions(scene)
    assert (scene.head("latest"), scene.head("staging")) == (None, None)


def test_a_stage_without_a_channel_moves_no_pointer(directory_scene: Scene) -> None:
    first, _ = two_versions(directory_scene)
    directory_scene.promote(first, "Archived")
    directory_scene.work()
    assert outcomes(directory_scene) == [(EventState.DONE, "no channel follows this change")]
    assert directory_scene.head() is None


def test_an_alias_that_the_settings_map_switches_its_channel(
    make_scene: MakeScene, directory_settings: Settings
) -> None:
    scene = make_scene(directory_settings, aliases={"champion": "production"})
    first, second = two_versions(scene)
    scene.client.set_registered_model_alias(MODEL, "champion", str(first))
    scene.client.set_registered_model_alias(MODEL, "other", str(second))
    scene.work()
    assert (scene.current("production"), scene.current("latest")) == (first, None)
    scene.client.set_registered_model_alias(MODEL, "champion", str(second))
    scene.work()
    assert scene.current("production") == second


# --- one after the other ----------------------------------------------------------------------------------------------


def test_the_version_before_is_archived_superseded_and_in_previous(scene: Scene) -> None:
    first, second = two_versions(scene)
    for version in (first, second):
        scene.promote(version, archive=True)
        scene.work()
    former, current = run_ids(scene, first, second)
    head = scene.head()
    assert head is not None
    assert (head.current.run_id, [pointer.run_id for pointer in head.previous]) == (current, [former])
    assert head.sequence == 2
    assert scene.tags(first)["status"] == "superseded"
    assert scene.tags(first)["channel.latest"] == f"superseded by {current}"
    assert scene.tags(second)["status"] == "active"
    assert scene.tags(second)["channel.latest"].startswith("current since ")
    assert scene.client.get_model_version(MODEL, str(first)).current_stage == "Archived"


def test_a_version_current_in_another_channel_stays_active(directory_scene: Scene) -> None:
    first, second = two_versions(directory_scene)
    directory_scene.promote(first, "Staging")
    directory_scene.work()
    directory_scene.promote(first, "Production")
    directory_scene.work()
    directory_scene.promote(second, "Production")
    directory_scene.work()
    assert directory_scene.current("staging") == first
    assert directory_scene.tags(first)["status"] == "active"


def test_of_two_versions_in_production_the_later_one_is_current_until_it_leaves(scene: Scene) -> None:
    first, second = two_versions(scene)
    scene.promote(second)
    scene.promote(first)
    scene.work()
    assert scene.current() == first
    scene.promote(first, "Archived")
    scene.work()
    assert scene.current() == second
    assert scene.tags(second)["status"] == "active"
    assert scene.tags(first)["status"] == "superseded"


def test_the_other_one_leaving_moves_nothing(scene: Scene) -> None:
    first, second = two_versions(scene)
    scene.promote(first)
    scene.promote(second)
    scene.work()
    before = scene.objects()
    scene.promote(first, "Archived")
    scene.work()
    assert scene.objects() == before
    assert outcomes(scene)[-1] == (EventState.DONE, f"latest is version {second} already")


def test_a_version_in_production_that_is_promoted_again_becomes_current(scene: Scene) -> None:
    first, second = two_versions(scene)
    scene.promote(first)
    scene.promote(second)
    scene.work()
    scene.promote(first)
    scene.work()
    assert scene.current() == first
    assert [scene.tags(version)["status"] for version in (first, second)] == ["active", "superseded"]


def test_the_current_version_that_is_promoted_again_makes_no_new_entry(scene: Scene) -> None:
    first, _ = two_versions(scene)
    scene.promote(first)
    scene.work()
    before = scene.objects()
    scene.promote(first)
    scene.work()
    assert scene.objects() == before
    assert outcomes(scene)[-1][0] is EventState.DONE


def test_a_rollback_by_promotion_uploads_nothing_again(scene: Scene) -> None:
    first, second = two_versions(scene)
    for version in (first, second):
        scene.promote(version, archive=True)
        scene.work()
    before = scene.objects()
    scene.promote(first, archive=True)
    scene.work()
    assert scene.current() == first
    assert set(scene.objects()) - set(before) == {LATEST.history(3)}


def test_a_promotion_that_is_no_longer_wanted_is_skipped_and_says_so(scene: Scene) -> None:
    first, second = two_versions(scene)
    scene.promote(first)
    scene.promote(second, archive=True)
    scene.work()
    head = scene.head()
    assert head is not None
    assert (head.sequence, head.previous, head.current.model_version) == (1, [], second)
    assert outcomes(scene)[0] == (
        EventState.SUPERSEDED,
        f"version {second} came to latest after version {first}",
    )
    assert scene.tags(first)["status"] == "mirrored"


def test_a_promotion_comes_before_the_versions_that_wait_to_be_mirrored_and_mirrors_its_own(
    directory_scene: Scene,
) -> None:
    others = [directory_scene.train(model="other") for _ in range(2)]
    versions = [directory_scene.train() for _ in range(3)]
    directory_scene.promote(versions[1])
    first, *rest = directory_scene.work()
    assert (first.event.version, first.outcome.startswith("latest is ")) == (versions[1], True)
    assert sorted(handled.event.id for handled in rest) == [event.id for event in directory_scene.events()][:-1]
    assert {handled.event.version for handled in rest if handled.event.model == "other"} == {*others}
    assert directory_scene.current() == versions[1]
    assert [directory_scene.tags(version)["status"] for version in versions] == ["mirrored", "active", "mirrored"]


def test_a_promotion_taken_back_before_its_turn_is_skipped(directory_scene: Scene) -> None:
    first, _ = two_versions(directory_scene)
    directory_scene.promote(first)
    directory_scene.promote(first, "Archived")
    directory_scene.work()
    assert directory_scene.head() is None
    assert outcomes(directory_scene)[0] == (
        EventState.SUPERSEDED,
        f"version {first} no longer holds what makes it latest",
    )


def test_models_do_not_wait_for_each_other(supabase_scene: Scene, simulator: StorageSimulator) -> None:
    stuck, free = supabase_scene.train(model="stuck"), supabase_scene.train(model="free")
    supabase_scene.work()
    simulator.inject(Fault(action=Respond(503), path_contains="stuck/latest"))
    supabase_scene.promote(stuck, model="stuck")
    supabase_scene.promote(free, model="free")
    supabase_scene.work()
    assert supabase_scene.current(key="free") == free
    assert supabase_scene.tags(stuck, "stuck")["status"] == "retrying"


# --- leaving ----------------------------------------------------------------------------------------------------------


def test_a_channel_without_successor_keeps_its_release_and_the_version_notes_it(scene: Scene) -> None:
    first, _ = two_versions(scene)
    scene.promote(first)
    scene.work()
    before = scene.objects()
    scene.promote(first, "Archived")
    scene.work()
    assert scene.objects() == before
    assert scene.tags(first)["note"] == "left Production with no successor; latest still points to this release"
    assert scene.tags(first)["status"] == "active"
    assert outcomes(scene)[-1] == (EventState.DONE, "latest stays where it is: nothing else holds Production")


def test_a_note_goes_when_the_version_is_promoted_again(directory_scene: Scene) -> None:
    first, _ = two_versions(directory_scene)
    for stage in ("Production", "Archived", "Production"):
        directory_scene.promote(first, stage)
        directory_scene.work()
    assert "note" not in directory_scene.tags(first)


def test_a_deleted_version_gives_way_to_the_other_one_in_production(scene: Scene) -> None:
    first, second = two_versions(scene)
    scene.promote(first)
    scene.promote(second)
    scene.work()
    releases = {key for key in scene.objects() if "/latest/" not in key}
    scene.client.delete_model_version(MODEL, str(second))
    scene.work()
    assert scene.current() == first
    assert releases <= set(scene.objects())


def test_deleting_the_current_version_leaves_its_release_current(directory_scene: Scene) -> None:
    first, _ = two_versions(directory_scene)
    directory_scene.promote(first)
    directory_scene.work()
    before = directory_scene.objects()
    directory_scene.client.delete_model_version(MODEL, str(first))
    directory_scene.work()
    assert directory_scene.objects() == before
    assert all(event.state is EventState.DONE for event in directory_scene.events())


def test_a_promotion_of_a_version_deleted_before_its_turn_is_skipped(directory_scene: Scene) -> None:
    first = directory_scene.train()
    directory_scene.promote(first)
    directory_scene.client.delete_model_version(MODEL, str(first))
    directory_scene.work()
    assert directory_scene.objects() == {}
    assert [event.state for event in directory_scene.events()] == [
        EventState.SUPERSEDED,
        EventState.SUPERSEDED,
        EventState.DONE,
    ]


def test_deleting_a_model_leaves_its_releases(directory_scene: Scene) -> None:
    first, _ = two_versions(directory_scene)
    directory_scene.promote(first)
    directory_scene.work()
    before = directory_scene.objects()
    directory_scene.client.delete_registered_model(MODEL)
    directory_scene.work()
    assert directory_scene.objects() == before


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_a_pointer_moved_by_hand_is_not_undone_by_an_older_promotion(scene: Scene) -> None:
    first, second = two_versions(scene)
    scene.promote(second)
    by_hand(scene, first)
    scene.work()
    assert scene.current() == first
    assert outcomes(scene) == [
        (
            EventState.SUPERSEDED,
            f"latest was moved to {run_ids(scene, first)[0]} manually and stays there until the next promotion",
        )
    ]


def test_a_pointer_moved_by_hand_is_not_undone_by_a_version_that_leaves(scene: Scene) -> None:
    first, second = two_versions(scene)
    for version in (first, second):
        scene.promote(version)
    scene.work()
    by_hand(scene, first, at=scene.clock() - timedelta(hours=1))
    scene.promote(first, "Archived")
    scene.work()
    assert scene.current() == first


@pytest.mark.parametrize("again", [False, True], ids=["another version", "the same version"])
def test_a_pointer_moved_by_hand_follows_the_next_promotion(scene: Scene, again: bool) -> None:
    first, second = two_versions(scene)
    scene.promote(second)
    scene.work()
    by_hand(scene, first)
    promoted = first if again else second
    scene.promote(promoted)
    scene.work()
    head = scene.head()
    assert head is not None
    assert head.cause is not None
    assert (head.current.model_version, head.cause.by_hand) == (promoted, None)


def test_a_version_that_leaves_after_a_move_by_hand_does_not_claim_to_be_current(scene: Scene) -> None:
    first, second = two_versions(scene)
    scene.promote(second)
    scene.work()
    by_hand(scene, first)
    scene.promote(second, "Archived")
    scene.work()
    assert "note" not in scene.tags(second)


def test_a_registry_restored_from_a_backup_and_given_a_new_identity_loses_no_promotion(
    directory_scene: Scene, tmp_path: Path
) -> None:
    first, second = two_versions(directory_scene)
    database = directory_scene.settings.home / "mlflow.db"
    copy_sqlite(database, tmp_path / "backup.db")
    directory_scene.promote(first)
    directory_scene.work()
    directory_scene.promote(second, archive=True)
    directory_scene.work()
    copy_sqlite(tmp_path / "backup.db", database)
    with directory_scene.runtime.outbox.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE supabase_bridge_meta SET registry_id = '{uuid.uuid4()}'")
    with open_runtime(directory_scene.settings) as restarted:
        restored = replace(directory_scene, runtime=restarted)
        restored.promote(first)
        (handled,) = restored.work()
        assert handled.state is EventState.DEAD
        assert "was written by another registry" in handled.outcome
        assert "supabase-bridge adopt two_tower@latest" in handled.outcome
        assert directory_scene.current() == second
        assert invoke("adopt", "--all", "--home", directory_scene.settings.home).code == 0
        restored.runtime.outbox.retry(handled.event.id)
        (handled,) = restored.work()
    assert handled.state is EventState.DONE
    assert directory_scene.current() == first


def test_one_pass_carries_out_every_promotion_that_needs_an_upload(directory_scene: Scene) -> None:
    for stage in ("Production", "Staging"):
        directory_scene.promote(directory_scene.train(), stage)
    directory_scene.work()
    assert [directory_scene.tags(version)["status"] for version in (1, 2)] == ["active", "active"]
