"""A release put into somebody's directory, which is never there half: it holds the release whole, or what it held."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from supabase_bridge.documents import LIMIT_BYTES, ModelMeta
from supabase_bridge.errors import InvalidDocumentError, LocalFileError
from supabase_bridge.layout import META_NAME, SIGNATURE_NAME
from supabase_bridge.object_store.local_files import is_abandoned, local_error

_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_MOUNTED = "something is mounted there, so that no other directory can take its place; name a directory below it"


def deliver(destination: Path, fill: Callable[[Path], None]) -> None:
    """Make `destination` a directory with exactly the files that `fill` puts into it.

    They come together beside it under a temporary name. Where it exists, its old content makes way by one rename
    and the new one comes by another: for that moment there is no `destination`, but there is never a half one. A
    process that is killed in that moment leaves none; the next call makes it.

    Args:
        fill: Puts every file of a release into a new, empty directory.

    Raises:
        LocalFileError: it cannot be written, or not be replaced; or it holds files that are not a release's, which are
            left alone.
        BridgeError: what `fill` raises; `destination` is as it was.
    """
    try:
        _check_replaceable(destination)
        _check_free(destination)
        destination.parent.mkdir(parents=True, exist_ok=True)
        _sweep(destination)
        with _beside(destination, "part") as made:
            _make_beside(destination, made)
            fill(made)
            _check_free(destination)
            with _beside(destination, "old") as old:
                with suppress(FileNotFoundError):
                    destination.rename(old)
                try:
                    made.rename(destination)
                except OSError:
                    with suppress(OSError):
                        old.rename(destination)
                    raise
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise LocalFileError(destination, _MOUNTED) from error
        raise local_error(destination, error) from error


def _check_replaceable(destination: Path) -> None:
    """See that another directory can take its place.

    Raises:
        LocalFileError: none can.
    """
    if destination.name in {"", ".."}:
        raise LocalFileError(
            destination, "it has no name of its own, by which another directory could take its place; name one below it"
        )
    if os.path.ismount(destination):
        raise LocalFileError(destination, _MOUNTED)


def _make_beside(destination: Path, made: Path) -> None:
    try:
        made.mkdir()
    except OSError as error:
        if error.errno not in _NOT_ALLOWED:
            raise
        reason = (error.strerror or str(error)).lower()
        where = "below it" if destination.is_dir() else "in one that can be written"
        raise LocalFileError(
            destination,
            f"a release comes together beside it, and {destination.parent} takes no new directory ({reason}); name a "
            f"directory {where}",
        ) from error


def _check_free(destination: Path) -> None:
    """See that a directory may be replaced: it is missing, empty, or holds nothing but one release.

    Raises:
        LocalFileError: it may not.
    """
    if not destination.exists() and not destination.is_symlink():
        return
    if destination.is_symlink() or not destination.is_dir():
        raise LocalFileError(destination, "it is no directory; name one for the release alone")
    found = {path.relative_to(destination).as_posix() for path in destination.rglob("*") if not path.is_dir()}
    if found - _release_names(destination):
        example = min(found - _release_names(destination))
        raise LocalFileError(
            destination,
            f"it holds {example[:100]!r}, which is no part of a release; name a directory for the release alone",
        )


def link_or_copy(source: Path, target: Path) -> None:
    """A file under another name; its bytes a second time only where the file system has no link for it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _release_names(directory: Path) -> set[str]:
    """The files that a release in this directory consists of, by its own model_meta.json."""
    try:
        with (directory / META_NAME).open("rb") as file:
            meta = ModelMeta.parse(file.read(LIMIT_BYTES + 1))
    except (OSError, InvalidDocumentError):
        return set()
    return {*meta.files, META_NAME, SIGNATURE_NAME}


@contextmanager
def _beside(destination: Path, kind: str) -> Iterator[Path]:
    """A name beside a directory; what is there at the end is removed."""
    path = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}.{kind}")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _sweep(destination: Path) -> None:
    """Remove what killed processes left beside a directory long ago."""
    for kind in ("part", "old"):
        for path in destination.parent.glob(f".{glob.escape(destination.name)}.{'[0-9a-f]' * 32}.{kind}"):
            with suppress(OSError):
                if is_abandoned(path.stat()):
                    shutil.rmtree(path, ignore_errors=True)
