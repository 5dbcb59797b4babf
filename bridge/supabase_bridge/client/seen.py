"""The last accepted manifest of each channel, kept for rollback protection in memory and on disk."""

from __future__ import annotations

import hashlib
import logging
import threading
import uuid
from pathlib import Path

from pydantic import ValidationError

from supabase_bridge.client.errors import StateCorruptedError
from supabase_bridge.core.documents import Document, Manifest
from supabase_bridge.core.errors import InvalidDocumentError, LocalFileError
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.storage.local_files import discard, file_lock, write_flushed
from supabase_bridge.trust.verify import SeenManifest

_LOCK_SECONDS = 5.0
_FILE_LIMIT_BYTES = 8_000_000
"""A manifest of the largest size, each character of it escaped."""

_logger = logging.getLogger(__name__)


class StoredManifest(Document):
    """The text of the last accepted manifest of a channel; `place` is the name of the bucket's reader."""

    document_name = "the stored manifest"

    place: str
    key: str
    etag: str | None = None
    manifest: str

    @property
    def data(self) -> bytes:
        """The manifest's bytes."""
        return self.manifest.encode()

    def seen(self) -> SeenManifest:
        """Return the sequence and digest that the next manifest is compared with.

        Raises:
            InvalidDocumentError: the stored text is no manifest.
        """
        return SeenManifest.of(Manifest.parse(self.data))


class SeenManifests:
    """One file for each channel, replaced whole; a lower sequence never replaces a higher one.

    Args:
        directory: Created with the first manifest. None, or a directory that cannot be written: manifests are kept
            in memory only.
        place: The name of the bucket's reader.
    """

    def __init__(self, directory: Path | None, *, place: str) -> None:
        self._directory = directory
        self._place = place
        self._held: dict[str, StoredManifest] = {}
        self._lock = threading.Lock()

    def recall(self, channel: ChannelPaths) -> StoredManifest | None:
        """Return the last manifest of a channel that this process or another one accepted.

        Raises:
            StateCorruptedError: it cannot be read, so that an older manifest would not be noticed.
        """
        with self._lock:
            held = self._held.get(channel.manifest)
        path = self._path(channel)
        stored = None if path is None else self._read(path, channel)
        return max((one for one in (held, stored) if one is not None), key=_sequence, default=None)

    def keep(self, channel: ChannelPaths, data: bytes, *, etag: str | None) -> None:
        """Store an accepted manifest, unless a newer one is stored."""
        new = StoredManifest(place=self._place, key=channel.manifest, etag=etag, manifest=data.decode())
        with self._lock:
            held = self._held.get(channel.manifest)
            if held is None or _sequence(held) <= _sequence(new):
                self._held[channel.manifest] = new
        path = self._path(channel)
        if path is None:
            return
        with file_lock(path.with_suffix(".lock"), wait_seconds=_LOCK_SECONDS):
            stored = self._read(path, channel)
            if stored is None or _sequence(stored) <= _sequence(new):
                _write(path, new)

    def _path(self, channel: ChannelPaths) -> Path | None:
        if self._directory is None:
            return None
        name = hashlib.sha256(f"{self._place}\n{channel.manifest}".encode()).hexdigest()
        return self._directory / f"{name}.json"

    def _read(self, path: Path, channel: ChannelPaths) -> StoredManifest | None:
        try:
            with path.open("rb") as file:
                found = StoredManifest.model_validate_json(file.read(_FILE_LIMIT_BYTES))
            found.seen()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StateCorruptedError(path, error.strerror or str(error)) from error
        except (ValidationError, InvalidDocumentError) as error:
            raise StateCorruptedError(path, "it is damaged") from error
        if (found.place, found.key) != (self._place, channel.manifest):
            raise StateCorruptedError(path, "it is of another channel")
        return found


def _sequence(stored: StoredManifest) -> int:
    return stored.seen().sequence


def _write(path: Path, manifest: StoredManifest) -> None:
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_flushed(temporary, [manifest.model_dump_json().encode()])
        temporary.replace(path)
    except (OSError, LocalFileError) as error:
        discard(temporary)
        facts = {"path": str(path), "reason": str(error)}
        _logger.warning("The last accepted manifest cannot be stored; it is kept in memory", extra=facts)
