"""A release as a consumer sees it: what it is, and the record that each of its files must match. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

from supabase_bridge.documents import FileRecord, Manifest, ModelMeta
from supabase_bridge.errors import InvalidDocumentError, InvalidObjectKeyError
from supabase_bridge.layout import META_NAME, ReleaseKeys, RunId, check_object_key


@dataclass(frozen=True, kw_only=True)
class Release:
    """One release of a model.

    Attributes:
        model: The model's folder in the bucket.
        run_id: The release's identity.
        files: The record of every file (`size_bytes`, `sha256`) by its name.
        signed: Whether a trusted key's signature covers these records.
        channel: The channel that names it; None where the release was asked for itself.
        sequence: The place of the manifest in the channel's log.
        published_at: When it became current there.
        model_version: The registered model's version it was made from.
        release_notes: What changed, for people.
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
    def keys(self) -> ReleaseKeys:
        """Where its files are in the bucket."""
        return ReleaseKeys(model_key=self.model, run_id=RunId.parse(self.run_id))

    @property
    def onnx_name(self) -> str:
        """The name of the file for inference."""
        return self.keys.onnx_name

    @property
    def onnx_path(self) -> str:
        """The file for inference, relative to the bucket."""
        return self.keys.onnx

    @property
    def meta_path(self) -> str:
        """model_meta.json, relative to the bucket."""
        return self.keys.meta

    @property
    def metrics_path(self) -> str:
        """metrics.json, relative to the bucket."""
        return self.keys.metrics

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(record.size_bytes for record in self.files.values())

    @property
    def content_id(self) -> str:
        """One digest of all names, sizes and digests: equal contents have equal ids."""
        lines = [f"{record.sha256} {record.size_bytes} {name}\n" for name, record in sorted(self.files.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class PulledRelease:
    """A release whose files are here, each one as recorded.

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
    """The release that an accepted manifest names; `files` where the manifest itself records none."""
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


def of_meta(raw: bytes, keys: ReleaseKeys) -> Release:
    """The release that its own model_meta.json records; nothing vouches for that.

    Raises:
        InvalidDocumentError: it is malformed, another release's, or names a file outside the release's directory.
    """
    meta = ModelMeta.parse(raw)
    if (meta.model_name, meta.run_id) != (keys.model_key, str(keys.run_id)):
        raise InvalidDocumentError(keys.meta, "it names another model or run_id than its key")
    own = FileRecord.of(raw)
    files = {**meta.files, META_NAME: own}
    for name in files:
        try:
            check_object_key(keys.file(name))
        except InvalidObjectKeyError as error:
            raise InvalidDocumentError(keys.meta, f"files: {error}"[:300]) from error
    return Release(
        model=keys.model_key,
        run_id=str(keys.run_id),
        files=MappingProxyType(files),
        signed=False,
        model_version=None if meta.mlflow is None else meta.mlflow.version,
    )


def vouched(manifest: Manifest) -> bool:
    """Whether a manifest records the release's files itself."""
    return META_NAME in manifest.current.files
