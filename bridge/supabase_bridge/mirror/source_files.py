"""List, fetch and snapshot a version's files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from supabase_bridge.core.documents import FileRecord
from supabase_bridge.core.layout import escape_path, unescape_path
from supabase_bridge.mirror.errors import SourceRefusedError
from supabase_bridge.registry.client import mlflow_errors
from supabase_bridge.storage.base import ObjectInfo, ObjectStore
from supabase_bridge.storage.download import fetch
from supabase_bridge.storage.hashing import hash_file, write_hashed
from supabase_bridge.storage.local_files import local_error, pieces_of

_DEPTH_LIMIT = 8
_FILES_LIMIT = 10_000
_OTHERS = re.compile(r"(?:^|/)(?:(?:m-)?[0-9a-f]{32}/artifacts|[0-9]{8}T[0-9]{6}Z[^/]*/model_meta\.json)(?:/|$)")
"""Paths of a run's or logged model's artifacts, and of a release."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """An object in another bucket of the same project, which the store of the releases can copy.

    Attributes:
        info: The object's metadata when it was read.
        md5: The MD5 of its content, computed while it was read, or authenticated with its record.
    """

    store: ObjectStore
    bucket: str
    info: ObjectInfo
    md5: str


@dataclass(frozen=True, kw_only=True)
class FileEnds:
    """The first and the last bytes of a file; `tail` is empty where `head` holds the whole file."""

    size_bytes: int
    head: bytes
    tail: bytes


class MissingPartError(Exception):
    """Bytes of a file were wanted that no part has; not a failure, but a request for that part."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


@dataclass(frozen=True, kw_only=True)
class FileParts:
    """Some parts of a file, which are read by their positions in the file as bytes are.

    Attributes:
        parts: By their positions; they may overlap.
    """

    size_bytes: int
    parts: Mapping[int, bytes]

    def __len__(self) -> int:
        return self.size_bytes

    def __getitem__(self, place: int | slice) -> int | bytes:
        """Return the byte, or the bytes of a slice from a start to a stop, of one part; raises MissingPartError."""
        start, stop = (place, place + 1) if isinstance(place, int) else (place.start, min(place.stop, self.size_bytes))
        if start >= self.size_bytes and start < stop:
            raise IndexError(start)
        for begin, data in self.parts.items():
            if begin <= start and stop <= begin + len(data):
                return data[start - begin] if isinstance(place, int) else data[start - begin : stop - begin]
        raise MissingPartError(start)


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A file whose content is known, and its places; at least one of `path` and `stored` is set.

    Attributes:
        record: Size and digest of the content, computed while it was read, or authenticated by its writer.
        path: A local file that no other process writes to; None where the content was not fetched.
        stored: Its object in the project; None where it has none.
    """

    record: FileRecord
    path: Path | None = None
    stored: StoredFile | None = None

    @property
    def name(self) -> str:
        """The file name that the training gave it."""
        if self.path is None and self.stored is not None:
            return unescape_path(self.stored.info.key).rpartition("/")[2]
        return self.local.name

    @property
    def local(self) -> Path:
        """The path of its local file."""
        if self.path is None:
            raise ValueError("a file that was not fetched has no path")
        return self.path

    def ends(self, limit_bytes: int) -> FileEnds:
        """Read at most `limit_bytes` from each end of the file; of a file in the project only these are transferred.

        Raises:
            StoreUnavailableError: the file was replaced in the project meanwhile.
        """
        size_bytes = self.record.size_bytes
        begin = min(limit_bytes, size_bytes)
        rest = max(begin, size_bytes - limit_bytes)
        head, tail = (self.part(at, end - at) for at, end in ((0, begin), (rest, size_bytes)))
        return FileEnds(size_bytes=size_bytes, head=head, tail=tail)

    def part(self, start: int, size_bytes: int) -> bytes:
        """Read a part of the file; see `ends`."""
        if size_bytes == 0:
            return b""
        if self.path is None and self.stored is not None:
            return self.stored.store.read_part(self.stored.info, start=start, size_bytes=size_bytes)
        with self.local.open("rb") as file:
            file.seek(start)
            return file.read(size_bytes)


class BucketFolder:
    """One folder of a bucket of artifacts."""

    def __init__(self, store: ObjectStore, bucket: str, prefix: str) -> None:
        self._store = store
        self._bucket = bucket
        self._prefix = prefix

    def snapshot(self, path: str, directory: Path, *, whole: bool = False) -> ModelFile:
        """See `SourceFolder.snapshot`; fetched content is compared with the metadata, and the later copy with both.

        Raises:
            ObjectNotFoundError: it was deleted.
            CorruptObjectError, StoreUnavailableError: see `fetch`.
        """
        key = escape_path(f"{self._prefix}/{path}" if self._prefix else path)
        info = self._store.stat(key)
        if info.digest_authenticated and None not in (info.version, info.sha256, info.etag) and not whole:
            target, md5 = None, info.etag
            record = FileRecord(size_bytes=info.size_bytes, sha256=str(info.sha256))
        else:
            target = directory / path.rpartition("/")[2]
            fetched = fetch(self._store, key, target, info=info, with_md5=True)
            info, record, md5 = fetched.info, fetched.record, fetched.md5
        # Without object versions a replacement between the fetch and the copy would go unnoticed.
        if info.version is None:
            return ModelFile(record=record, path=target)
        stored = StoredFile(store=self._store, bucket=self._bucket, info=info, md5=str(md5))
        return ModelFile(record=record, path=target, stored=stored)


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file of a version, not fetched yet; `path` is relative to the folder it was found in."""

    folder: SourceFolder
    path: str
    size_bytes: int | None

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


class SourceFolder:
    """A folder of artifacts, at a place that the settings allow.

    Args:
        local_root: The path of a folder on this machine.
        bucket_folder: The folder in one of the project's buckets of artifacts.
        alone: Refuse a folder that holds the artifacts of runs or logged models, or releases.
    """

    def __init__(
        self,
        uri: str,
        repository: ArtifactRepository,
        local_root: Path | None,
        *,
        bucket_folder: BucketFolder | None = None,
        alone: bool = False,
    ) -> None:
        self.uri = uri
        self._repository = repository
        self._local_root = local_root
        self._bucket_folder = bucket_folder
        self._alone = alone

    def files(self) -> list[SourceFile]:
        """Return every file below the folder, sorted by path.

        Raises:
            SourceRefusedError: a folder is a link that leaves it, it holds more than _FILES_LIMIT files and folders, or
                other runs' artifacts.
        """
        found: list[SourceFile] = []
        folders: list[tuple[str | None, int]] = [(None, 0)]
        seen = 0
        while folders:
            path, depth = folders.pop()
            for item in self._listed(path):
                seen += 1
                if seen > _FILES_LIMIT:
                    raise SourceRefusedError(self.uri, f"it holds more than {_FILES_LIMIT} files and folders")
                if self._alone and _OTHERS.search(item.path):
                    raise SourceRefusedError.holds_runs(self.uri)
                if not item.is_dir:
                    found.append(SourceFile(folder=self, path=item.path, size_bytes=item.file_size))
                elif depth < _DEPTH_LIMIT:
                    folders.append((item.path, depth + 1))
        return sorted(found, key=lambda file: file.path)

    def fetch(self, path: str, directory: Path) -> Path:
        """Return a local path with a file's content: a copy in `directory` unless the file is local already.

        Raises:
            SourceRefusedError: the path is a link that leaves the folder, or is no regular file: reading a pipe might
                never end.
        """
        if self._local_root is None:
            with mlflow_errors(f"fetch {path} from {self.uri}"):
                return Path(self._repository.download_artifacts(path, str(directory)))
        found = _inside(self._local_root, path)
        if not found.is_file():
            raise SourceRefusedError(str(found), "it is no regular file")
        return found

    def snapshot(self, path: str, directory: Path, *, whole: bool = False) -> ModelFile:
        """Return a file as it is now: a copy in `directory` that no other process writes to, hashed while it is read.

        A file in the project of the releases can be copied there. If its digest is authenticated, it is not fetched.

        Args:
            whole: Fetch it in any case.
        """
        if self._bucket_folder is not None:
            return self._bucket_folder.snapshot(path, directory, whole=whole)
        fetched = self.fetch(path, directory)
        if self._local_root is None:
            return ModelFile(record=hash_file(fetched), path=fetched)
        # The training may still write to its own file, for example between the check and the upload.
        target = directory / fetched.name
        return ModelFile(record=write_hashed(target, pieces_of(fetched)), path=target)

    def _listed(self, path: str | None) -> Sequence[FileInfo]:
        if self._local_root is not None and path is not None:
            _inside(self._local_root, path)
        try:
            with mlflow_errors(f"list {self.uri}"):
                found: Sequence[FileInfo] = self._repository.list_artifacts(path)
                return found
        except OSError as error:
            raise local_error(Path(error.filename or self.uri), error) from error


def _inside(root: Path, path: str) -> Path:
    """Resolve `path` below `root` and its links; refuse a result outside `root`."""
    found = (root / path).resolve()
    if not found.is_relative_to(root.resolve()):
        raise SourceRefusedError(str(found), f"a link to it leads outside the allowed roots ({root})")
    return found
