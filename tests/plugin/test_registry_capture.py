"""What each change of the registry leaves in the outbox, on each database."""

from __future__ import annotations

import mlflow.store.model_registry.sqlalchemy_store as mlflow_store
import pytest
import sqlalchemy as sa
from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY
from sqlalchemy.engine import Connection

from supabase_bridge.core.events import EventKind
from supabase_bridge.outbox.tables import OUTBOX
from tests.support.registry_stores import MODEL, SOURCE, Registry, event, recorded


def test_a_new_version_is_recorded_with_its_stage(registry: Registry) -> None:
    registry.store.create_registered_model(MODEL)
    registry.store.create_model_version(MODEL, SOURCE)
    registry.store.create_model_version(MODEL, SOURCE)
    assert registry.new_events() == [
        event(EventKind.VERSION_CREATED, version=1, stage="None"),
        event(EventKind.VERSION_CREATED, version=2, stage="None"),
    ]


def test_a_transition_is_recorded_with_both_stages(registry: Registry) -> None:
    registry.with_versions(1)
    registry.move(1, "production")
    assert registry.new_events() == [
        event(EventKind.STAGE_CHANGED, version=1, stage="Production", previous_stage="None")
    ]


@pytest.mark.parametrize("version", [3, "3"], ids=["integer", "text, as REST hands it over"])
def test_archived_siblings_are_recorded_too(registry: Registry, version: int | str) -> None:
    registry.with_versions(3)
    registry.move(1, "Production")
    registry.move(2, "Production")
    registry.new_events()
    registry.move(version, "Production", archive=True)
    archived = {"stage": "Archived", "previous_stage": "Production"}
    *siblings, last = registry.new_events()
    assert sorted(siblings, key=lambda sibling: sibling.version or 0) == [
        event(EventKind.STAGE_CHANGED, version=1, **archived),
        event(EventKind.STAGE_CHANGED, version=2, **archived),
    ]
    assert last == event(EventKind.STAGE_CHANGED, version=3, stage="Production", previous_stage="None")
    assert registry.stages() == {1: "Archived", 2: "Archived", 3: "Production"}


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("frozen", [False, True], ids=["later", "within one millisecond"])
def test_promoting_what_is_in_production_already_is_recorded_once(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, frozen: bool, archive: bool
) -> None:
    if frozen:
        monkeypatch.setattr(mlflow_store, "get_current_time_millis", lambda: 1_761_903_511_000)
    registry.with_versions(1)
    registry.move(1, "Production")
    registry.new_events()
    registry.move(1, "Production", archive=archive)
    again = event(EventKind.STAGE_CHANGED, version=1, stage="Production", previous_stage="Production")
    assert registry.new_events() == [again]
    registry.move("1", "Production")
    assert registry.new_events() == [again]


def test_what_is_no_change_to_the_bridge_is_not_recorded(registry: Registry) -> None:
    registry.with_versions(1)
    registry.store.update_registered_model(MODEL, "a description")
    registry.store.update_model_version(MODEL, 1, "a description")
    registry.store.set_registered_model_tag(MODEL, RegisteredModelTag("owner", "ada"))
    registry.store.set_model_version_tag(MODEL, 1, ModelVersionTag("supabase.status", "active"))
    registry.store.rename_registered_model(MODEL, MODEL)
    assert registry.new_events() == []


@pytest.mark.parametrize("version", ["one", ""])
def test_a_version_that_is_no_number_is_refused_by_mlflow(registry: Registry, version: str) -> None:
    registry.with_versions(1)
    with pytest.raises(MlflowException) as caught:
        registry.move(version, "Production")
    assert caught.value.get_http_status_code() == 400
    assert registry.new_events() == []


def test_an_alias_is_recorded_when_set_moved_confirmed_and_removed(registry: Registry) -> None:
    registry.with_versions(2)
    champion = {"alias": "champion"}
    registry.store.set_registered_model_alias(MODEL, "champion", 1)
    registry.store.set_registered_model_alias(MODEL, "champion", 2)
    registry.store.set_registered_model_alias(MODEL, "champion", 2)
    registry.store.delete_registered_model_alias(MODEL, "champion")
    assert registry.new_events() == [
        event(EventKind.ALIAS_SET, version=1, **champion),
        event(EventKind.ALIAS_SET, version=2, previous_version=1, **champion),
        event(EventKind.ALIAS_SET, version=2, previous_version=2, **champion),
        event(EventKind.ALIAS_REMOVED, version=2, **champion),
    ]


def test_an_alias_that_rest_sets_is_recorded_with_a_number(sqlite_registry: Registry) -> None:
    sqlite_registry.with_versions(2)
    sqlite_registry.store.set_registered_model_alias(MODEL, "champion", "1")
    sqlite_registry.store.set_registered_model_alias(MODEL, "champion", "2")
    sqlite_registry.store.set_registered_model_alias(MODEL, "champion", "2")
    assert [(found.version, found.previous_version) for found in sqlite_registry.new_events()] == [
        (1, None),
        (2, 1),
        (2, 2),
    ]


def test_a_deleted_version_is_recorded_with_the_stage_it_had_and_its_aliases(registry: Registry) -> None:
    registry.with_versions(2)
    registry.move(1, "Staging")
    registry.store.set_registered_model_alias(MODEL, "champion", 1)
    registry.store.set_registered_model_alias(MODEL, "challenger", 2)
    registry.new_events()
    registry.store.delete_model_version(MODEL, 1)
    assert registry.new_events() == [
        event(EventKind.VERSION_DELETED, version=1, previous_stage="Staging"),
        event(EventKind.ALIAS_REMOVED, version=1, alias="champion"),
    ]


def test_a_deleted_model_is_one_event_whatever_it_had(registry: Registry) -> None:
    registry.with_versions(2)
    registry.store.set_registered_model_alias(MODEL, "champion", 1)
    registry.store.set_registered_model_tag(MODEL, RegisteredModelTag("owner", "ada"))
    registry.new_events()
    registry.store.delete_registered_model(MODEL)
    assert registry.new_events() == [event(EventKind.MODEL_DELETED)]


def test_a_renamed_model_keeps_its_earlier_events(registry: Registry) -> None:
    registry.with_versions(2)
    registry.store.set_registered_model_alias(MODEL, "champion", 1)
    registry.with_versions(1, model="another")
    registry.store.rename_registered_model(MODEL, "three_tower")
    assert registry.new_events() == [event(EventKind.MODEL_RENAMED, model="three_tower", previous_model=MODEL)]
    names = [recorded_event.model for recorded_event in recorded(registry.engine)]
    assert names == ["three_tower", "three_tower", "three_tower", "another", "three_tower"]


def test_prompts_are_not_recorded(registry: Registry) -> None:
    store = registry.store
    store.create_registered_model(MODEL, tags=[RegisteredModelTag(IS_PROMPT_TAG_KEY, "true")])
    store.create_model_version(MODEL, "prompt-template")
    store.create_model_version(MODEL, "prompt-template")
    store.set_registered_model_alias(MODEL, "production", 1)
    store.set_registered_model_alias(MODEL, "production", 2)
    registry.move(1, "Production")
    store.rename_registered_model(MODEL, "greeting")
    store.delete_model_version("greeting", 2)
    store.delete_registered_model("greeting")
    assert registry.new_events() == []


@pytest.mark.parametrize("value", ["false", "True"])
def test_what_mlflow_lists_among_the_models_is_recorded(registry: Registry, value: str) -> None:
    registry.store.create_registered_model(MODEL, tags=[RegisteredModelTag(IS_PROMPT_TAG_KEY, value)])
    assert [model.name for model in registry.store.search_registered_models()] == [MODEL]
    registry.store.create_model_version(MODEL, SOURCE)
    registry.store.delete_registered_model(MODEL)
    assert [found.kind for found in registry.new_events()] == [EventKind.VERSION_CREATED, EventKind.MODEL_DELETED]


def test_a_change_that_fails_after_its_event_was_written_leaves_neither(registry: Registry) -> None:
    registry.with_versions(2)
    registry.move(1, "Production")
    registry.new_events()
    written: list[int] = []

    def fail(connection: Connection) -> None:
        written.append(connection.scalar(sa.select(sa.func.count()).select_from(OUTBOX)) or 0)
        raise RuntimeError("the power is cut")

    before = len(recorded(registry.engine))
    sa.event.listen(registry.engine, "commit", fail)
    try:
        with pytest.raises(MlflowException, match="power is cut"):
            registry.move(2, "Production", archive=True)
    finally:
        sa.event.remove(registry.engine, "commit", fail)
    assert written == [before + 2]
    assert registry.new_events() == []
    assert registry.stages() == {1: "Production", 2: "None"}


def test_a_change_whose_event_cannot_be_written_does_not_happen(registry: Registry) -> None:
    registry.with_versions(1)
    with registry.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE supabase_outbox RENAME TO supabase_outbox_gone"))
    try:
        with pytest.raises(MlflowException):
            registry.move(1, "Production")
    finally:
        with registry.engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE supabase_outbox_gone RENAME TO supabase_outbox"))
    assert registry.stages() == {1: "None"}
