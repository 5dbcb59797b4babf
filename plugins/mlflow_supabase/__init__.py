"""MLflow's plugins of the bridge: a model registry store that records events, and artifacts at `supabase://` URIs.

Entry points (setup.cfg): `store` (registry store), `signed_urls.open_repository` (scheme `supabase`).
Imports MLflow and `supabase_bridge`, which never imports this package.
"""

# First, and for its effect: this module of MLflow imports the artifact plugin. If a program imported another module of
# this package before MLflow, that import would be circular, and MLflow would silently not register `supabase://`.
import mlflow.store.artifact.artifact_repository_registry  # noqa: F401
