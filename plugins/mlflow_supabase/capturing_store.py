"""MLflow's database store of the model registry, made to capture every change and to refuse what a gate refuses."""

from __future__ import annotations

from typing import Any

from mlflow import environment_variables
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from mlflow_supabase import capture
from mlflow_supabase.gate import TransitionGate
from supabase_bridge.config import Settings
from supabase_bridge.outbox.schema import ensure_schema


class CapturingStore(SqlAlchemyStore):
    """MLflow's store; what it changes is judged and recorded in the same database, in the same transaction."""

    def __init__(self, db_uri: str) -> None:
        super().__init__(db_uri)  # type: ignore[no-untyped-call]  # MLflow does not annotate it
        ensure_schema(self.engine)
        capture.watch(self.engine, TransitionGate(Settings.for_registry))

    def transition_model_version_stage(
        self, name: str, version: int | str, stage: str, archive_existing_versions: bool
    ) -> Any:
        """Move a version to a stage, as MLflow does; recorded even where the version is in that stage already."""
        version = _number(version)
        with capture.transition_asked_for(version):
            return super().transition_model_version_stage(  # type: ignore[no-untyped-call]  # MLflow does not annotate it
                name, version, stage, archive_existing_versions
            )


def _number(version: int | str) -> int | str:
    """REST hands a version over as a text, which MLflow compares with an integer column; psycopg 3 refuses that.

    What is no number is handed on: MLflow refuses it in its own words.
    """
    try:
        return int(version)
    except ValueError:
        return version


def store_class() -> type[CapturingStore]:
    """The class for this MLflow and its settings; MLflow before 3 has no workspaces."""
    switch = getattr(environment_variables, "MLFLOW_ENABLE_WORKSPACES", None)
    if switch is None or not switch.get():
        return CapturingStore
    from mlflow.store.model_registry.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore

    class CapturingWorkspaceStore(CapturingStore, WorkspaceAwareSqlAlchemyStore):
        """The same for workspaces: the workspace is that of the request."""

    return CapturingWorkspaceStore
