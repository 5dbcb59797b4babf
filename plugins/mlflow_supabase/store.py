"""The entry point of MLflow's registry plugin: from a `supabase+<database>` URI to the store that captures changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

PREFIX = "supabase+"


def build(store_uri: str, tracking_uri: str | None = None) -> SqlAlchemyStore:  # noqa: ARG001 (MLflow passes both by name)
    """Create MLflow's database store for `store_uri` without its prefix, in the variant that captures changes.

    With MLFLOW_ENABLE_WORKSPACES it is the variant for workspaces. Missing tables of MLflow and of the outbox are
    created.
    """
    # MLflow loads this module during `import mlflow`, turns an ImportError into a warning, and later answers every call
    # of the registry with "unknown scheme". An ImportError here reaches the caller of the registry.
    from mlflow_supabase.capture import store_class

    return store_class()(store_uri.removeprefix(PREFIX))
