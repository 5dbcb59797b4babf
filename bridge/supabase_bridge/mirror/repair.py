"""Repair a release that was complete before: write only files whose bytes have the recorded digests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from supabase_bridge.core.documents import FileRecord, Manifest, Metrics, ModelMeta
from supabase_bridge.core.errors import InvalidDocumentError
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import META_NAME, METRICS_NAME, SIGNATURE_NAME, ReleasePaths
from supabase_bridge.mirror.source_files import ModelFile
from supabase_bridge.mirror.upload import put_all, record_of
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.errors import ReleaseConflictError
from supabase_bridge.storage.base import JSON_TYPE, ObjectStore, Progress, PutOptions, exists
from supabase_bridge.storage.errors import ObjectExistsError, ObjectNotFoundError, ObjectTooLargeError

_ENTRIES_READ = 1_000
"""The number of a log's newest entries in which the record of a release is looked for."""

_BASELINES_TRIED = 20


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What is recorded about a release that was complete before.

    Attributes:
        files: By name. From model_meta.json, or, where that is gone, from a log entry, which records it too.
        meta: The release's model_meta.json; None: it is gone.
        metrics: The release's metrics.json; None: it is gone or damaged.
        baselines: Where `meta` is gone: the releases with which the metrics may have been compared.
        removed: The bytes of `meta`, where retention removed the release, so that it is completed with them.
    """

    files: Mapping[str, FileRecord]
    meta: ModelMeta | None
    metrics: Metrics | None
    baselines: tuple[str | None, ...] = ()
    removed: bytes | None = None


def read_recorded(
    store: ObjectStore, paths: ReleasePaths, raw: bytes | None, channels: Sequence[Channel]
) -> Recorded | None:
    """Read what is recorded about a release; None: it was never complete, as far as anything shows.

    Args:
        raw: The content of its model_meta.json; None: there is none.
        channels: The model's channels; the first is the one whose current release is the baseline.

    Raises:
        InvalidDocumentError: model_meta.json is damaged.
    """
    if raw is not None:
        meta = ModelMeta.parse(raw)
        return Recorded(files=meta.files, meta=meta, metrics=_intact_metrics(store, paths, meta.files))
    for channel in channels:
        entries = list(_entries(channel))
        found = next((i for i, entry in enumerate(entries) if entry.current.run_id == str(paths.run_id)), None)
        if found is not None and META_NAME in (files := entries[found].current.files):
            metrics = _intact_metrics(store, paths, files)
            named = [] if metrics is None else [metrics.baseline_run_id]
            main = entries if channel is channels[0] else list(_entries(channels[0]))
            earlier = [entry.current.run_id for entry in main if entry.current.run_id != str(paths.run_id)]
            baselines = tuple(islice(dict.fromkeys([*named, *earlier]), _BASELINES_TRIED))
            return Recorded(files=files, meta=None, metrics=metrics, baselines=(*baselines, None))
    return None


def recorded_before(store: ObjectStore, paths: ReleasePaths, raw: bytes) -> Recorded:
    """Return what is recorded about a release that retention removed; `raw` was its model_meta.json."""
    meta = ModelMeta.parse(raw)
    files = {**meta.files, META_NAME: FileRecord.of(raw)}
    return Recorded(files=files, meta=meta, metrics=_intact_metrics(store, paths, meta.files), removed=raw)


def put_missing(
    store: ObjectStore,
    paths: ReleasePaths,
    recorded: Recorded,
    made: Mapping[str, ModelFile | bytes],
    progress: Progress | None,
) -> list[str]:
    """Write the missing files whose bytes have the recorded digest, model_meta.json last.

    Returns:
        The names of the missing files that were not written.
    """
    missing = [name for name in recorded.files if name != SIGNATURE_NAME and not exists(store, paths.file(name))]
    wrong = differing(recorded, made)
    files = {name: made[name] for name in missing if name not in wrong and name != META_NAME}
    put_all(store, paths.prefix, files, progress=progress)
    left = [name for name in missing if name in wrong]
    if META_NAME in missing and not left and isinstance(raw := made[META_NAME], bytes):
        try:
            store.create(paths.meta, raw, PutOptions(content_type=JSON_TYPE, sha256=FileRecord.of(raw).sha256))
        except ObjectExistsError:
            if (found := store.read(paths.meta, limit_bytes=LIMIT_BYTES)) != raw:
                raise ReleaseConflictError.of_content(
                    paths.meta, FileRecord.of(raw).sha256, FileRecord.of(found).sha256
                ) from None
    return left


def differing(recorded: Recorded, made: Mapping[str, ModelFile | bytes]) -> set[str]:
    """Return the names of the recorded files that were not made, or have another digest."""
    return {
        name
        for name, record in recorded.files.items()
        if name != SIGNATURE_NAME and (name not in made or record_of(made[name]) != record)
    }


def _entries(channel: Channel) -> Iterator[Manifest]:
    """Yield the entries of a log, the newest first; a deleted entry ends it."""
    entry = channel.read_head().head
    for _ in range(_ENTRIES_READ):
        if entry is None:
            return
        yield entry
        try:
            entry = channel.entry(entry.sequence - 1) if entry.sequence > 1 else None
        except (ObjectNotFoundError, InvalidDocumentError, ObjectTooLargeError):
            return


def _intact_metrics(store: ObjectStore, paths: ReleasePaths, files: Mapping[str, FileRecord]) -> Metrics | None:
    try:
        data = store.read(paths.metrics, limit_bytes=LIMIT_BYTES)
    except (ObjectNotFoundError, ObjectTooLargeError):
        return None
    return Metrics.parse(data) if FileRecord.of(data) == files.get(METRICS_NAME) else None
