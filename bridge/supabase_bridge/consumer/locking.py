"""Locks between processes: the system's own, so that they go with a process that is killed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]  # mypy knows the module of this platform only

_LOOK_SECONDS = 0.02


@contextmanager
def exclusive(path: Path, *, wait_seconds: float) -> Iterator[bool]:
    """Hold the lock of a file, which is made where it is missing.

    Yields:
        True while it is held; False where another process, or another thread of this one, did not let go of it in time,
        or where there can be none. What the lock guards must be safe without it: it saves work, and time.
    """
    descriptor = _acquire(path, time.monotonic() + wait_seconds)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _acquire(path: Path, until: float) -> int | None:
    while fcntl is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        except OSError:
            return None
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever clears up removes the file: a lock on a file that has no name keeps nobody out.
            if os.fstat(descriptor).st_nlink:
                return descriptor
        os.close(descriptor)
        if time.monotonic() >= until:
            return None
        time.sleep(_LOOK_SECONDS)
    return None
