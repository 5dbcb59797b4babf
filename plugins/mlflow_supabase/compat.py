"""Names that MLflow 3 has for artifact repositories, with empty stand-ins for MLflow 2.22."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow.store.artifact import artifact_repo

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import MultipartDownloadMixin, PresignedUploadMixin, StreamUploadMixin
else:
    # One class for each name: a class cannot be a base twice.
    MultipartDownloadMixin = getattr(artifact_repo, "MultipartDownloadMixin", type("MultipartDownloadMixin", (), {}))
    PresignedUploadMixin = getattr(artifact_repo, "PresignedUploadMixin", type("PresignedUploadMixin", (), {}))
    StreamUploadMixin = getattr(artifact_repo, "StreamUploadMixin", type("StreamUploadMixin", (), {}))

__all__ = [
    "MultipartDownloadMixin",
    "PresignedUploadMixin",
    "StreamUploadMixin",
    "presigned_download",
    "presigned_upload",
]


def presigned_download(url: str, *, size_bytes: int) -> Any:
    """Return MLflow's response to a request for a presigned download; only MLflow 3 makes one."""
    from mlflow.entities.presigned_download import PresignedDownloadUrlResponse

    return PresignedDownloadUrlResponse(url=url, headers={}, file_size=size_bytes)


def presigned_upload(url: str, headers: dict[str, str]) -> Any:
    """Return MLflow's response to a request for a presigned upload; only MLflow 3 makes one."""
    from mlflow.entities.presigned_upload import CreatePresignedUploadResponse

    return CreatePresignedUploadResponse(presigned_url=url, headers=headers)
