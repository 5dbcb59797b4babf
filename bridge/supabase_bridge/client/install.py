"""Replace a directory by the files of a release, as a whole."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from supabase_bridge.core.documents import ModelMeta
from supabase_bridge.core.errors import InvalidDocumentError, LocalFileError
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import META_NAME, SIGNATURE_NAME
from supabase_bridge.storage.local_files import is_abandoned, local_error

_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_MOUNTED = "something is mounted there, so that no other directory can take its place; name a directory below it"


def install(destination: Path, fill: Callable[[Path], None]) -> None:
    """Make `destination` a directory with exactly the files that `fill` puts into it.

    The files are written to a temporary directory beside it. One rename moves the old directory away, and another one
    moves the new directory into place. `destination` never has a part of a release. A process that is killed between
    the renames leaves no `destination`; the next call makes it.

    Args:
        fill: Puts every file of a release into a new, empty directory.

    Raises:
        LocalFileError: it cannot be written or replaced, or it holds other files than a release's.
        BridgeError: an error of `fill`; `destination` is unchanged.
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
    """Refuse a destination that another directory cannot replace."""
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
            f"a release is prepared beside it, and no directory can be made in {destination.parent} ({reason}); name a "
            f"directory {where}",
        ) from error


def _check_free(destination: Path) -> None:
    """Refuse a destination that is neither missing, nor empty, nor a directory with only one release."""
    if not destination.exists() and not destination.is_symlink():
        return
    if destination.is_symlink() or not destination.is_dir():
        raise LocalFileError(destination, "it is no directory; name one for the release alone")
    expected = _release_names(destination)
    if (example := _foreign(destination, "", expected)) is not None:
        raise LocalFileError(
            destination,
            f"it holds {example[:100]!r}, which is no part of a release; name a directory for the release alone",
        )


def _foreign(directory: Path, below: str, expected: set[str]) -> str | None:
    """Return an entry that is no part of a release; no folder is read in which a release has no file."""
    with os.scandir(directory) as entries:
        for entry in entries:
            name = below + entry.name
            if not entry.is_dir(follow_symlinks=False):
                if name not in expected:
                    return name
            elif not any(item.startswith(f"{name}/") for item in expected):
                return name
            elif (inner := _foreign(Path(entry.path), f"{name}/", expected)) is not None:
                return inner
    return None


def link_or_copy(source: Path, target: Path) -> None:
    """Link a file under another name; copy it if the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _release_names(directory: Path) -> set[str]:
    """Return the names of a release's files in this directory, by its model_meta.json."""
    try:
        with (directory / META_NAME).open("rb") as file:
            meta = ModelMeta.parse(file.read(LIMIT_BYTES + 1))
    except (OSError, InvalidDocumentError):
        return set()
    return {*meta.files, META_NAME, SIGNATURE_NAME}


@contextmanager
def _beside(destination: Path, kind: str) -> Iterator[Path]:
    """Yield a name beside a directory; the directory of this name is removed at the end."""
    path = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}.{kind}")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _sweep(destination: Path) -> None:
    """Remove abandoned directories of killed processes beside a destination."""
    for kind in ("part", "old"):
        for path in destination.parent.glob(f".{glob.escape(destination.name)}.{'[0-9a-f]' * 32}.{kind}"):
            with suppress(OSError):
                if is_abandoned(path.stat()):
                    shutil.rmtree(path, ignore_errors=True)
