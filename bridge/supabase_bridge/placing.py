"""Put files into a release's directory: what is there already is compared, never replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from enum import Enum

from supabase_bridge.documents import LIMIT_BYTES, FileRecord
from supabase_bridge.errors import (
    InvalidDocumentError,
    ObjectExistsError,
    ObjectNotFoundError,
    ReleaseConflictError,
    StoreUnavailableError,
)
from supabase_bridge.model_file import ModelFile
from supabase_bridge.object_store import BINARY_TYPE, ObjectStore, Progress, PutOptions
from supabase_bridge.object_store.digest import sha256_of

_AT_ONCE = 4
"""How many files of a release are on their way at the same time."""
_TRIES = 4


class Leftovers(Enum):
    """What becomes of a document that an earlier attempt at a release left there.

    `KEPT`: it stays where it is the same document. `REPLACED`: ours goes over it, since whoever can write to the bucket
    may have put it there, and we sign what is there in the end. `REFUSED`: other bytes are a conflict.
    """

    KEPT = "kept"
    REPLACED = "replaced"
    REFUSED = "refused"


def place_all(placing: Mapping[str, Callable[[], FileRecord]]) -> dict[str, FileRecord]:
    """Do all of these, a few at a time, and return what each recorded.

    Raises:
        The first one's error, in their order; the others have ended by then, and nothing is begun after a failure.
    """
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="placing") as pool:
        begun = {name: pool.submit(place) for name, place in placing.items()}
        wait(begun.values(), return_when=FIRST_EXCEPTION)
        for future in begun.values():
            future.cancel()
    failed = [future for future in begun.values() if not future.cancelled() and future.exception() is not None]
    return {name: future.result() for name, future in begun.items() if not failed or future in failed}


def place_file(store: ObjectStore, key: str, file: ModelFile, progress: Progress | None) -> FileRecord:
    """Place a file unless its content is there already: copied within the project where it lies there, else uploaded.

    Raises:
        ReleaseConflictError: other content is there; it is left as it is.
        StoreUnavailableError: what was to be copied was deleted or replaced meanwhile, or what is there comes and goes.
        CorruptObjectError: what came is not what the file's record says.
    """
    for _ in range(_TRIES):
        try:
            _create(store, key, file, progress)
        except ObjectExistsError:
            present = _digest(store, key)
            if present is None:
                continue
            if present != file.record.sha256:
                raise ReleaseConflictError(key, file.record.sha256, present) from None
        return file.record
    raise StoreUnavailableError(store.name, f"creating {key}", "something was there, and gone, again and again")


def _create(store: ObjectStore, key: str, file: ModelFile, progress: Progress | None) -> None:
    options = PutOptions(content_type=BINARY_TYPE, sha256=file.record.sha256, settled=True)
    if file.stored is not None:
        store.copy_in(file.stored.bucket, file.stored.info, key, replace(options, md5=file.stored.md5))
        if progress is not None:
            progress(file.record.size_bytes)
    elif file.path is not None:
        store.create(key, file.path, options, progress)


def place_document(
    store: ObjectStore,
    key: str,
    data: bytes,
    *,
    content_type: str,
    same: Callable[[bytes], bool],
    leftovers: Leftovers = Leftovers.KEPT,
) -> FileRecord:
    """Write a document unless an earlier attempt wrote one, which then stays: the record is of what is there.

    Args:
        same: Whether bytes that are there are this document as an earlier attempt drafted it.

    Raises:
        ReleaseConflictError: something else is there; it is left as it is.
    """
    own = FileRecord.of(data)
    options = PutOptions(content_type=content_type, sha256=own.sha256)
    try:
        store.create(key, data, options)
    except ObjectExistsError:
        found = store.read(key, limit_bytes=LIMIT_BYTES)
        present = FileRecord.of(found)
        if present != own and leftovers is Leftovers.REPLACED:
            store.overwrite(key, data, options)
            return own
        if present != own and (leftovers is Leftovers.REFUSED or not _holds(same, found)):
            raise ReleaseConflictError(key, own.sha256, present.sha256) from None
        return present
    return own


def _holds(same: Callable[[bytes], bool], found: bytes) -> bool:
    try:
        return same(found)
    except InvalidDocumentError:
        return False


def _digest(store: ObjectStore, key: str) -> str | None:
    """The SHA-256 of what is there, read unless its record is sealed: whoever laid it there may have claimed ours."""
    try:
        info = store.stat(key)
        return info.sha256 if info.sealed else sha256_of(store, key, size_bytes=info.size_bytes)
    except ObjectNotFoundError:
        return None
