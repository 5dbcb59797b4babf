"""One artifact on its way into a local file, compared with what the store says of it."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from supabase_bridge.errors import CorruptObjectError, StoreUnavailableError
from supabase_bridge.object_store import ObjectInfo, ObjectStore
from supabase_bridge.object_store.digest import md5_of
from supabase_bridge.object_store.hashed_output import HashedOutput
from supabase_bridge.object_store.local_files import discard, local_error

_TRIES = 4
_MD5 = re.compile(r"[0-9a-f]{32}")


def download(store: ObjectStore, key: str, target: Path) -> None:
    """Write an object to `target`, over what is there: whole and as the store describes it, or not at all.

    Compared are the size, and the SHA-256 that was recorded when the object was written, sealed or not: it is held
    against damage, and whoever could forge it could have written the content too. Where none is recorded the MD5
    counts that an ETag of 32 hex digits is. One look and one reading; both again where somebody replaced the object
    in between. Constant memory.

    Raises:
        ObjectNotFoundError: there is no such object.
        CorruptObjectError: what came is not what the store describes.
        StoreUnavailableError: it was replaced while it was read, four times in a row.
        LocalFileError: `target` cannot be written.
    """
    temporary = target.with_name(f".{uuid.uuid4().hex}.part")
    info = store.stat(key)
    try:
        for _ in range(_TRIES):
            damage = _fetch(store, info, temporary)
            if damage is None:
                temporary.replace(target)
                return
            before, info = info, store.stat(key)
            if info == before:
                raise damage
    except OSError as error:
        raise local_error(target, error) from error
    finally:
        discard(temporary)
    raise StoreUnavailableError(store.name, f"reading {key}", "it was replaced again and again meanwhile")


def _fetch(store: ObjectStore, info: ObjectInfo, path: Path) -> CorruptObjectError | None:
    """Write what comes to `path`, no more than there should be; how it differs from what the store describes."""
    expected_md5 = info.etag if info.sha256 is None and _MD5.fullmatch(info.etag or "") else None
    md5 = md5_of()
    with HashedOutput(path) as output:
        for piece in store.stream(info.key):
            output.write(piece)
            if output.size_bytes > info.size_bytes:
                break
            if expected_md5 is not None:
                md5.update(piece)
        found = output.record()
    compared = [
        (f"{info.size_bytes} bytes", f"{found.size_bytes} bytes", True),
        (f"SHA-256 {info.sha256}", f"SHA-256 {found.sha256}", info.sha256 is not None),
        (f"MD5 {expected_md5}", f"MD5 {md5.hexdigest()}", expected_md5 is not None),
    ]
    for expected, actual, known in compared:
        if known and expected != actual:
            return CorruptObjectError(store.name, info.key, expected, actual)
    return None
