"""Local files that are to be logged: each one found, and known to be readable, before any is sent."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow_supabase.artifact_errors import invalid
from mlflow_supabase.received import IN_MEMORY_BYTES
from supabase_bridge.object_store import Body
from supabase_bridge.object_store.local_files import local_error, open_for_reading

_logger = logging.getLogger(__name__)


def check_file(path: Path) -> None:
    """Check that `path`, links followed, leads to a regular file; opening a pipe might never end.

    Raises:
        MlflowException: it does not.
    """
    with _refusals():
        regular = path.is_file()
    if not regular:
        raise invalid(f"{path} is no file that can be logged: it is gone, a link to nothing, or no regular file")


def files_below(root: Path) -> list[Path]:
    """Every file below a directory, sorted; a link to a folder is not followed, as in MLflow's own repositories.

    Raises:
        MlflowException: one of them cannot be logged, or a folder cannot be listed.
    """
    found = []
    with _refusals():
        if not root.is_dir():
            raise invalid(f"{root} is not a directory")
        for directory, folders, names in os.walk(root, onerror=_raise):
            for folder in [Path(directory, name) for name in folders]:
                if folder.is_symlink():
                    _logger.warning("A link to a folder is not followed", extra={"path": str(folder)})
            found += [Path(directory, name) for name in names]
    for path in found:
        check_file(path)
    return sorted(found)


def body_of(path: Path) -> Body:
    """What is sent of a file: of a small one its bytes, so that what was hashed is sent whoever writes to it meanwhile.

    Raises:
        LocalFileError: it cannot be read.
    """
    try:
        with open_for_reading(path.resolve()) as file:
            data = file.read(IN_MEMORY_BYTES + 1)
    except OSError as error:
        raise local_error(path, error) from error
    return data if len(data) <= IN_MEMORY_BYTES else path


@contextmanager
def _refusals() -> Iterator[None]:
    """The system's complaints in the block as MLflow's exceptions."""
    try:
        yield
    except OSError as error:
        raise invalid(f"{error.filename} cannot be read: {(error.strerror or str(error)).lower()}") from error


def _raise(error: OSError) -> None:
    raise error
