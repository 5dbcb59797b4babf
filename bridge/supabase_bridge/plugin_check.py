"""Does MLflow find our registry store in this environment?"""

from __future__ import annotations

from importlib.metadata import entry_points

from supabase_bridge.config import Settings
from supabase_bridge.errors import PluginMissingError, SettingsError


def check_plugin(settings: Settings) -> None:
    """Check that MLflow finds our registry store for the database in use.

    MLflow itself starts without it, and then answers every registry call with an error.

    Raises:
        PluginMissingError: it does not.
        SettingsError: the database URL has no scheme.
    """
    if "://" not in settings.registry_uri:
        raise SettingsError("SUPABASE_BRIDGE_DATABASE_URL", "expected <kind of database>://...")
    scheme = settings.registry_uri.split("://")[0]
    if scheme not in {point.name for point in entry_points(group="mlflow.model_registry_store")}:
        raise PluginMissingError(scheme)
