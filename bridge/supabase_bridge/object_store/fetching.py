"""One object on its way into a local file, compared with what the store says of it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from supabase_bridge.documents import FileRecord
from supabase_bridge.errors import CorruptObjectError, StoreUnavailableError
from supabase_bridge.object_store import ObjectInfo, ObjectStore
from supabase_bridge.object_store.digest import is_md5, md5_of
from supabase_bridge.object_store.hashed_output import HashedOutput
from supabase_bridge.object_store.local_files import discard, local_error

_TRIES = 4


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What was fetched: the object as the store describes it, and what the bytes are that came.

    Attributes:
        md5: None where it was neither asked for nor needed to compare.
    """

    info: ObjectInfo
    record: FileRecord
    md5: str | None


def fetch(
    store: ObjectStore, key: str, target: Path, *, info: ObjectInfo | None = None, with_md5: bool = False
) -> Fetched:
    """Write an object to `target`, over what is there: whole and as the store describes it, or not at all.

    Compared are the size, and the SHA-256 that was recorded when the object was written, sealed or not: it is held
    against damage, and whoever could forge it could have written the content too. Where none is recorded the MD5
    counts that an ETag of 32 hex digits is; where it is none, nothing but the size does. What differs is looked at and
    read once more, since it may have been damaged on its way or replaced in between. Constant memory.

    Args:
        info: The object as it was just looked at; None: it is looked at here.
        with_md5: Find the MD5 of what came in any case.

    Raises:
        ObjectNotFoundError: there is no such object.
        CorruptObjectError: what came is not what the store describes, twice.
        StoreUnavailableError: it was replaced while it was read, four times in a row.
        LocalFileError: `target` cannot be written.
    """
    temporary = target.with_name(f".{uuid.uuid4().hex}.part")
    info = store.stat(key) if info is None else info
    suspect: ObjectInfo | None = None
    try:
        for _ in range(_TRIES):
            fetched = _write(store, info, temporary, with_md5=with_md5)
            damage = _damage(store, fetched)
            if damage is None:
                temporary.replace(target)
                return fetched
            if info == suspect:
                raise damage
            suspect, info = info, store.stat(key)
    except OSError as error:
        raise local_error(target, error) from error
    finally:
        discard(temporary)
    raise StoreUnavailableError(store.name, f"reading {key}", "it was replaced again and again meanwhile")


def _write(store: ObjectStore, info: ObjectInfo, path: Path, *, with_md5: bool) -> Fetched:
    """Write what comes to `path`, no more than there should be."""
    md5 = md5_of() if with_md5 or _is_compared_by_etag(info) else None
    with HashedOutput(path) as output:
        for piece in store.stream(info.key, fresh=True):
            output.write(piece)
            if output.size_bytes > info.size_bytes:
                break
            if md5 is not None:
                md5.update(piece)
        return Fetched(info=info, record=output.record(), md5=None if md5 is None else md5.hexdigest())


def _is_compared_by_etag(info: ObjectInfo) -> bool:
    return info.sha256 is None and is_md5(info.etag)


def _damage(store: ObjectStore, fetched: Fetched) -> CorruptObjectError | None:
    """How what came differs from what the store describes."""
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
