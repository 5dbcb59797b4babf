"""A folder of artifacts that a version's files are taken from, and the files in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from supabase_bridge.errors import LocalFileError, SourceNotAllowedError, SourceUnusableError
from supabase_bridge.model_file import ModelFile
from supabase_bridge.object_store.digest import file_record, write_hashed
from supabase_bridge.object_store.local_files import pieces_of
from supabase_bridge.registry import mlflow_errors
from supabase_bridge.shelf import Shelf

_DEPTH_LIMIT = 8
_FILES_LIMIT = 10_000


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file of a version, not fetched yet; `path` is relative to the folder it was found in."""

    folder: SourceFolder
    path: str
    size_bytes: int | None

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    def fetch(self, directory: Path) -> Path:
        """A local path with the file's content; a copy in `directory` unless the file is local already."""
        return self.folder.fetch(self.path, directory)

    def take(self, directory: Path, *, whole: bool = False) -> ModelFile:
        """The file as it is now, for a release: a copy in `directory` that nobody else can write to, hashed as it came.

        Where it lies in the project of the releases, the release can be given a copy there. If whoever logged it has
        sealed its digests too (see `sealing`), it is not fetched at all.

        Args:
            whole: Fetch it in any case.
        """
        return self.folder.take(self.path, directory, whole=whole)


class SourceFolder:
    """A folder of artifacts, at a place that the settings allow.

    Args:
        local_root: Where it is, for a folder on this machine.
        shelf: Where it is, for a folder in a bucket of artifacts of the project.
    """

    def __init__(
        self, uri: str, repository: ArtifactRepository, local_root: Path | None, *, shelf: Shelf | None = None
    ) -> None:
        self.uri = uri
        self._repository = repository
        self._local_root = local_root
        self._shelf = shelf

    def files(self) -> list[SourceFile]:
        """Every file below the folder, by path.

        Raises:
            SourceNotAllowedError: one of its folders is a link that leaves it.
            SourceUnusableError: it holds more than _FILES_LIMIT files and folders.
        """
        found: list[SourceFile] = []
        folders: list[tuple[str | None, int]] = [(None, 0)]
        seen = 0
        while folders:
            path, depth = folders.pop()
            for item in self._listed(path):
                seen += 1
                if seen > _FILES_LIMIT:
                    raise SourceUnusableError(self.uri, f"it holds more than {_FILES_LIMIT} files and folders")
                if not item.is_dir:
                    found.append(SourceFile(folder=self, path=item.path, size_bytes=item.file_size))
                elif depth < _DEPTH_LIMIT:
                    folders.append((item.path, depth + 1))
        return sorted(found, key=lambda file: file.path)

    def fetch(self, path: str, directory: Path) -> Path:
        """A local path with one file's content; see `SourceFile.fetch`.

        Raises:
            SourceNotAllowedError: the path is a link that leaves the folder.
            SourceUnusableError: it is no regular file; reading a pipe might never end.
        """
        if self._local_root is None:
            with mlflow_errors(f"fetch {path} from {self.uri}"):
                return Path(self._repository.download_artifacts(path, str(directory)))
        found = _inside(self._local_root, path)
        if not found.is_file():
            raise SourceUnusableError(str(found), "it is no regular file")
        return found

    def take(self, path: str, directory: Path, *, whole: bool = False) -> ModelFile:
        """See `SourceFile.take`."""
        if self._shelf is not None:
            return self._shelf.take(path, directory, whole=whole)
        fetched = self.fetch(path, directory)
        if self._local_root is None:
            return ModelFile(record=file_record(fetched), path=fetched)
        # A training may still write to its own file, between the check and the upload, say.
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
            raise LocalFileError(Path(error.filename or self.uri), (error.strerror or str(error)).lower()) from error


def _inside(root: Path, path: str) -> Path:
    """What `path` below `root` leads to, links followed, if that is below `root` too."""
    found = (root / path).resolve()
    if not found.is_relative_to(root.resolve()):
        raise SourceNotAllowedError(str(found), (str(root),))
    return found
