"""What MLflow 3 offers artifact repositories and MLflow 2.22 does not: there, the same names without a meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow.store.artifact import artifact_repo

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import MultipartDownloadMixin, StreamUploadMixin
else:
    # A class of its own for each: one class cannot be a base twice.
    MultipartDownloadMixin = getattr(artifact_repo, "MultipartDownloadMixin", type("MultipartDownloadMixin", (), {}))
    StreamUploadMixin = getattr(artifact_repo, "StreamUploadMixin", type("StreamUploadMixin", (), {}))

__all__ = ["MultipartDownloadMixin", "StreamUploadMixin", "presigned_download"]


def presigned_download(url: str, *, size_bytes: int) -> Any:
    """MLflow's answer to who asked for a presigned download; only an MLflow that has it asks."""
    from mlflow.entities.presigned_download import PresignedDownloadUrlResponse

    return PresignedDownloadUrlResponse(url=url, headers={}, file_size=size_bytes)
