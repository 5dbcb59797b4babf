"""Unfinished uploads remembered in files, so that another process goes on with them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from supabase_bridge.errors import BridgeError, StoreUnavailableError
from supabase_bridge.object_store.local_files import discard

try:
    import fcntl
except ImportError:  # Windows: no lock that dies with its process, so nothing is remembered there.
    fcntl = None  # type: ignore[assignment]  # mypy looks at it as on POSIX

_LIMIT_BYTES = 16 * 1024

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UploadName:
    """What makes two uploads the same one: where to, and exactly which bytes."""

    store_url: str
    bucket: str
    key: str
    size_bytes: int
    sha256: str

    def digest(self) -> str:
        """A file name for it."""
        parts = [self.store_url, self.bucket, self.key, self.size_bytes, self.sha256]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Unfinished(BaseModel):
    """The file's content. No secret: without the service key the URL opens nothing."""

    url: str = Field(max_length=4096)
    token: str = Field(pattern="^[0-9a-f]{32}$")


class Claim:
    """The sole right to one upload, and what is known of it from before.

    Attributes:
        token: The upload's random token: the remembered one, or a new one.
        url: Where the remembered upload goes on; None where there is none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        found = None if path is None else _read(path)
        self.token = uuid.uuid4().hex if found is None else found.token
        self.url = None if found is None else found.url

    def remember(self, url: str) -> None:
        """Keep the URL until the upload is done; where that is impossible the upload goes on without."""
        self.url = url
        if self._path is None:
            return
        temporary = self._path.with_name(f"{self._path.stem}.{uuid.uuid4().hex}.part")
        try:
            temporary.write_text(Unfinished(url=url, token=self.token).model_dump_json(), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            discard(temporary)
            facts = {"path": str(self._path), "reason": error.strerror}
            _logger.warning("An upload cannot be remembered; another process could not go on with it", extra=facts)

    def forget(self) -> None:
        """The upload is done, or of no use any more."""
        if self._path is not None:
            discard(self._path)


class RememberedUploads:
    """A directory with one small file for each unfinished upload.

    Args:
        directory: Made when it is needed; None: nothing is remembered.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    @contextmanager
    def claim(self, name: UploadName | None) -> Iterator[Claim]:
        """The right to make an upload; it is forgotten when the block ends, unless it ends because of the network.

        Of several claims on one upload, in any thread or process, the first one has the memory: two that went on with
        the same temporary object would both believe that they had moved it. The others start afresh. The lock is the
        system's, so it goes with a process that is killed, and the memory stays.

        Args:
            name: None for an upload that is not worth remembering.
        """
        path = None if name is None or self._directory is None else self._directory / f"{name.digest()}.json"
        lock = None if path is None else _lock(path.with_suffix(".lock"))
        claim = Claim(path if lock is not None else None)
        try:
            yield claim
        except StoreUnavailableError:
            raise
        except BridgeError:
            claim.forget()
            raise
        else:
            claim.forget()
        finally:
            if path is not None and lock is not None:
                discard(path.with_suffix(".lock"))
                os.close(lock)


def forget_stale(directory: Path, *, before: datetime, dry_run: bool) -> list[Path]:
    """Remove what is remembered of uploads that nobody has gone on with since `before`; returns what was removed.

    An upload that is under way is left alone, however long it takes.

    Args:
        dry_run: Remove nothing; what would be removed is returned.
    """
    gone: list[Path] = []
    for path in sorted(directory.glob("*.json")) + sorted(directory.glob("*.part")):
        if not _is_older(path, before):
            continue
        if dry_run:
            gone.append(path)
        elif (lock := _lock(path.with_name(f"{path.name.split('.')[0]}.lock"))) is not None:
            try:
                if _is_older(path, before):
                    discard(path)
                    gone.append(path)
            finally:
                discard(path.with_name(f"{path.name.split('.')[0]}.lock"))
                os.close(lock)
    return gone


def _is_older(path: Path, moment: datetime) -> bool:
    try:
        return path.stat().st_mtime < moment.timestamp()
    except OSError:
        return False


def _read(path: Path) -> Unfinished | None:
    """What is remembered; nothing where the file is missing or damaged."""
    try:
        with path.open("rb") as file:
            return Unfinished.model_validate_json(file.read(_LIMIT_BYTES))
    except (OSError, ValidationError):
        return None


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock; None where another one holds it, or there can be none."""
    if fcntl is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    except OSError as error:
        _logger.warning("Uploads cannot be remembered", extra={"path": str(path), "reason": error.strerror})
        return None
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A holder removes the file at its end: a lock on a file that has no name keeps nobody out.
        if os.fstat(descriptor).st_nlink:
            return descriptor
    os.close(descriptor)
    return None
