"""What a consumer remembers of each channel, in this process and for the next: the newest manifest it accepted."""

from __future__ import annotations

import hashlib
import logging
import threading
import uuid
from pathlib import Path

from pydantic import ValidationError

from supabase_bridge.consumer.locking import exclusive
from supabase_bridge.documents import Document, Manifest
from supabase_bridge.errors import InvalidDocumentError, LocalFileError, MemoryDamagedError
from supabase_bridge.layout import ChannelKeys
from supabase_bridge.object_store.local_files import discard, write_flushed
from supabase_bridge.trust import Seen

_LOCK_SECONDS = 5.0
_FILE_LIMIT_BYTES = 8_000_000
"""A manifest of the largest size, each character of it escaped."""

_logger = logging.getLogger(__name__)


class Remembered(Document):
    """The newest manifest of a channel that was accepted.

    Attributes:
        place: The bucket, by its reader's name.
        key: The manifest's key.
        etag: What it was served with.
        manifest: The manifest's text.
    """

    document_name = "what was seen"

    place: str
    key: str
    etag: str | None = None
    manifest: str

    @property
    def data(self) -> bytes:
        """The manifest's bytes."""
        return self.manifest.encode()

    def seen(self) -> Seen:
        """What a newer manifest is compared with.

        Raises:
            InvalidDocumentError: this is no manifest.
        """
        return Seen.of(Manifest.parse(self.data))


class Memory:
    """One file for each channel, replaced whole; a lower sequence never replaces a higher one.

    Args:
        directory: Made when there is something to remember; None, or one that cannot be written: what was seen is
            remembered for as long as this object lives.
        place: The bucket, by its reader's name.
    """

    def __init__(self, directory: Path | None, *, place: str) -> None:
        self._directory = directory
        self._place = place
        self._held: dict[str, Remembered] = {}
        self._lock = threading.Lock()

    def recall(self, channel: ChannelKeys) -> Remembered | None:
        """What is remembered of a channel, by this process or another one.

        Raises:
            MemoryDamagedError: it cannot be read. An older manifest would go unnoticed, so this is no "nothing".
        """
        with self._lock:
            held = self._held.get(channel.manifest)
        path = self._path(channel)
        stored = None if path is None else self._read(path, channel)
        return max((one for one in (held, stored) if one is not None), key=_sequence, default=None)

    def keep(self, channel: ChannelKeys, data: bytes, *, etag: str | None) -> None:
        """Remember a manifest that was accepted, unless a newer one was meanwhile."""
        new = Remembered(place=self._place, key=channel.manifest, etag=etag, manifest=data.decode())
        with self._lock:
            held = self._held.get(channel.manifest)
            if held is None or _sequence(held) <= _sequence(new):
                self._held[channel.manifest] = new
        path = self._path(channel)
        if path is None:
            return
        with exclusive(path.with_suffix(".lock"), wait_seconds=_LOCK_SECONDS):
            stored = self._read(path, channel)
            if stored is None or _sequence(stored) <= _sequence(new):
                _write(path, new)

    def _path(self, channel: ChannelKeys) -> Path | None:
        if self._directory is None:
            return None
        name = hashlib.sha256(f"{self._place}\n{channel.manifest}".encode()).hexdigest()
        return self._directory / f"{name}.json"

    def _read(self, path: Path, channel: ChannelKeys) -> Remembered | None:
        try:
            with path.open("rb") as file:
                found = Remembered.model_validate_json(file.read(_FILE_LIMIT_BYTES))
            found.seen()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise MemoryDamagedError(path, error.strerror or str(error)) from error
        except (ValidationError, InvalidDocumentError) as error:
            raise MemoryDamagedError(path, "it is damaged") from error
        if (found.place, found.key) != (self._place, channel.manifest):
            raise MemoryDamagedError(path, "it is of another channel")
        return found


def _sequence(remembered: Remembered) -> int:
    return remembered.seen().sequence


def _write(path: Path, remembered: Remembered) -> None:
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_flushed(temporary, [remembered.model_dump_json().encode()])
        temporary.replace(path)
    except (OSError, LocalFileError) as error:
        discard(temporary)
        facts = {"path": str(path), "reason": str(error)}
        _logger.warning("What was seen cannot be remembered beyond this process", extra=facts)
