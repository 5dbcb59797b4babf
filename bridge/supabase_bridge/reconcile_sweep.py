"""What uploads left behind: temporary keys, half-written releases, memories of uploads in the home directory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from supabase_bridge.documents import LIMIT_BYTES
from supabase_bridge.errors import ObjectNotFoundError, ObjectTooLargeError
from supabase_bridge.layout import HISTORY_NAME, MANIFEST_NAME, META_NAME, TEMPORARY_PREFIX, ReleaseKeys, RunId
from supabase_bridge.object_store import ObjectStore
from supabase_bridge.object_store.remembered_uploads import forget_stale
from supabase_bridge.reconcile_findings import Finding, FindingKind, Remedy

_BATCH = 1_000
_RUN_ID_IN_LOG = re.compile(rb"[0-9]{8}T[0-9]{6}Z[A-Za-z0-9._-]{0,80}")
"""A run_id, and as much after it as a run_id or a file's name may have."""


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


@dataclass(frozen=True, kw_only=True)
class LoggedRuns:
    """Which runs the logs and manifests of one model name, and where.

    Attributes:
        places: From what looks like a run_id, with what follows it, to the key of the object in which it stands.
        unread: Log objects that are too large to be any, so that nobody can say whom they name.
    """

    model_key: str
    places: Mapping[str, str]
    unread: tuple[str, ...]

    def names(self, run_id: RunId) -> str | None:
        """Why a run may have been current once; None: it was not."""
        for text, key in self.places.items():
            if str(run_id) in text:
                return f"{key} names it"
        return f"{self.unread[0]} is too large to be read, and may name it" if self.unread else None


def logged_runs(store: ObjectStore, model_key: str) -> LoggedRuns:
    """Read every log and manifest of a model once; one that is gone by then names nobody."""
    places: dict[str, str] = {}
    unread: list[str] = []
    for item in store.list(f"{model_key}/"):
        if item.key.endswith(f"/{MANIFEST_NAME}") or f"/{HISTORY_NAME}/" in item.key:
            try:
                data = store.read(item.key, limit_bytes=LIMIT_BYTES)
            except ObjectNotFoundError:
                continue
            except ObjectTooLargeError:
                unread.append(item.key)
                continue
            for found in _RUN_ID_IN_LOG.findall(data):
                places.setdefault(found.decode(), item.key)
    return LoggedRuns(model_key=model_key, places=places, unread=tuple(unread))


def sweep_half_written(
    store: ObjectStore, keys: ReleaseKeys, logged: LoggedRuns, *, before: datetime, dry_run: bool
) -> str | None:
    """Delete a release that nobody finished, and that no version says is its own.

    The caller sees to it that no change is on its way. Should a mirror begin all the same, its release may lack files:
    no pointer moves to it, its event fails for good, and every pass reports it until somebody has it tried again.

    Args:
        logged: What the model's logs name. It may be from earlier in this pass: no log names what is half-written.
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
    if (reason := logged.names(keys.run_id)) is not None:
        return reason
    if not dry_run:
        store.delete([item.key for item in found])
    return None


def sweep_remembered_uploads(home: Path, *, before: datetime, dry_run: bool) -> Iterator[Finding]:
    """Remove what a home directory remembers of uploads that are over."""
    for path in forget_stale(home / "uploads", before=before, dry_run=dry_run):
        detail = "the upload that it remembers is over"
        yield Finding(kind=FindingKind.REMEMBERED_UPLOAD, subject=path.name, detail=detail, remedy=Remedy.DELETED)
