"""Download an object to a verified local file."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from supabase_bridge.core.documents import FileRecord
from supabase_bridge.core.errors import os_errors
from supabase_bridge.storage.base import ObjectInfo, ObjectStore
from supabase_bridge.storage.errors import CorruptObjectError, StoreUnavailableError
from supabase_bridge.storage.hashing import Hasher, HashingWriter
from supabase_bridge.storage.local_files import discard

_TRIES = 4


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A fetched object: its description by the store, and the record of the received bytes.

    Attributes:
        md5: None if it was neither requested nor needed for the comparison.
    """

    info: ObjectInfo
    record: FileRecord
    md5: str | None


def fetch(
    store: ObjectStore, key: str, target: Path, *, info: ObjectInfo | None = None, with_md5: bool = False
) -> Fetched:
    """Write an object to `target`, replacing what is there: whole and as the store describes it, or not at all.

    The size and the recorded SHA-256 are compared, with or without a MAC: this finds damage, and a client that could
    forge the record could have written the content, too. If no SHA-256 is recorded, an ETag of 32 hex digits counts as
    MD5; for another ETag only the size is compared. An object that differs is read once more, because the transfer may
    have damaged it, or another client may have replaced it. Constant memory.

    Args:
        info: The current description of the object; None: it is read here.
        with_md5: Compute the MD5 in any case.

    Raises:
        ObjectNotFoundError: there is no such object.
        CorruptObjectError: the bytes differ from the description, twice.
        StoreUnavailableError: it was replaced while it was read, four times in a row.
        LocalFileError: `target` cannot be written.
    """
    temporary = target.with_name(f".{uuid.uuid4().hex}.part")
    info = store.stat(key) if info is None else info
    suspect: ObjectInfo | None = None
    try:
        with os_errors(target):
            for _ in range(_TRIES):
                fetched = _write(store, info, temporary, with_md5=with_md5)
                damage = _damage(store, fetched)
                if damage is None:
                    temporary.replace(target)
                    return fetched
                if info == suspect:
                    raise damage
                suspect, info = info, store.stat(key)
    finally:
        discard(temporary)
    raise StoreUnavailableError(store.name, f"reading {key}", "it was replaced again and again meanwhile")


def _write(store: ObjectStore, info: ObjectInfo, path: Path, *, with_md5: bool) -> Fetched:
    """Write the object to `path`; a body that is too long is not read to its end."""
    with HashingWriter(path) as output, Hasher(sha256=False, md5=with_md5 or _is_compared_by_etag(info)) as hasher:
        for piece in hasher.through(store.stream(info.key, fresh=True)):
            output.write(piece)
            if output.size_bytes > info.size_bytes:
                break
        return Fetched(info=info, record=output.record(), md5=hasher.digests().md5 or None)


def _is_compared_by_etag(info: ObjectInfo) -> bool:
    """Return True if the ETag is the only digest, and can be an MD5; that of a multipart upload has another form."""
    return info.sha256 is None and re.fullmatch("[0-9a-f]{32}", info.etag or "") is not None


def _damage(store: ObjectStore, fetched: Fetched) -> CorruptObjectError | None:
    """Return how the received bytes differ from the description, if they do."""
    info, found = fetched.info, fetched.record
    compared = [
        (f"{info.size_bytes} bytes", f"{found.size_bytes} bytes", True),
        (f"SHA-256 {info.sha256}", f"SHA-256 {found.sha256}", info.sha256 is not None),
        (f"MD5 {info.etag}", f"MD5 {fetched.md5}", _is_compared_by_etag(info)),
    ]
    for expected, actual, known in compared:
        if known and expected != actual:
            return CorruptObjectError(store.name, info.key, expected, actual)
    return None
