"""Put files into the folder of a release that this attempt has claimed, straight to their final keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from supabase_bridge.core.documents import FileRecord
from supabase_bridge.mirror.source_files import ModelFile
from supabase_bridge.storage import base
from supabase_bridge.storage.base import ObjectInfo, ObjectStore, Progress, PutOptions, for_each
from supabase_bridge.storage.errors import CorruptObjectError, ObjectExistsError
from supabase_bridge.storage.hashing import hash_body, hash_object

_CONTENT_TYPES = {"json": base.JSON_TYPE, "md": base.MARKDOWN_TYPE, "txt": base.TEXT_TYPE}

_AT_ONCE = 16
"""Most files of a release are small, and need more time for their requests than for their bytes."""


def record_of(file: ModelFile | bytes) -> FileRecord:
    """Return the record of a file of a release."""
    return FileRecord.of(file) if isinstance(file, bytes) else file.record


def has_content(store: ObjectStore, info: ObjectInfo, file: ModelFile | bytes) -> bool:
    """Return whether a listed object has the bytes of a file; its metadata, which any writer can set, prove nothing.

    An ETag that is an MD5 is the server's. Where there is none, the object is read.
    """
    record = record_of(file)
    if info.size_bytes != record.size_bytes:
        return False
    if info.etag is None or not re.fullmatch("[0-9a-f]{32}", info.etag):
        return hash_object(store, info.key, size_bytes=record.size_bytes) == record.sha256
    if isinstance(file, bytes):
        return info.etag == hash_body(file).md5
    return info.etag == (file.stored.md5 if file.stored is not None else hash_body(file.local).md5)


def put_all(
    store: ObjectStore,
    prefix: str,
    files: Mapping[str, ModelFile | bytes],
    *,
    progress: Progress | None = None,
) -> dict[str, ObjectInfo]:
    """Put model files and documents into a release's folder, several at once.

    Args:
        prefix: The release's folder, with a slash at its end.
        files: By name: model files, and the bytes of documents.
        progress: Called with the number of bytes of the model files that moved.

    Returns:
        By key, the objects that the store compared with their files; see `ObjectStore.overwrite`.

    Raises:
        The error of the first file that failed, in their order. No upload starts after a failure, and all have ended.
    """
    written: dict[str, ObjectInfo] = {}

    def put(name: str) -> None:
        if (info := put_file(store, prefix + name, files[name], progress)) is not None:
            written[info.key] = info

    for_each(files, put, at_once=_AT_ONCE)
    return written


def put_file(
    store: ObjectStore, key: str, file: ModelFile | bytes, progress: Progress | None = None
) -> ObjectInfo | None:
    """Write a file to its key: copied within the project if it is stored there, else uploaded.

    Returns:
        See `ObjectStore.overwrite`.

    Raises:
        StoreUnavailableError: the source was deleted or replaced meanwhile.
        CorruptObjectError: the content differs from the file's record.
    """
    if isinstance(file, bytes):
        content_type = base.document_type(key)
        return store.overwrite(key, file, PutOptions(content_type=content_type, sha256=FileRecord.of(file).sha256))
    options = PutOptions(content_type=base.BINARY_TYPE, sha256=file.record.sha256, settled=True)
    if file.stored is None:
        return store.overwrite(key, file.local, options, progress)
    try:
        copied = store.copy_in(file.stored.bucket, file.stored.info, key, replace(options, md5=file.stored.md5))
    except ObjectExistsError:
        # Another attempt with the same claim was faster.
        copied = store.stat(key)
        if not has_content(store, copied, file):
            raise CorruptObjectError(store.name, key, f"SHA-256 {file.record.sha256}", "other bytes") from None
    if progress is not None:
        progress(file.record.size_bytes)
    return copied
