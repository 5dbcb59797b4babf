"""What no event says, found and recorded on each database, beside a server that captures."""

from __future__ import annotations

import sqlalchemy as sa

from supabase_bridge.core.events import EventKind
from supabase_bridge.outbox.tables import OUTBOX
from supabase_bridge.reconcile.findings import Finding
from supabase_bridge.reconcile.releases import expected_releases
from supabase_bridge.registry.diff import enqueue_missing_events, find_missing_events
from supabase_bridge.registry.tables import mlflow_tables
from tests.support.registry_stores import MODEL, SOURCE, Registry, event

STAGE = sa.text("UPDATE model_versions SET current_stage = :stage WHERE version = :version")


def reconcile(registry: Registry) -> None:
    assert [item.event for item in find_missing_events(registry.engine, mlflow_tables(registry.engine))] == list(
        enqueue_missing_events(registry.engine, mlflow_tables(registry.engine))
    )


def test_every_way_in_which_sql_can_change_a_registry_is_recorded(registry: Registry) -> None:
    registry.with_versions(3)
    registry.store.set_registered_model_alias(MODEL, "champion", 1)
    registry.store.set_registered_model_alias(MODEL, "old", 1)
    registry.store.create_registered_model("gone")
    registry.store.create_model_version("gone", SOURCE)
    registry.new_events()
    with registry.engine.begin() as connection:
        connection.execute(STAGE, {"stage": "Production", "version": 2})
        connection.execute(STAGE, {"stage": "Deleted_Internal", "version": 3})
        connection.execute(sa.text("UPDATE registered_model_aliases SET version = 2 WHERE alias = 'champion'"))
        connection.execute(sa.text("DELETE FROM registered_model_aliases WHERE alias = 'old'"))
        connection.execute(sa.text("DELETE FROM model_versions WHERE name = 'gone'"))
        connection.execute(sa.text("DELETE FROM registered_models WHERE name = 'gone'"))
    reconcile(registry)
    assert registry.new_events() == [
        event(EventKind.MODEL_DELETED, model="gone"),
        event(EventKind.STAGE_CHANGED, version=2, stage="Production", previous_stage="None"),
        event(EventKind.VERSION_DELETED, version=3, previous_stage="None"),
        event(EventKind.ALIAS_SET, alias="champion", version=2, previous_version=1),
        event(EventKind.ALIAS_REMOVED, alias="old", version=1),
    ]
    reconcile(registry)
    assert registry.new_events() == []


def test_versions_without_any_event_are_recorded_in_their_stage(registry: Registry) -> None:
    registry.with_versions(2)
    with registry.engine.begin() as connection:
        connection.execute(STAGE, {"stage": "Staging", "version": 1})
        connection.execute(OUTBOX.delete())
    registry.new_events()
    reconcile(registry)
    with registry.engine.connect() as connection:
        rows = connection.execute(sa.select(OUTBOX.c.kind, OUTBOX.c.version, OUTBOX.c.stage).order_by(OUTBOX.c.id))
        assert [tuple(row) for row in rows] == [
            ("stage_changed", 1, "Staging"),
            ("version_created", 1, "Staging"),
            ("version_created", 2, "None"),
        ]


def test_a_version_that_somebody_is_changing_is_left_to_the_next_pass(registry: Registry) -> None:
    registry.with_versions(2)
    with registry.engine.begin() as connection:
        for version in (1, 2):
            connection.execute(STAGE, {"stage": "Staging", "version": version})
    if registry.engine.dialect.name == "sqlite":
        # There one transaction writes at a time, and a pass waits for it.
        reconcile(registry)
        return
    # MariaDB's default locks every row that it looks at on the way.
    with registry.engine.execution_options(isolation_level="READ COMMITTED").begin() as held:
        held.execute(STAGE, {"stage": "Production", "version": 2})
        recorded = list(enqueue_missing_events(registry.engine, mlflow_tables(registry.engine)))
        assert [(item.version, item.stage) for item in recorded] == [(1, "Staging")]
    reconcile(registry)
    assert [(item.version, item.stage) for item in registry.new_events()] == [(1, "Staging"), (2, "Production")]


def test_releases_come_in_the_order_of_their_keys_bytes(registry: Registry) -> None:
    names = ["Other", "model", "model a", "model-b", "model.c", "model_d"]
    for name in names:
        registry.store.create_registered_model(name)
        registry.store.create_model_version(name, SOURCE)
    keys = {name: f"{name}{position}" for position, name in enumerate(names)}
    keys |= {"model": "m", "model a": "m a", "model-b": "m-b", "Other": "M"}
    with registry.engine.begin() as connection:
        for name, key in keys.items():
            values = {"name": name, "key": key}
            model_tag = "INSERT INTO registered_model_tags (name, {0}, value) VALUES (:name, 'supabase.key', :key)"
            version_tag = (
                "INSERT INTO model_version_tags (name, version, {0}, value) "
                "VALUES (:name, 1, 'supabase.run_id', '20251031T093831Z')"
            )
            column = registry.engine.dialect.identifier_preparer.quote("key")
            connection.execute(sa.text(model_tag.format(column)), values)
            connection.execute(sa.text(version_tag.format(column)), values)
    tables, unusable = mlflow_tables(registry.engine), list[Finding]()
    claims = expected_releases(registry.engine, tables, workspace="default", unusable=unusable.append)
    found = [claim.paths.prefix for claim in claims]
    assert unusable == []
    assert found == sorted(found, key=str.encode)
    assert len(found) == len(names)
