"""A bucket with two releases, the second one current, laid without MLflow: for attacks on what lies there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timezone

from supabase_bridge.core.documents import FileRecord, Manifest, ModelMeta
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.manual import activate_manually
from supabase_bridge.storage.base import ObjectStore, PutOptions
from tests.support.scene import MODEL

FIRST, SECOND = "20251031T093831Z", "20251101T093831Z"
LATEST = ChannelPaths(model_key=MODEL, channel="latest")
_NOW = datetime(2025, 11, 2, tzinfo=timezone.utc)


def keys_of(run_id: str, model_key: str = MODEL) -> ReleasePaths:
    """The keys of a release."""
    return ReleasePaths(model_key=model_key, run_id=RunId.parse(run_id))


@dataclass(frozen=True)
class Laid:
    """The bucket."""

    store: ObjectStore

    def lay(self, run_id: str, model_key: str = MODEL) -> None:
        """Lay a complete release."""
        keys = keys_of(run_id, model_key)
        names = [keys.onnx_name, keys.state_dict_name, "MLmodel", "metrics.json", "requirements.txt", "summary.md"]
        files = {name: f"{name} of {run_id}, as it was mirrored".encode() for name in names}
        for name, data in files.items():
            self.store.create(keys.file(name), data, PutOptions())
        records = {
            name: FileRecord(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in files.items()
        }
        meta = ModelMeta(model_name=model_key, run_id=run_id, files=records)
        self.store.create(keys.meta, meta.to_bytes(), PutOptions())

    def switch(self, run_id: str) -> None:
        """Make a release current."""
        activate_manually(self.store, LATEST, RunId.parse(run_id), now=_NOW)

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Every object below a prefix, with its bytes."""
        return {info.key: self.store.read(info.key, limit_bytes=10**7) for info in self.store.list(prefix)}

    @property
    def head(self) -> Manifest:
        """The log's newest entry."""
        head = Channel(self.store, LATEST).read_head().head
        assert head is not None
        return head


def lay(store: ObjectStore) -> Laid:
    """Lay both releases, and make first the one, then the other current."""
    store.ensure_bucket()
    laid = Laid(store)
    for run_id in (FIRST, SECOND):
        laid.lay(run_id)
        laid.switch(run_id)
    return laid
