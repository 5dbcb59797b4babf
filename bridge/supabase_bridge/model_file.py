"""A file of a model on its way into a release: in our hands, or in the project already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from supabase_bridge.documents import FileRecord
from supabase_bridge.object_store import ObjectInfo, ObjectStore
from supabase_bridge.object_store.reader import open_object


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """An object that the store of the releases can copy: another bucket of the same project, as it was looked at.

    Attributes:
        md5: Of the content that the file's record is about, found by reading it, or sealed with that record.
    """

    store: ObjectStore
    bucket: str
    info: ObjectInfo
    md5: str


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A file whose content is known, and where it can be had; at least one of `path` and `stored` is there.

    Attributes:
        record: What the content is: found by reading it, or sealed by who wrote it.
        path: A local file that nobody else can write to; None where the content never came here.
        stored: Where it lies in the project; None where it does not.
    """

    record: FileRecord
    path: Path | None = None
    stored: StoredFile | None = None

    @property
    def name(self) -> str:
        """Its file name, as whoever logged it named it."""
        if self.path is None and self.stored is not None:
            return self.stored.info.key.rpartition("/")[2]
        return self.local.name

    @property
    def local(self) -> Path:
        """Its local file, of one that has one."""
        if self.path is None:
            raise ValueError("a file that was left in the project has no path")
        return self.path

    def open(self) -> BinaryIO:
        """Its bytes, to read at any place; of a file that is not here only what is looked at travels.

        Raises:
            StoreUnavailableError: it was replaced in the project meanwhile.
        """
        if self.path is None and self.stored is not None:
            return open_object(self.stored.store, self.stored.info)
        return self.local.open("rb")
