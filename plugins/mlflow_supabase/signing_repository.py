"""The artifact repository where the store can sign URLs, so that MLflow's clients may download past its server."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from mlflow_supabase.artifact_errors import as_mlflow_exceptions, invalid
from mlflow_supabase.artifact_repository import SupabaseArtifactRepository
from mlflow_supabase.mlflow_features import MultipartDownloadMixin, presigned_download
from supabase_bridge.config import Settings
from supabase_bridge.errors import BridgeError
from supabase_bridge.object_store import ObjectStore
from supabase_bridge.object_store.signing import SigningStore

_LIFETIME_LIMIT = timedelta(days=7)


class SigningArtifactRepository(SupabaseArtifactRepository, MultipartDownloadMixin):
    """A repository in a Supabase project. MLflow's server offers signed URLs by what class its repository is of."""

    def get_download_presigned_url(self, artifact_path: str, expiration: int = 300) -> Any:
        """A URL that reads one file without a key.

        Args:
            expiration: Seconds from now for which it is good, seven days at most; they are the server's to count.
        """
        lifetime = timedelta(seconds=expiration)
        if not timedelta(seconds=1) <= lifetime <= _LIFETIME_LIMIT:
            raise invalid(f"expiration must be 1 to {_LIFETIME_LIMIT.total_seconds():.0f} seconds, not {expiration}")
        recorded = self._recorded(artifact_path)
        with as_mlflow_exceptions():
            store: ObjectStore = self._store()
            if recorded is not None:
                key, size_bytes = recorded[0], recorded[1].size_bytes
            else:
                key = self._key(artifact_path)
                size_bytes = store.stat(key).size_bytes
            if not isinstance(store, SigningStore):
                raise invalid(f"{store.name} signs no URLs")
            return presigned_download(store.signed_url(key, lifetime=lifetime), size_bytes=size_bytes)


def open_repository(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> SupabaseArtifactRepository:
    """The repository of a URI: MLflow's entry point for `supabase://`.

    Broken settings are told by the first use of the repository, not by its making.
    """
    try:
        embedded = Settings.load().embedded
    except BridgeError:
        embedded = True
    kind = SupabaseArtifactRepository if embedded else SigningArtifactRepository
    return kind(artifact_uri, tracking_uri, registry_uri)
