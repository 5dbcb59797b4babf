"""A model registry behind our store, and the events that it records."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import sqlalchemy as sa
from mlflow.store.db.base_sql_model import Base
from sqlalchemy.engine import Engine

from mlflow_supabase.store import build
from supabase_bridge.core.events import DEFAULT_WORKSPACE, EventKind, NewEvent
from supabase_bridge.outbox.tables import OUTBOX

FACTS = [item.name for item in fields(NewEvent) if item.name != "made_by"]
"""What a change is; tests/plugin/test_requester.py is about who made it."""
MODEL = "two_tower"
SOURCE = "s3://bucket/model"
REGISTRY_TABLES = (
    "registered_models",
    "registered_model_tags",
    "registered_model_aliases",
    "model_versions",
    "model_version_tags",
)
"""MLflow's tables, each after the tables that it references."""


def recorded(engine: Engine) -> list[NewEvent]:
    """Return all events of a database's outbox, in order."""
    with engine.connect() as connection:
        columns = [OUTBOX.c[name] for name in FACTS]
        rows = connection.execute(sa.select(*columns).order_by(OUTBOX.c.id)).mappings().all()
    return [_event(dict(row)) for row in rows]


def _event(facts: dict[str, Any]) -> NewEvent:
    return NewEvent(**{**facts, "kind": EventKind(facts["kind"])})


class Registry:
    """One registry. `store` is Any: MLflow does not annotate its stores."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.store: Any = build(f"supabase+{url}")
        self.engine: Engine = self.store.engine
        self._seen = 0

    def new_events(self) -> list[NewEvent]:
        """Return the events since the last call, or since the registry was made."""
        events = recorded(self.engine)
        seen, self._seen = self._seen, len(events)
        return events[seen:]

    def with_versions(self, count: int, model: str = MODEL) -> None:
        """Make a model with this number of versions, and skip the events of their creation."""
        self.store.create_registered_model(model)
        for _ in range(count):
            self.store.create_model_version(model, SOURCE)
        self.new_events()

    def move(self, version: int | str, stage: str, *, archive: bool = False) -> None:
        self.store.transition_model_version_stage(MODEL, version, stage, archive_existing_versions=archive)

    def stages(self) -> dict[int, str]:
        return {version.version: version.current_stage for version in self.store.search_model_versions("")}

    def clear(self) -> None:
        """Delete all models and events, because MLflow needs seconds to make its tables again."""
        with self.engine.begin() as connection:
            for name in reversed(REGISTRY_TABLES):
                connection.execute(Base.metadata.tables[name].delete())
            connection.execute(OUTBOX.delete())
        self._seen = 0


def event(kind: EventKind, **facts: Any) -> NewEvent:
    """Return an event of the model in the default workspace, unless `facts` say otherwise."""
    return NewEvent(**{"kind": kind, "workspace": DEFAULT_WORKSPACE, "model": MODEL, **facts})
