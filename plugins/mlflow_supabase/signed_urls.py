"""The artifact repository in a Supabase project: clients read and write files by signed URLs, past MLflow's server."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from mlflow import environment_variables
from mlflow.entities import multipart_upload
from mlflow.exceptions import _UnsupportedMultipartUploadException
from mlflow.store.artifact.artifact_repo import MultipartUploadMixin

from mlflow_supabase.artifact_errors import as_mlflow_exceptions, invalid
from mlflow_supabase.artifact_repository import SupabaseArtifactRepository, media_type
from mlflow_supabase.compat import MultipartDownloadMixin, PresignedUploadMixin, presigned_download, presigned_upload
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import NO_CACHE, ObjectStore
from supabase_bridge.storage.supabase.store import SigningStore

_DOWNLOAD_LIMIT = timedelta(days=7)
_UPLOAD_LIFETIME = timedelta(hours=2)
"""The lifetime of every upload URL of a hosted project."""


class SigningArtifactRepository(
    SupabaseArtifactRepository, MultipartDownloadMixin, MultipartUploadMixin, PresignedUploadMixin
):
    """A repository in a Supabase project; MLflow's server offers signed URLs only for a repository of these classes.

    Supabase's upload URL takes a whole file, so an upload in parts has exactly one part. MLflow's clients upload in
    parts where the server passes no files through (`--artifacts-presigned-only`).
    """

    def get_download_presigned_url(self, artifact_path: str, expiration: int = 300) -> Any:
        """Return a URL that reads one file without a key.

        Args:
            expiration: Lifetime in seconds, seven days at most, by the server's clock.
        """
        _check_lifetime(expiration, _DOWNLOAD_LIMIT)
        recorded = self.recorded(artifact_path)
        with as_mlflow_exceptions():
            store: ObjectStore = self.store()
            if recorded is not None:
                key, size_bytes = recorded[0], recorded[1].size_bytes
            else:
                key = self.key(artifact_path)
                size_bytes = store.stat(key).size_bytes
            url = _signing(store).signed_url(key, lifetime=timedelta(seconds=expiration))
            return presigned_download(url, size_bytes=size_bytes)

    def create_presigned_upload_url(self, artifact_path: str, expiration: int = 900) -> Any:
        """Return a URL that writes one file without a key, in one PUT request; the last such request wins.

        Args:
            expiration: At most two hours. Supabase has one lifetime for all upload URLs, so the URL may live longer.
        """
        _check_lifetime(expiration, _UPLOAD_LIFETIME)
        return presigned_upload(*self._upload_url(self.key(artifact_path)))

    def _upload_url(self, key: str) -> tuple[str, dict[str, str]]:
        """Return the URL for an upload, and the headers that the client must send."""
        with as_mlflow_exceptions():
            url = _signing(self.store_to_change()).signed_upload_url(key)
        return url, {"content-type": media_type(key.rpartition("/")[2]), "cache-control": NO_CACHE}

    def create_multipart_upload(self, local_file: str, num_parts: int = 1, artifact_path: str | None = None) -> Any:
        """Return the URL for the one part of a file.

        Raises:
            MlflowException: the client wants several parts; unless the server passes no files through, MLflow's client
                then sends the file through the server.
        """
        if num_parts != 1:
            only = getattr(environment_variables, "MLFLOW_ARTIFACTS_PRESIGNED_ONLY", None)  # new in MLflow 3.18
            if only is None or not only.get():
                raise _UnsupportedMultipartUploadException
            raise invalid(
                f"{local_file} would be uploaded in {num_parts} parts, and a Supabase upload URL takes one: set "
                "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE in the client's environment to more bytes than the file has"
            )
        url, headers = self._upload_url(self.key_of_stream(local_file, artifact_path))
        part = multipart_upload.MultipartUploadCredential(url=url, part_number=1, headers=headers)
        return multipart_upload.CreateMultipartUploadResponse(upload_id="one part", credentials=[part])

    def complete_multipart_upload(
        self,
        local_file: str,
        upload_id: str,  # noqa: ARG002 - MLflow's signature
        parts: Sequence[Any] = (),  # noqa: ARG002 - MLflow's signature
        artifact_path: str | None = None,
    ) -> None:
        """Check that the file is there."""
        with as_mlflow_exceptions():
            self.store().stat(self.key_of_stream(local_file, artifact_path))

    def abort_multipart_upload(self, local_file: str, upload_id: str, artifact_path: str | None = None) -> None:
        """Do nothing: a request that failed has stored nothing."""


def _check_lifetime(seconds: int, limit: timedelta) -> None:
    if not timedelta(seconds=1) <= timedelta(seconds=seconds) <= limit:
        raise invalid(f"expiration must be 1 to {limit.total_seconds():.0f} seconds, not {seconds}")


def _signing(store: ObjectStore) -> SigningStore:
    if not isinstance(store, SigningStore):
        raise invalid(f"{store.name} cannot sign URLs")
    return store


def open_repository(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> SupabaseArtifactRepository:
    """Return the repository of a URI; this is MLflow's entry point for `supabase://`.

    Invalid settings raise on the first use of the repository, not here.
    """
    kind: type[SupabaseArtifactRepository] = SupabaseArtifactRepository
    with suppress(BridgeError):
        if not Settings.load(reading=True).embedded:
            kind = SigningArtifactRepository
    return kind(artifact_uri, tracking_uri, registry_uri)
