"""A real MLflow server whose registry is our store."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from supabase_bridge.core.events import EventKind
from tests.support.databases import copy_server_database
from tests.support.mlflow_server import own_server
from tests.support.registry_stores import MODEL, SOURCE, event, recorded


def test_a_promotion_through_rest_is_in_the_outbox_when_the_server_answers(
    empty_database: Path, tmp_path: Path
) -> None:
    database = tmp_path / "mlflow.db"
    copy_server_database(empty_database, database)
    promotion = {"name": MODEL, "version": "2", "stage": "Production", "archive_existing_versions": True}
    with own_server(database) as server:
        server.post("registered-models/create", name=MODEL)
        server.post("model-versions/create", name=MODEL, source=SOURCE)
        server.post("model-versions/create", name=MODEL, source=SOURCE)
        server.post("model-versions/transition-stage", **{**promotion, "version": "1"})
        server.post("model-versions/transition-stage", **promotion)
        server.post("model-versions/transition-stage", **promotion)
    engine = sa.create_engine(f"sqlite:///{database}")
    production = {"stage": "Production"}
    assert recorded(engine) == [
        event(EventKind.VERSION_CREATED, version=1, stage="None"),
        event(EventKind.VERSION_CREATED, version=2, stage="None"),
        event(EventKind.STAGE_CHANGED, version=1, previous_stage="None", **production),
        event(EventKind.STAGE_CHANGED, version=1, previous_stage="Production", stage="Archived"),
        event(EventKind.STAGE_CHANGED, version=2, previous_stage="None", **production),
        event(EventKind.STAGE_CHANGED, version=2, previous_stage="Production", **production),
    ]
    engine.dispose()
