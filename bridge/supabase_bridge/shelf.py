"""Files of a training that lie in a bucket of artifacts, in the project that the releases go to."""

from __future__ import annotations

from pathlib import Path

from supabase_bridge.documents import FileRecord
from supabase_bridge.model_file import ModelFile, StoredFile
from supabase_bridge.object_store import ObjectStore
from supabase_bridge.object_store.digest import write_hashed


class Shelf:
    """One folder of a bucket of artifacts."""

    def __init__(self, store: ObjectStore, bucket: str, prefix: str) -> None:
        self._store = store
        self._bucket = bucket
        self._prefix = prefix

    def take(self, path: str, directory: Path, *, whole: bool = False) -> ModelFile:
        """A file of the folder, to be copied in the project; it is read only where nothing else tells its digests.

        Args:
            directory: Where it is read to, under its own name.
            whole: Read it in any case.

        Raises:
            ObjectNotFoundError: it is gone.
        """
        key = f"{self._prefix}/{path}" if self._prefix else path
        info = self._store.stat(key)
        # Without versions nothing would tell a source that was replaced between the reading and the copying.
        stored = None if info.version is None else StoredFile(store=self._store, bucket=self._bucket, info=info)
        if stored is not None and info.sealed and info.sha256 is not None and not whole:
            return ModelFile(record=FileRecord(size_bytes=info.size_bytes, sha256=info.sha256), stored=stored)
        target = directory / path.rpartition("/")[2]
        return ModelFile(record=write_hashed(target, self._store.stream(key)), path=target, stored=stored)
