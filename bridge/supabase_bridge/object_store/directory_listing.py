"""The objects of a bucket that is a directory, found by walking it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from operator import itemgetter
from pathlib import Path

from supabase_bridge.errors import InvalidObjectKeyError
from supabase_bridge.layout import TEMPORARY_PREFIX, check_object_key
from supabase_bridge.object_store import ObjectInfo
from supabase_bridge.object_store.local_files import local_error


def walk(directory: Path, above: str, prefix: str) -> Iterator[ObjectInfo]:
    """The objects below a directory whose key begins with `prefix`, in the order of their bytes.

    Args:
        above: What stands before the names of this directory's files in their keys.

    Raises:
        LocalFileError: a directory cannot be read.
    """
    try:
        with os.scandir(directory) as entries:
            # A folder sorts as "name/": then walking it in order gives whole keys in the order of their bytes.
            named = ((entry.name + "/" * entry.is_dir(follow_symlinks=False), entry) for entry in entries)
            found = sorted(named, key=itemgetter(0))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise local_error(directory, error) from error
    for name, entry in found:
        key = above + name
        if key == TEMPORARY_PREFIX and not prefix.startswith(TEMPORARY_PREFIX):
            continue
        if name.endswith("/"):
            if key.startswith(prefix) or prefix.startswith(key):
                yield from walk(directory / entry.name, key, prefix)
        elif key.startswith(prefix) and _is_key(key):
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    yield info_of(key, entry.stat(follow_symlinks=False))


def info_of(key: str, status: os.stat_result) -> ObjectInfo:
    """What is known of an object by its file."""
    modified_at = datetime.fromtimestamp(status.st_mtime, tz=timezone.utc)
    version = f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"
    return ObjectInfo(key=key, size_bytes=status.st_size, modified_at=modified_at, version=version)


def _is_key(key: str) -> bool:
    """Whether a file can be an object at all; others that lie around are nobody's."""
    try:
        check_object_key(key)
    except InvalidObjectKeyError:
        return False
    return True
