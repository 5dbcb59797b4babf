"""Release logs of any length, written without their releases."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta

from supabase_bridge.core.documents import Cause, CurrentRelease, FileRecord, Manifest, Metrics
from supabase_bridge.core.layout import META_NAME, METRICS_NAME
from supabase_bridge.core.release_log import chained, next_entry
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.trust.signer import NO_SIGNING, SigningPolicy
from tests.support.small_releases import LATEST, NOON, PLAIN, keys_of

WRITERS = ("alice", "bob")


def write_log(
    store: ObjectStore, versions: Sequence[int], *, signing: SigningPolicy = NO_SIGNING, head: Manifest | None = None
) -> Manifest:
    """Write an entry for each version, a minute apart, with the metrics of its release; return the newest entry."""
    for version in versions:
        sequence = 1 if head is None else head.sequence + 1
        cause = Cause(registry_id="ours", event_id=sequence, by=WRITERS[sequence % 2])
        current = release(version, minute=sequence)
        store.overwrite(current.metrics_path, metrics(version), PLAIN)
        entry = next_entry(head, LATEST, current=current, cause=cause, release_notes=f"release {version}")
        assert entry is not None
        head = signing.entry(chained(entry, head), head=head, channel=LATEST)
        store.create(LATEST.history(sequence), head.to_bytes(), PLAIN)
    assert head is not None
    store.overwrite(LATEST.manifest, head.to_bytes(), PLAIN)
    return head


def metrics(version: int) -> bytes:
    return Metrics(run_id=str(keys_of(version).run_id), metrics={"recall@20": version / 10_000}).to_bytes()


def release(version: int, *, minute: int) -> CurrentRelease:
    paths, data = keys_of(version), metrics(version)
    record = FileRecord(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    others = FileRecord(size_bytes=1, sha256=hashlib.sha256(b"x").hexdigest())
    return CurrentRelease(
        run_id=str(paths.run_id),
        published_at=NOON + timedelta(minutes=minute),
        onnx_path=paths.onnx,
        meta_path=paths.meta,
        metrics_path=paths.metrics,
        model_version=version,
        files={META_NAME: others, METRICS_NAME: record, paths.onnx_name: others},
    )
