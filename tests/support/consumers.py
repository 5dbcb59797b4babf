"""Releases for consumers, made without MLflow: the objects of a bucket as the bridge writes them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

from supabase_bridge.core.documents import Cause, CurrentRelease, FileRecord, Manifest, Metrics, ModelMeta
from supabase_bridge.core.layout import META_NAME, METRICS_NAME, ChannelPaths, ReleasePaths, RunId
from supabase_bridge.trust.keys import PrivateKey, TrustedKeys
from supabase_bridge.trust.signer import Signer
from tests.support.simulators.storage import StorageSimulator

MODEL = "two_tower"
BUCKET = "models"
FIRST = "20251031T093831Z"
SECOND = "20251107T101500Z"
PUBLISHED = datetime(2025, 11, 1, 2, 40, 10, tzinfo=timezone.utc)
LATEST = ChannelPaths(model_key=MODEL, channel="latest")


def new_signer() -> Signer:
    return Signer(key=PrivateKey.generate())


def trusting(*signers: Signer) -> TrustedKeys:
    return TrustedKeys.of(signer.public for signer in signers)


class Bucket:
    """Writes releases and manifests as objects.

    Args:
        put: Stores an object, and overwrites one with the same key.
        signer: Signs every manifest; None: they are not signed.
    """

    def __init__(self, put: Callable[[str, bytes], object], *, signer: Signer | None = None) -> None:
        self.put = put
        self.signer = signer
        self.sequence = 0
        self.manifests: dict[str, list[bytes]] = {}

    @classmethod
    def of_simulator(cls, simulator: StorageSimulator, *, signer: Signer | None = None) -> Bucket:
        return cls(lambda key, data: simulator.put_object(BUCKET, key, data), signer=signer)

    @classmethod
    def of_directory(cls, directory: Path, *, signer: Signer | None = None) -> Bucket:
        def put(key: str, data: bytes) -> None:
            path = directory / key
            path.parent.mkdir(parents=True, exist_ok=True)
            # Like the store, so that a reader gets the old content or the new one, never half of it.
            temporary = path.with_name(f".{uuid.uuid4().hex}")
            temporary.write_bytes(data)
            temporary.replace(path)

        return cls(put, signer=signer)

    def release(
        self, run_id: str = FIRST, *, onnx: bytes | None = None, more: Mapping[str, bytes] | None = None
    ) -> None:
        """Write the files of a release."""
        for name, data in self.files(run_id, onnx=onnx, more=more).items():
            self.put(_keys(run_id).file(name), data)

    def files(
        self, run_id: str = FIRST, *, onnx: bytes | None = None, more: Mapping[str, bytes] | None = None
    ) -> dict[str, bytes]:
        """Return the files of a release by name, model_meta.json last."""
        keys = _keys(run_id)
        metrics = Metrics(run_id=run_id, metrics={"auc": 0.9}).to_bytes()
        found = {keys.onnx_name: onnx or f"onnx of {run_id}".encode() * 50, METRICS_NAME: metrics, **(more or {})}
        meta = ModelMeta(
            model_name=MODEL,
            run_id=run_id,
            embedding_dim=256,
            files={name: record(data) for name, data in found.items()},
        )
        return {**found, META_NAME: meta.to_bytes()}

    def manifest(
        self,
        run_id: str = FIRST,
        *,
        sequence: int,
        channel: str = "latest",
        published_at: datetime = PUBLISHED,
        files: Mapping[str, bytes] | None = None,
    ) -> Manifest:
        """Make a manifest, signed if there is a signer, and write it nowhere."""
        keys = _keys(run_id)
        contents = self.files(run_id) if files is None else files
        made = Manifest(
            model_name=MODEL,
            current=CurrentRelease(
                run_id=run_id,
                published_at=published_at,
                onnx_path=keys.onnx,
                meta_path=keys.meta,
                metrics_path=keys.metrics,
                model_version=7,
                **{field: keys.file(name) for field, name in keys.tower_names.items() if name in contents},
                files={name: record(data) for name, data in contents.items()},
            ),
            channel=channel,
            sequence=sequence,
            release_notes="better",
            cause=Cause(by_hand=True),
        )
        return made if self.signer is None else self.signer.sign(made)

    def promote(
        self,
        run_id: str = FIRST,
        *,
        channel: str = "latest",
        published_at: datetime = PUBLISHED,
        onnx: bytes | None = None,
        more: Mapping[str, bytes] | None = None,
    ) -> Manifest:
        """Write a release, and make it current: the log's next entry, and the manifest."""
        self.release(run_id, onnx=onnx, more=more)
        self.sequence += 1
        files = self.files(run_id, onnx=onnx, more=more)
        made = self.manifest(run_id, sequence=self.sequence, channel=channel, published_at=published_at, files=files)
        paths = ChannelPaths(model_key=MODEL, channel=channel)
        self.put(paths.history(self.sequence), made.to_bytes())
        self.put(paths.manifest, made.to_bytes())
        return made


def record(data: bytes) -> FileRecord:
    return FileRecord(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _keys(run_id: str) -> ReleasePaths:
    return ReleasePaths(model_key=MODEL, run_id=RunId.parse(run_id))


class Clock:
    """A time of day that a test moves."""

    def __init__(self, now: datetime = PUBLISHED + timedelta(days=1)) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now
