"""The bridge's MLflow plugins: the model registry store and the artifact repository."""

# First, and for its effect: this module of MLflow loads the artifact plugin while it is imported itself. Whatever of
# this package a program imports before MLflow would make that circular, and leave `supabase://` silently unregistered.
import mlflow.store.artifact.artifact_repository_registry  # noqa: F401
