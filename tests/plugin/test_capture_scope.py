"""Only changes in the databases of our stores are captured, in each workspace."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow.entities.model_registry import RegisteredModelTag
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY
from mlflow.store.db.base_sql_model import Base
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlRegisteredModel, SqlRegisteredModelAlias
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from mlflow_supabase import capture
from mlflow_supabase.gate import TransitionGate
from supabase_bridge.core.events import EventKind
from supabase_bridge.outbox.schema import ensure_schema
from supabase_bridge.settings.model import Settings
from tests.support.databases import copy_sqlite
from tests.support.registry_stores import MODEL, REGISTRY_TABLES, SOURCE, Registry, event, recorded

HAS_WORKSPACES = find_spec("mlflow.store.model_registry.sqlalchemy_workspace_store") is not None


def test_a_stock_store_of_another_database_records_nothing(sqlite_registry: Registry, tmp_path: Path) -> None:
    copy = tmp_path / "stock.db"
    copy_sqlite(Path(sqlite_registry.engine.url.database or ""), copy)
    stock = SqlAlchemyStore(f"sqlite:///{copy}")
    stock.create_registered_model(MODEL)
    stock.create_model_version(MODEL, SOURCE)
    stock.transition_model_version_stage(MODEL, 1, "Production", archive_existing_versions=False)
    stock.delete_registered_model(MODEL)
    assert recorded(stock.engine) == []
    stock.engine.dispose()


def test_a_stock_store_of_the_same_database_is_captured_as_well(registry: Registry) -> None:
    stock = SqlAlchemyStore(registry.url)
    stock.create_registered_model(MODEL)
    stock.create_model_version(MODEL, SOURCE)
    stock.engine.dispose()
    assert registry.new_events() == [event(EventKind.VERSION_CREATED, version=1, stage="None")]


def test_two_stores_of_one_database_record_each_change_once(registry: Registry) -> None:
    second = Registry(registry.url)
    second.store.create_registered_model(MODEL)
    second.store.create_model_version(MODEL, SOURCE)
    second.engine.dispose()
    assert registry.new_events() == [event(EventKind.VERSION_CREATED, version=1, stage="None")]


def _database(url: str) -> Engine:
    """An engine, with the tables that capture needs in its database."""
    engine = sa.create_engine(url, poolclass=StaticPool)
    Base.metadata.create_all(engine, tables=[Base.metadata.tables[name] for name in REGISTRY_TABLES])
    ensure_schema(engine)
    return engine


def _delete_a_model(engine: Engine) -> None:
    with Session(engine) as session:
        model = SqlRegisteredModel(name=MODEL)
        session.add(model)
        session.commit()
        session.delete(model)
        session.commit()


def test_a_relative_path_and_an_absolute_one_are_the_same_database_wherever_the_process_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = _database("sqlite:///mlflow.db")
    capture.watch(relative, TransitionGate(Settings.for_registry))
    absolute = sa.create_engine(f"sqlite:///{tmp_path / 'mlflow.db'}")
    _delete_a_model(absolute)
    monkeypatch.chdir("/")
    _delete_a_model(relative)
    assert recorded(relative) == [event(EventKind.MODEL_DELETED), event(EventKind.MODEL_DELETED)]
    relative.dispose()
    absolute.dispose()


def test_two_databases_in_memory_are_not_the_same() -> None:
    ours, another = _database("sqlite://"), _database("sqlite://")
    capture.watch(ours, TransitionGate(Settings.for_registry))
    _delete_a_model(another)
    _delete_a_model(ours)
    assert recorded(another) == []
    assert recorded(ours) == [event(EventKind.MODEL_DELETED)]
    ours.dispose()
    another.dispose()


def test_a_rename_that_reaches_loaded_aliases_is_still_one_event() -> None:
    engine = _database("sqlite://")
    capture.watch(engine, TransitionGate(Settings.for_registry))
    with Session(engine) as session:
        session.execute(sa.text("PRAGMA foreign_keys = ON"))
        model: Any = SqlRegisteredModel(name=MODEL)
        session.add_all([model, SqlRegisteredModelAlias(name=MODEL, alias="champion", version=1)])
        session.commit()
        assert [alias.alias for alias in model.registered_model_aliases] == ["champion"]
        model.name = "renamed"
        session.commit()
        assert [alias.name for alias in model.registered_model_aliases] == ["renamed"]
    assert recorded(engine) == [
        event(EventKind.ALIAS_SET, model="renamed", version=1, alias="champion"),
        event(EventKind.MODEL_RENAMED, model="renamed", previous_model=MODEL),
    ]
    engine.dispose()


def test_a_transition_that_takes_several_flushes_is_recorded_once() -> None:
    engine = _database("sqlite://")
    capture.watch(engine, TransitionGate(Settings.for_registry))
    with Session(engine) as session, capture.requested_transition(1):
        version: Any = SqlModelVersion(name=MODEL, version=1, current_stage="Production")
        session.add_all([SqlRegisteredModel(name=MODEL), version])
        session.flush()
        for _ in range(3):
            version.current_stage = "Production"
            session.flush()
        session.commit()
    assert recorded(engine)[1:] == [
        event(EventKind.STAGE_CHANGED, version=1, stage="Production", previous_stage="Production")
    ]
    engine.dispose()


if HAS_WORKSPACES:
    from mlflow.utils.workspace_context import WorkspaceContext

    @pytest.fixture
    def workspaces(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
        """The registry, through a store that knows workspaces."""
        monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
        return Registry(registry.url)

    def test_each_event_names_the_workspace_of_its_change(workspaces: Registry) -> None:
        for name in ("team-a", "team-b"):
            with WorkspaceContext(name):
                workspaces.with_versions(1)
                workspaces.move(1, "Production")
                workspaces.move(1, "Production")
                facts = {"workspace": name, "version": 1, "stage": "Production"}
                assert workspaces.new_events() == [
                    event(EventKind.STAGE_CHANGED, previous_stage="None", **facts),
                    event(EventKind.STAGE_CHANGED, previous_stage="Production", **facts),
                ]

    def test_a_rename_in_one_workspace_leaves_the_events_of_another_alone(workspaces: Registry) -> None:
        for name in ("team-a", "team-b"):
            with WorkspaceContext(name):
                workspaces.with_versions(1)
        with WorkspaceContext("team-a"):
            workspaces.store.rename_registered_model(MODEL, "renamed")
        assert [(found.workspace, found.model) for found in recorded(workspaces.engine)] == [
            ("team-a", "renamed"),
            ("team-b", MODEL),
            ("team-a", "renamed"),
        ]

    def test_a_prompt_in_one_workspace_does_not_hide_a_model_of_its_name_in_another(workspaces: Registry) -> None:
        with WorkspaceContext("team-a"):
            workspaces.store.create_registered_model(MODEL, tags=[RegisteredModelTag(IS_PROMPT_TAG_KEY, "true")])
            workspaces.store.create_model_version(MODEL, "prompt-template")
        with WorkspaceContext("team-b"):
            workspaces.store.create_registered_model(MODEL)
            workspaces.store.create_model_version(MODEL, SOURCE)
        assert [found.workspace for found in workspaces.new_events()] == ["team-b"]

    def test_deleting_a_model_in_one_workspace_does_not_swallow_an_alias_in_another(workspaces: Registry) -> None:
        for name in ("team-a", "team-b"):
            with WorkspaceContext(name):
                workspaces.with_versions(1)
                workspaces.store.set_registered_model_alias(MODEL, "champion", 1)
        workspaces.new_events()
        with WorkspaceContext("team-a"):
            workspaces.store.delete_registered_model(MODEL)
        with WorkspaceContext("team-b"):
            workspaces.store.delete_registered_model_alias(MODEL, "champion")
        assert workspaces.new_events() == [
            event(EventKind.MODEL_DELETED, workspace="team-a"),
            event(EventKind.ALIAS_REMOVED, workspace="team-b", version=1, alias="champion"),
        ]

    def test_deleting_a_model_swallows_only_its_own_aliases_in_the_same_transaction() -> None:
        engine = _database("sqlite://")
        capture.watch(engine, TransitionGate(Settings.for_registry))
        with Session(engine) as session:
            models = [SqlRegisteredModel(workspace=name, name=MODEL) for name in ("team-a", "team-b")]
            aliases = [
                SqlRegisteredModelAlias(workspace=model.workspace, name=MODEL, alias="x", version=1) for model in models
            ]
            session.add_all([*models, *aliases])
            session.commit()
            session.delete(models[0])
            session.delete(aliases[1])
            session.commit()
        assert [(found.kind, found.workspace) for found in recorded(engine)[2:]] == [
            (EventKind.ALIAS_REMOVED, "team-b"),
            (EventKind.MODEL_DELETED, "team-a"),
        ]
        engine.dispose()
