"""What uploads left behind: temporary keys, half-written releases, memories of uploads in the home directory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from supabase_bridge.documents import LIMIT_BYTES
from supabase_bridge.layout import HISTORY_NAME, MANIFEST_NAME, META_NAME, TEMPORARY_PREFIX, ReleaseKeys
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


def sweep_half_written(store: ObjectStore, keys: ReleaseKeys, *, before: datetime, dry_run: bool) -> str | None:
    """Delete a release that nobody finished, and that no version says is its own.

    The caller sees to it that no change is on its way. Should a mirror begin all the same, its release lacks files: no
    pointer moves to it, and the next pass has it mirrored again.

    Args:
        before: Nobody has written to it since.

    Returns:
        Why it stays; None: it is deleted.
    """
    found = list(store.list(keys.prefix))
    names = {item.key.removeprefix(keys.prefix) for item in found}
    if META_NAME in names or any(item.modified_at >= before for item in found):
        return "somebody writes to it"
    if foreign := sorted(names - keys.names):
        return f"no mirror wrote {foreign[0]}"
    for item in store.list(f"{keys.model_key}/"):
        is_log = item.key.endswith(f"/{MANIFEST_NAME}") or f"/{HISTORY_NAME}/" in item.key
        if is_log and str(keys.run_id).encode() in store.read(item.key, limit_bytes=LIMIT_BYTES):
            return f"{item.key} names it"
    if not dry_run:
        store.delete([item.key for item in found])
    return None


def sweep_remembered_uploads(home: Path, *, before: datetime, dry_run: bool) -> Iterator[Finding]:
    """Remove what a home directory remembers of uploads that are over."""
    for path in forget_stale(home / "uploads", before=before, dry_run=dry_run):
        detail = "the upload that it remembers is over"
        yield Finding(kind=FindingKind.REMEMBERED_UPLOAD, subject=path.name, detail=detail, remedy=Remedy.DELETED)
