"""SHA-256 of objects and of local files, in constant memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

from supabase_bridge.errors import LocalFileError
from supabase_bridge.object_store import ObjectStore

_PIECE_BYTES = 1024 * 1024


def sha256_of(store: ObjectStore, key: str) -> str:
    """Lower-case hex of an object's content, found by reading all of it.

    Raises:
        ObjectNotFoundError: there is no such object.
    """
    digest = hashlib.sha256()
    for piece in store.stream(key):
        digest.update(piece)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Lower-case hex of a local file's content.

    Raises:
        LocalFileError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
    except OSError as error:
        raise LocalFileError(path, f"cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()
