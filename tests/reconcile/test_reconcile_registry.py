"""What the registry's tables say and no event does becomes the events that are missing, each once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from supabase_bridge.app.runtime import Stores
from supabase_bridge.core.events import EventKind
from supabase_bridge.core.layout import ChannelPaths, RunId
from supabase_bridge.reconcile.findings import Finding, FindingKind
from supabase_bridge.reconcile.release_check import Scope
from supabase_bridge.releases.manual import activate_manually
from tests.support.scene import MODEL, MakeScene, Scene

VERSION = "UPDATE model_versions SET current_stage = :stage WHERE version = :version"


def sql(scene: Scene, statement: str, **values: object) -> None:
    """Change the registry behind everybody's back."""
    with scene.runtime.outbox.engine.begin() as connection:
        connection.execute(sa.text(statement), values)


def reconcile(scene: Scene, *, model: str | None = None, dry_run: bool = False) -> list[Finding]:
    with closing(Stores(scene.settings, create=False)) as untouched:
        reconciler = scene.runtime.reconciler(untouched if dry_run else scene.runtime.stores)
        return list(reconciler.run(now=scene.clock(), scope=Scope.FULL, model=model, dry_run=dry_run))


def test_a_registry_whose_every_change_was_captured_gets_no_event(directory_scene: Scene) -> None:
    first, second = directory_scene.train(), directory_scene.train()
    directory_scene.promote(first)
    directory_scene.promote(second, archive=True)
    directory_scene.client.set_registered_model_alias(MODEL, "champion", str(first))
    directory_scene.client.set_registered_model_alias(MODEL, "old", str(first))
    directory_scene.client.delete_registered_model_alias(MODEL, "old")
    directory_scene.client.delete_model_version(MODEL, str(first))
    directory_scene.train(model="other")
    directory_scene.client.rename_registered_model("other", "another")
    directory_scene.train(model="gone")
    directory_scene.client.delete_registered_model("gone")
    directory_scene.work()
    before = directory_scene.events()
    assert reconcile(directory_scene) == []
    assert directory_scene.events() == before


@pytest.mark.exhaustive
def test_what_was_finished_long_ago_and_removed_is_not_taken_for_missing(directory_scene: Scene) -> None:
    for _ in range(2):
        directory_scene.promote(directory_scene.train(), archive=True)
    for version in ("1", "2"):
        directory_scene.client.set_registered_model_alias(MODEL, "champion", version)
    directory_scene.client.set_registered_model_alias(MODEL, "old", "1")
    directory_scene.client.delete_registered_model_alias(MODEL, "old")
    directory_scene.train(model="gone")
    directory_scene.client.delete_registered_model("gone")
    directory_scene.work()
    outbox = directory_scene.runtime.outbox
    directory_scene.clock.advance(timedelta(days=1000))
    last: int | None = 0
    while last is not None:
        last = outbox.remove_finished(older_than=timedelta(days=90), after=last, now=directory_scene.clock())
    assert reconcile(directory_scene) == []


@pytest.mark.parametrize(("in_production", "champion"), [(1, 2), (2, 1)])
def test_of_a_stage_and_an_alias_without_events_the_alias_counts_as_the_later(
    directory_scene: Scene, in_production: int, champion: int
) -> None:
    for _ in range(2):
        directory_scene.train()
    alias = "INSERT INTO registered_model_aliases (name, alias, version) VALUES (:name, 'champion', :version)"
    sql(directory_scene, alias, name=MODEL, version=champion)
    sql(directory_scene, VERSION, stage="Production", version=in_production)
    reconcile(directory_scene)
    directory_scene.work()
    assert directory_scene.current() == champion


def test_a_stage_that_sql_changed_moves_the_pointer(directory_scene: Scene) -> None:
    first, second = directory_scene.train(), directory_scene.train()
    directory_scene.promote(first)
    directory_scene.work()
    sql(directory_scene, VERSION, stage="Production", version=second)
    sql(directory_scene, VERSION, stage="Archived", version=first)
    found = reconcile(directory_scene)
    assert [(item.kind, item.subject, item.detail) for item in found] == [
        (FindingKind.UNRECORDED_CHANGE, f"{MODEL} version {first}", "Production -> Archived"),
        (FindingKind.UNRECORDED_CHANGE, f"{MODEL} version {second}", "None -> Production"),
    ]
    directory_scene.work()
    assert directory_scene.current() == second
    assert reconcile(directory_scene) == []


def test_versions_of_a_server_without_the_plugin_are_mirrored_and_the_highest_in_production_is_current(
    directory_scene: Scene,
) -> None:
    versions = [directory_scene.train() for _ in range(3)]
    for version in versions:
        sql(directory_scene, VERSION, stage="Production" if version != 2 else "None", version=version)
    sql(directory_scene, "DELETE FROM supabase_outbox")
    reconcile(directory_scene)
    kinds = [(event.kind, event.version) for event in directory_scene.events()]
    assert kinds == [
        (EventKind.STAGE_CHANGED, 1),
        (EventKind.STAGE_CHANGED, 3),
        (EventKind.VERSION_CREATED, 1),
        (EventKind.VERSION_CREATED, 3),
        (EventKind.VERSION_CREATED, 2),
    ]
    directory_scene.work()
    assert directory_scene.current() == 3
    assert [directory_scene.tags(version)["status"] for version in versions] == ["mirrored", "mirrored", "active"]
    assert reconcile(directory_scene) == []


@pytest.mark.parametrize("dry_run", [True, False])
def test_an_alias_that_sql_set_moved_or_removed_is_recorded(
    make_scene: MakeScene, directory_settings: Any, dry_run: bool
) -> None:
    scene = make_scene(directory_settings, aliases={"champion": "latest"})
    for _ in range(2):
        scene.train()
    scene.client.set_registered_model_alias(MODEL, "champion", "1")
    scene.client.set_registered_model_alias(MODEL, "loser", "1")
    sql(scene, "UPDATE registered_model_aliases SET version = 2 WHERE alias = 'champion'")
    sql(scene, "DELETE FROM registered_model_aliases WHERE alias = 'loser'")
    before = scene.events()
    found = reconcile(scene, dry_run=dry_run)
    changes = [item.detail for item in found if item.kind is FindingKind.UNRECORDED_CHANGE]
    assert changes == ["alias_set @champion", "alias_removed @loser"]
    if dry_run:
        assert scene.events() == before
        return
    event = scene.events()[-2]
    assert (event.version, event.previous_version) == (2, 1)
    scene.work()
    assert scene.current() == 2
    assert reconcile(scene) == []


def test_a_version_or_model_that_sql_deleted_is_recorded_as_deleted(directory_scene: Scene) -> None:
    directory_scene.train()
    directory_scene.train(model="other")
    sql(directory_scene, VERSION + " AND name = 'two_tower'", stage="Deleted_Internal", version=1)
    for table in ("model_versions", "registered_models"):
        sql(directory_scene, f"DELETE FROM {table} WHERE name = 'other'")
    details = {(item.subject, item.detail) for item in reconcile(directory_scene)}
    assert details == {("other", "model_deleted"), (f"{MODEL} version 1", "version_deleted")}
    assert reconcile(directory_scene) == []


def test_prompts_and_deleted_versions_are_nothing_to_us(directory_scene: Scene) -> None:
    directory_scene.train(model="prompt")
    directory_scene.train()
    directory_scene.client.set_registered_model_tag("prompt", "mlflow.prompt.is_prompt", "true")
    sql(directory_scene, VERSION + " AND name = 'two_tower'", stage="Deleted_Internal", version=1)
    sql(directory_scene, "DELETE FROM supabase_outbox")
    assert reconcile(directory_scene) == []


def test_only_the_model_that_was_asked_for_is_looked_at(directory_scene: Scene) -> None:
    directory_scene.train()
    directory_scene.train(model="other")
    sql(directory_scene, "DELETE FROM supabase_outbox")
    assert {item.subject for item in reconcile(directory_scene, model="other")} == {"other version 1"}
    assert {item.subject for item in reconcile(directory_scene)} == {f"{MODEL} version 1"}


@pytest.mark.exhaustive
def test_a_pointer_moved_by_hand_stays_although_sql_had_promoted_another_version_before(
    directory_scene: Scene,
) -> None:
    for _ in range(2):
        directory_scene.promote(directory_scene.train(), archive=True)
        directory_scene.work()
    third = directory_scene.train()
    directory_scene.work()
    sql(directory_scene, VERSION, stage="Production", version=third)
    first = RunId.parse(directory_scene.tags(1)["run_id"])
    paths = ChannelPaths(model_key=MODEL, channel="latest")
    activate_manually(directory_scene.store, paths, first, now=directory_scene.clock())
    assert len(reconcile(directory_scene)) == 1
    directory_scene.work()
    assert directory_scene.current() == 1


def test_a_promotion_captured_between_looking_and_recording_is_not_doubled(
    directory_scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = directory_scene.train()
    directory_scene.work()
    sql(directory_scene, VERSION, stage="Staging", version=version)
    engine = directory_scene.runtime.outbox.engine
    looked: list[str] = []

    def promote_in_between(
        _connection: object, _cursor: object, statement: str, _parameters: Mapping[str, object], *_: object
    ) -> None:
        if statement.startswith("UPDATE supabase_bridge_duties SET name") and not looked:
            looked.append(statement)
            monkeypatch.undo()
            directory_scene.promote(version, "Production")

    sa.event.listen(engine, "before_cursor_execute", promote_in_between)
    try:
        assert reconcile(directory_scene) == []
    finally:
        sa.event.remove(engine, "before_cursor_execute", promote_in_between)
    assert looked
    assert [event.stage for event in directory_scene.events()] == ["None", "Production"]


def test_more_changes_than_one_batch_are_recorded_each_once(directory_scene: Scene) -> None:
    directory_scene.train()
    insert = (
        "INSERT INTO model_versions (name, version, creation_time, last_updated_time, current_stage, source, run_id, "
        "status) SELECT name, :version, creation_time, last_updated_time, 'None', source, run_id, status "
        "FROM model_versions WHERE version = 1"
    )
    with directory_scene.runtime.outbox.engine.begin() as connection:
        connection.execute(sa.text(insert), [{"version": number} for number in range(2, 1203)])
    assert len(reconcile(directory_scene)) == 1201
    assert reconcile(directory_scene) == []
    assert len(directory_scene.events()) == 1202
