"""Small complete releases of one model, written without a training, and their channel."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from supabase_bridge.core.documents import Cause, FileRecord, Manifest, Metrics, ModelMeta, Origin
from supabase_bridge.core.layout import METRICS_NAME, ChannelPaths, ReleasePaths, RunId
from supabase_bridge.releases.channel import Channel
from supabase_bridge.storage.base import ObjectStore, PutOptions

LATEST = ChannelPaths(model_key="two_tower", channel="latest")
NOON = datetime(2025, 11, 1, 12, tzinfo=timezone.utc)
PLAIN = PutOptions()


def event(number: int, registry: str = "ours") -> Cause:
    return Cause(registry_id=registry, event_id=number)


def run_id(number: int) -> RunId:
    return RunId(time=datetime(2025, 10, 1, tzinfo=timezone.utc) + timedelta(days=number))


def keys_of(number: int) -> ReleasePaths:
    return ReleasePaths(model_key="two_tower", run_id=run_id(number))


def lay_out(store: ObjectStore, number: int, *, towers: Sequence[str] = (), **extra: Any) -> None:
    """Write a small complete release of version `number`; `extra` goes into its model_meta.json."""
    keys = keys_of(number)
    contents = {
        keys.onnx_name: f"onnx {number}".encode(),
        **{keys.tower_name(tower): f"{tower} tower {number}".encode() for tower in towers},
        METRICS_NAME: Metrics(run_id=str(keys.run_id), metrics={"auc": 0.9}).to_bytes(),
    }
    for name, data in contents.items():
        store.create(keys.file(name), data, PLAIN)
    meta = ModelMeta(
        model_name="two_tower",
        run_id=str(keys.run_id),
        files={
            name: FileRecord(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in contents.items()
        },
        mlflow=Origin(registered_model="two_tower", version=number),
        **extra,
    )
    store.create(keys.meta, meta.to_bytes(), PLAIN)


def published(store: ObjectStore) -> bytes:
    return store.read(LATEST.manifest, limit_bytes=1_000_000)


def named(store: ObjectStore) -> list[int | None]:
    """Return the versions that the published manifest names: the current one, then the previous ones."""
    manifest = Manifest.parse(published(store))
    return [manifest.current.model_version, *(pointer.model_version for pointer in manifest.previous)]


def entries(store: ObjectStore) -> list[Manifest]:
    log = Channel(store, LATEST)
    sequences = [LATEST.sequence_of(info.key) for info in store.list(LATEST.history_prefix)]
    return [log.entry(sequence) for sequence in sequences if sequence is not None]
