"""What uploads left behind: temporary keys in the buckets, memories of uploads in the home directory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from supabase_bridge.layout import TEMPORARY_PREFIX
from supabase_bridge.object_store import ObjectStore
from supabase_bridge.object_store.remembered_uploads import forget_stale
from supabase_bridge.reconcile_findings import Finding, FindingKind, Remedy

_BATCH = 1_000


def sweep_temporary_keys(store: ObjectStore, *, before: datetime, dry_run: bool) -> Iterator[Finding]:
    """Delete temporary objects that nobody has written to since `before`; nothing outside their prefix is touched.

    Args:
        before: A day ago at least: an upload that is resumed may be as old as the server lets it become.
    """
    old = (item for item in store.list(TEMPORARY_PREFIX) if item.modified_at < before)
    batch: list[str] = []
    for item in old:
        batch.append(item.key)
        if len(batch) == _BATCH:
            yield from _swept(store, batch, dry_run=dry_run)
            batch = []
    yield from _swept(store, batch, dry_run=dry_run)


def _swept(store: ObjectStore, keys: list[str], *, dry_run: bool) -> Iterator[Finding]:
    if keys and not dry_run:
        store.delete(keys)
    for key in keys:
        detail = f"an upload left it in {store.name}"
        yield Finding(kind=FindingKind.TEMPORARY_KEY, subject=key, detail=detail, remedy=Remedy.DELETED)


def sweep_remembered_uploads(home: Path, *, before: datetime, dry_run: bool) -> Iterator[Finding]:
    """Remove what a home directory remembers of uploads that are over."""
    for path in forget_stale(home / "uploads", before=before, dry_run=dry_run):
        detail = "the upload that it remembers is over"
        yield Finding(kind=FindingKind.REMEMBERED_UPLOAD, subject=path.name, detail=detail, remedy=Remedy.DELETED)
