"""The entry point of the model registry store: from a `supabase+<database>` URI to a store that captures changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

PREFIX = "supabase+"


def build(store_uri: str, tracking_uri: str | None = None) -> SqlAlchemyStore:  # noqa: ARG001 (MLflow passes both by name)
    """MLflow's own database store for `store_uri` without its prefix, in the variant that captures changes.

    Where MLFLOW_ENABLE_WORKSPACES is on, it is the variant for workspaces. MLflow's and the outbox's tables are created
    where they are missing.
    """
    # An ImportError here reaches whoever uses the registry; at the top of this module MLflow would make it a warning,
    # then answer every registry call with "unknown scheme".
    from mlflow_supabase.capturing_store import store_class

    return store_class()(store_uri.removeprefix(PREFIX))
