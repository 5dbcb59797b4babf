"""Files of a training that lie in a bucket of artifacts, in the project that the releases go to."""

from __future__ import annotations

from pathlib import Path

from supabase_bridge.documents import FileRecord
from supabase_bridge.model_file import ModelFile, StoredFile
from supabase_bridge.object_store import ObjectInfo, ObjectStore
from supabase_bridge.object_store.fetching import fetch


class Shelf:
    """One folder of a bucket of artifacts."""

    def __init__(self, store: ObjectStore, bucket: str, prefix: str) -> None:
        self._store = store
        self._bucket = bucket
        self._prefix = prefix

    def take(self, path: str, directory: Path, *, whole: bool = False) -> ModelFile:
        """A file of the folder, to be copied in the project; it is read only where nothing else tells its digests.

        What is read is compared with what the project says of it, and the copy will be held against what was read.

        Args:
            directory: Where it is read to, under its own name.
            whole: Read it in any case.

        Raises:
            ObjectNotFoundError: it is gone.
            CorruptObjectError, StoreUnavailableError: see `fetch`.
        """
        key = f"{self._prefix}/{path}" if self._prefix else path
        info = self._store.stat(key)
        if info.sealed and None not in (info.version, info.sha256, info.etag) and not whole:
            sealed = FileRecord(size_bytes=info.size_bytes, sha256=str(info.sha256))
            return self._file(info, sealed, md5=str(info.etag), path=None)
        target = directory / path.rpartition("/")[2]
        fetched = fetch(self._store, key, target, info=info, with_md5=True)
        return self._file(fetched.info, fetched.record, md5=str(fetched.md5), path=target)

    def _file(self, info: ObjectInfo, record: FileRecord, *, md5: str, path: Path | None) -> ModelFile:
        # Without versions nothing would tell a source that was replaced between the reading and the copying.
        if info.version is None:
            return ModelFile(record=record, path=path)
        stored = StoredFile(store=self._store, bucket=self._bucket, info=info, md5=md5)
        return ModelFile(record=record, path=path, stored=stored)
