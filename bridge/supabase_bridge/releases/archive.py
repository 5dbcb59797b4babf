"""Copy a release to the bucket of an archive and back, every file with its recorded bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from supabase_bridge.core.documents import FileRecord, ModelMeta
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import ReleasePaths
from supabase_bridge.releases.errors import ReleaseDamagedError
from supabase_bridge.releases.removal import Hold
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.storage import base
from supabase_bridge.storage.base import ObjectStore, PutOptions, for_each
from supabase_bridge.storage.errors import CorruptObjectError, ObjectExistsError, ObjectNotFoundError
from supabase_bridge.storage.hashing import hash_object

_MD5 = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A bucket: its name, by which another bucket's store copies from it, and its store."""

    name: str
    store: ObjectStore


def archive_release(source: Bucket, archive: Bucket, paths: ReleasePaths, meta: ModelMeta, raw: bytes) -> None:
    """Make a complete copy of a release in an archive, and verify every file there. Idempotent.

    Args:
        meta: The release's commit record, and `raw` its bytes.

    Raises:
        ReleaseDamagedError: a file of the release is missing or differs from its record, here or in the archive.
        CorruptObjectError: the archive has another object in the place of a file, or a copy differs.
    """
    _copy(source, archive, paths, meta.files)
    try:
        signature = source.store.read(paths.signature, limit_bytes=LIMIT_BYTES)
        options = PutOptions(content_type=base.JSON_TYPE, sha256=FileRecord.of(signature).sha256)
        archive.store.overwrite(paths.signature, signature, options)
    except ObjectNotFoundError:
        pass
    try:
        archive.store.create(paths.meta, raw, PutOptions(content_type=base.JSON_TYPE, sha256=FileRecord.of(raw).sha256))
    except ObjectExistsError:
        if archive.store.read(paths.meta, limit_bytes=LIMIT_BYTES) != raw:
            expected = FileRecord.of(raw).sha256
            raise CorruptObjectError(archive.store.name, paths.meta, f"SHA-256 {expected}", "other bytes") from None
    verify_release(archive.store, paths)


def restore_release(archive: Bucket, target: Bucket, paths: ReleasePaths, hold: Hold) -> bool:
    """Restore a release that was removed from its copy in an archive; False: the archive has none of all its files.

    The commit record comes last, with the bytes that it had.

    Args:
        hold: The caller's hold on the release.

    Raises:
        ReleaseBusyError: see `Hold.check_no_removal`.
        CorruptObjectError, ReleaseDamagedError: a file in the archive, or in the bucket, differs from its record; the
            release stays removed.
    """
    hold.check_no_removal(paths)
    raw = target.store.read(paths.archived_meta, limit_bytes=LIMIT_BYTES)
    meta = ModelMeta.parse(raw)
    listed = {item.key for item in hold.listed}
    missing = {name: record for name, record in meta.files.items() if paths.file(name) not in listed}
    there = {item.key: item.size_bytes for item in archive.store.list(paths.prefix)}
    if any(there.get(paths.file(name)) != record.size_bytes for name, record in missing.items()):
        return False
    _copy(archive, target, paths, missing)
    if paths.signature not in listed and paths.signature in there:
        signature = archive.store.read(paths.signature, limit_bytes=LIMIT_BYTES)
        options = PutOptions(content_type=base.JSON_TYPE, sha256=FileRecord.of(signature).sha256)
        target.store.overwrite(paths.signature, signature, options)
    complete_again(target.store, paths, raw)
    return True


def complete_again(store: ObjectStore, paths: ReleasePaths, raw: bytes) -> None:
    """Complete a removed release whose files are all there again: put its commit record back where it was.

    Raises:
        ReleaseDamagedError: another release's commit record lies there.
    """
    options = PutOptions(content_type=base.JSON_TYPE, sha256=FileRecord.of(raw).sha256)
    try:
        store.create(paths.meta, raw, options)
    except ObjectExistsError:
        if store.read(paths.meta, limit_bytes=LIMIT_BYTES) != raw:
            problem = "it differs from what was recorded when the release was removed"
            raise ReleaseDamagedError(paths.meta, problem) from None
    store.delete([paths.archived_meta])


def _copy(source: Bucket, target: Bucket, paths: ReleasePaths, files: Mapping[str, FileRecord]) -> None:
    """Copy files between buckets of one project, each compared with its record."""

    def copy(name: str) -> None:
        key, record = paths.file(name), files[name]
        try:
            info = source.store.stat(key)
        except ObjectNotFoundError:
            raise ReleaseDamagedError(f"{source.store.name} {key}", "it is missing") from None
        md5 = info.etag if info.etag is not None and _MD5.fullmatch(info.etag) else None
        known = info.sha256 if info.digest_authenticated or md5 is None else None
        # The copy gets our own record of its digests, so they are measured where another writer may have recorded them.
        found = known or (
            record.sha256 if md5 is None else hash_object(source.store, key, size_bytes=record.size_bytes)
        )
        if (info.size_bytes, found) != (record.size_bytes, record.sha256):
            raise ReleaseDamagedError(f"{source.store.name} {key}", "it differs from what model_meta.json records")
        kind = base.BINARY_TYPE if paths.is_model_file(name) else base.document_type(name)
        options = PutOptions(content_type=kind, sha256=record.sha256, settled=True, md5=md5)
        try:
            target.store.copy_in(source.name, info, key, options)
        except ObjectExistsError:
            if hash_object(target.store, key, size_bytes=record.size_bytes) != record.sha256:
                wanted = f"SHA-256 {record.sha256}"
                raise CorruptObjectError(target.store.name, key, wanted, "other bytes") from None

    for_each(files, copy)
