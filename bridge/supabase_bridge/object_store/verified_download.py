"""From an object to a local file that is whole, and the right one, or is not there."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from supabase_bridge.errors import CorruptObjectError
from supabase_bridge.object_store import ObjectStore, Progress
from supabase_bridge.object_store.background_hash import BackgroundHash
from supabase_bridge.object_store.local_files import discard, local_error

_BLOCK_BYTES = 256 * 1024
"""What is written and hashed at a time; the network delivers smaller pieces."""


def download_verified(
    store: ObjectStore, key: str, path: Path, *, sha256: str, progress: Progress | None = None
) -> None:
    """Write an object to `path`, over what is there, once its bytes are known to have this SHA-256.

    Constant memory; connections that break are taken up where they broke (see `ObjectStore.stream`).

    Raises:
        ObjectNotFoundError: there is no such object.
        CorruptObjectError: it has another SHA-256; `path` was not touched.
        LocalFileError: the file cannot be written.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    digest = hashlib.sha256()
    try:
        with temporary.open("xb", buffering=0) as file, BackgroundHash(digest.update) as background:
            for block in _blocks(store.stream(key)):
                background.update(block)
                file.write(block)
                if progress is not None:
                    progress(len(block))
            background.finish()
        if digest.hexdigest() != sha256:
            raise CorruptObjectError(store.name, key, f"SHA-256 {sha256}", f"SHA-256 {digest.hexdigest()}")
        temporary.replace(path)
    except OSError as error:
        raise local_error(path, error) from error
    finally:
        discard(temporary)


def _blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in larger pieces."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _BLOCK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
