"""Clean up after interrupted uploads: temporary objects, incomplete releases, stored upload states."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import (
    CLAIMS_PREFIX,
    HISTORY_NAME,
    MANIFEST_NAME,
    META_NAME,
    TEMPORARY_PREFIX,
    ReleasePaths,
    RunId,
)
from supabase_bridge.reconcile.findings import Finding, FindingKind, Remedy
from supabase_bridge.releases.claim import bar_completion
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.storage.errors import ObjectNotFoundError, ObjectTooLargeError
from supabase_bridge.storage.supabase.resumable import forget_stale

_BATCH = 1_000
_RUN_ID_IN_LOG = re.compile(rb"[0-9]{8}T[0-9]{6}Z[A-Za-z0-9._-]{0,80}")
"""A run_id, and the longest suffix that a run_id or a file name can have."""


def clean_up_temporary_objects(store: ObjectStore, *, before: datetime, dry_run: bool) -> Iterator[Finding]:
    """Delete temporary objects that were last written before `before`; all other objects, and needed claims, stay.

    Args:
        before: At least a day ago: a resumed upload may be as old as the server allows.
    """
    batch: list[str] = []
    complete: dict[str, bool] = {}
    for item in store.list(TEMPORARY_PREFIX):
        if item.modified_at >= before or not _is_over(store, item.key, complete):
            continue
        batch.append(item.key)
        if len(batch) == _BATCH:
            yield from _delete_batch(store, batch, dry_run=dry_run)
            batch = []
    yield from _delete_batch(store, batch, dry_run=dry_run)


def _is_over(store: ObjectStore, key: str, complete: dict[str, bool]) -> bool:
    """Return whether a temporary object is needed no more: the claim of an incomplete release stays for good."""
    if not key.startswith(CLAIMS_PREFIX):
        return True
    folder = key.removeprefix(CLAIMS_PREFIX).rpartition("/")[0]
    if folder not in complete:
        try:
            store.stat(f"{folder}/{META_NAME}")
            complete[folder] = True
        except ObjectNotFoundError:
            complete[folder] = False
    return complete[folder]


def _delete_batch(store: ObjectStore, paths: list[str], *, dry_run: bool) -> Iterator[Finding]:
    if paths and not dry_run:
        store.delete(paths)
    for path in paths:
        detail = f"an interrupted upload left it in {store.name}"
        yield Finding(kind=FindingKind.TEMPORARY_KEY, subject=path, detail=detail, remedy=Remedy.DELETED)


@dataclass(frozen=True, kw_only=True)
class LoggedRuns:
    """The runs that the logs and manifests of one model name.

    Attributes:
        places: From each text that looks like a run_id, with its suffix, to the path of the object that contains it.
        unread: Log objects that are too large to read, so the runs in them are unknown.
    """

    model_key: str
    places: Mapping[str, str]
    unread: tuple[str, ...]

    def reason_to_keep(self, run_id: RunId) -> str | None:
        """Why a release may have been current; None: it was not."""
        for text, path in self.places.items():
            if str(run_id) in text:
                return f"{path} names it"
        return f"{self.unread[0]} is too large to be read, and may name it" if self.unread else None


def logged_runs(store: ObjectStore, model_key: str) -> LoggedRuns:
    """Read every log entry and manifest of a model once; an object deleted meanwhile is skipped."""
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


def delete_incomplete_release(
    store: ObjectStore, paths: ReleasePaths, logged: LoggedRuns, *, before: datetime, dry_run: bool
) -> str | None:
    """Delete a release that was never completed and that no version refers to.

    The caller checks that no event is waiting. A mirror that runs at the same moment completes the release before its
    files are deleted, or never: then its version gets another run_id.

    Args:
        logged: The runs in the model's logs. They may be read earlier in this pass: no log names an incomplete release.
        before: Objects written later show that an upload is running.

    Returns:
        Why the release was kept; None: it is deleted.
    """
    found = list(store.list(paths.prefix))
    names = sorted(item.key.removeprefix(paths.prefix) for item in found)
    if META_NAME in names or any(item.modified_at >= before for item in found):
        return "an upload is running"
    if foreign := [name for name in names if not paths.has(name)]:
        return f"no mirror wrote {foreign[0]}"
    if (reason := logged.reason_to_keep(paths.run_id)) is not None:
        return reason
    if not dry_run:
        if not bar_completion(store, paths):
            return "its files passed the checks, and the next mirror completes it"
        store.delete([item.key for item in found])
    return None


def clean_up_upload_states(home: Path, *, before: datetime, dry_run: bool) -> Iterator[Finding]:
    """Delete the stored states of finished or expired uploads in a home directory."""
    for path in forget_stale(home / "uploads", before=before, dry_run=dry_run):
        detail = "the upload that it belongs to is over"
        yield Finding(kind=FindingKind.REMEMBERED_UPLOAD, subject=path.name, detail=detail, remedy=Remedy.DELETED)
