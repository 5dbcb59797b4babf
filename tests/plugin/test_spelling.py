"""MySQL and MariaDB compare names without case, so another spelling of a name is the same model."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag

from supabase_bridge.core.events import EventKind
from supabase_bridge.outbox.tables import OUTBOX
from supabase_bridge.reconcile.releases import expected_releases
from supabase_bridge.registry.client import Registry as BridgeRegistry
from supabase_bridge.registry.diff import enqueue_missing_events, find_missing_events
from supabase_bridge.registry.tables import mlflow_tables
from tests.support.registry_stores import MODEL, SOURCE, Registry, event

OTHERWISE = MODEL.upper()
on_mariadb = pytest.mark.parametrize("registry", ["mariadb"], indirect=True)


@on_mariadb
def test_changes_under_another_spelling_are_recorded_under_the_models_own_name(registry: Registry) -> None:
    registry.with_versions(1)
    registry.store.create_model_version(OTHERWISE, SOURCE)
    registry.store.transition_model_version_stage(OTHERWISE, 2, "Production", archive_existing_versions=False)
    registry.store.set_registered_model_alias(OTHERWISE, "champion", 1)
    registry.store.delete_registered_model_alias(OTHERWISE, "champion")
    registry.store.set_registered_model_alias(OTHERWISE, "champion", 2)
    assert registry.new_events() == [
        event(EventKind.VERSION_CREATED, version=2, stage="None"),
        event(EventKind.STAGE_CHANGED, version=2, stage="Production", previous_stage="None"),
        event(EventKind.ALIAS_SET, alias="champion", version=1),
        event(EventKind.ALIAS_REMOVED, alias="champion", version=1),
        event(EventKind.ALIAS_SET, alias="champion", version=2),
    ]
    registry.store.delete_registered_model(OTHERWISE)
    assert registry.new_events() == [event(EventKind.MODEL_DELETED)]


@on_mariadb
def test_nothing_that_is_spelled_otherwise_is_taken_for_another_model_by_a_pass(registry: Registry) -> None:
    registry.with_versions(1)
    registry.store.create_model_version(OTHERWISE, SOURCE)
    registry.store.set_registered_model_alias(OTHERWISE, "champion", 2)
    registry.new_events()
    tables = mlflow_tables(registry.engine)
    assert list(find_missing_events(registry.engine, tables)) == []
    with registry.engine.begin() as connection:
        connection.execute(OUTBOX.delete().where(OUTBOX.c.version == 2))
        connection.execute(sa.text("UPDATE model_versions SET current_stage = 'Production' WHERE version = 2"))
    recorded = list(enqueue_missing_events(registry.engine, tables))
    assert {(item.kind, item.model, item.version) for item in recorded} == {
        (EventKind.STAGE_CHANGED, MODEL, 2),
        (EventKind.VERSION_CREATED, MODEL, 2),
        (EventKind.ALIAS_SET, MODEL, 2),
    }
    assert list(enqueue_missing_events(registry.engine, tables)) == []


@on_mariadb
def test_a_version_that_was_registered_under_another_spelling_is_the_models(registry: Registry) -> None:
    registry.with_versions(1)
    registry.store.create_model_version(OTHERWISE, SOURCE)
    registry.store.set_registered_model_tag(MODEL, RegisteredModelTag("supabase.key", MODEL))
    registry.store.set_model_version_tag(OTHERWISE, 2, ModelVersionTag("supabase.run_id", "20251031T093831Z"))
    ours = BridgeRegistry(tracking_uri=registry.url, registry_uri=registry.url)
    assert ours.version(MODEL, 2).model == MODEL
    assert {version.model for version in ours.versions(MODEL)} == {MODEL}
    tables = mlflow_tables(registry.engine)
    claims = expected_releases(registry.engine, tables, workspace="default", unusable=lambda _: None)
    assert [(claim.model, claim.version) for claim in claims] == [(MODEL, 2)]
