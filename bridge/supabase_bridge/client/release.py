"""A release, and the record (size and SHA-256) that each of its files must match. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

from supabase_bridge.core.documents import FileRecord, Manifest, ModelMeta
from supabase_bridge.core.layout import META_NAME, ReleasePaths, RunId


@dataclass(frozen=True, kw_only=True)
class Release:
    """One release of a model.

    Attributes:
        model: The model's folder in the bucket.
        run_id: The release's identity.
        files: The record of every file (`size_bytes`, `sha256`) by its name.
        signed: Whether a trusted key's signature covers these records.
        channel: The channel that names it. None: the caller asked for the run_id.
        sequence: The place of the manifest in the channel's log.
        published_at: The time at which it became current there.
        model_version: The version of the registered model that it was made from.
        release_notes: The description of the version.
    """

    model: str
    run_id: str
    files: Mapping[str, FileRecord]
    signed: bool
    channel: str | None = None
    sequence: int | None = None
    published_at: datetime | None = None
    model_version: int | None = None
    release_notes: str | None = None

    @property
    def paths(self) -> ReleasePaths:
        """The paths of its files in the bucket."""
        return ReleasePaths(model_key=self.model, run_id=RunId.parse(self.run_id))

    @property
    def onnx_name(self) -> str:
        """The name of the file for inference."""
        return self.paths.onnx_name

    @property
    def onnx_path(self) -> str:
        """The path of the file for inference, relative to the bucket."""
        return self.paths.onnx

    @property
    def user_onnx_name(self) -> str | None:
        """The name of the file that computes user embeddings alone; None if the release has none."""
        return self._if_recorded(self.paths.tower_name("user"))

    @property
    def item_onnx_name(self) -> str | None:
        """The name of the file that computes item embeddings alone; None if the release has none."""
        return self._if_recorded(self.paths.tower_name("item"))

    @property
    def meta_path(self) -> str:
        """The path of model_meta.json, relative to the bucket."""
        return self.paths.meta

    @property
    def metrics_path(self) -> str:
        """The path of metrics.json, relative to the bucket."""
        return self.paths.metrics

    def _if_recorded(self, name: str) -> str | None:
        return name if name in self.files else None

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(record.size_bytes for record in self.files.values())

    @property
    def content_id(self) -> str:
        """A digest of all names, sizes and hashes: equal contents have equal ids."""
        lines = [f"{record.sha256} {record.size_bytes} {name}\n" for name, record in sorted(self.files.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class PulledRelease:
    """A release whose files were downloaded and verified.

    Attributes:
        directory: The directory that has them.
        files: Their paths by name.
    """

    release: Release
    directory: Path
    files: Mapping[str, Path]

    @property
    def onnx(self) -> Path:
        """The file for inference."""
        return self.files[self.release.onnx_name]


def of_manifest(manifest: Manifest, *, signed: bool, files: Mapping[str, FileRecord] | None = None) -> Release:
    """Return the release that a verified manifest names; `files` if the manifest itself records none."""
    current = manifest.current
    return Release(
        model=manifest.model_name,
        run_id=current.run_id,
        files=MappingProxyType(dict(current.files if files is None else files)),
        signed=signed,
        channel=manifest.channel,
        sequence=manifest.sequence,
        published_at=current.published_at,
        model_version=current.model_version,
        release_notes=manifest.release_notes,
    )


def of_meta(raw: bytes, paths: ReleasePaths) -> Release:
    """Return the release that its own model_meta.json records; no signature is checked.

    Raises:
        InvalidDocumentError: it is malformed, another release's, or names a file outside the release's directory.
    """
    meta = ModelMeta.parse(raw)
    meta.check_identity(paths)
    meta.check_file_names(paths)
    files = {**meta.files, META_NAME: FileRecord.of(raw)}
    return Release(
        model=paths.model_key,
        run_id=str(paths.run_id),
        files=MappingProxyType(files),
        signed=False,
        model_version=None if meta.mlflow is None else meta.mlflow.version,
    )
