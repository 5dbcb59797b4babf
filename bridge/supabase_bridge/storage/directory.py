"""A bucket as a local directory."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

from supabase_bridge.core.errors import InvalidObjectKeyError, LocalFileError, os_errors
from supabase_bridge.core.layout import TEMPORARY_PREFIX, check_object_key
from supabase_bridge.storage import errors
from supabase_bridge.storage.base import Body, ObjectInfo, Progress, PutOptions
from supabase_bridge.storage.hashing import Hasher
from supabase_bridge.storage.local_files import (
    discard,
    open_for_reading,
    pieces_of,
    pieces_of_open,
    write_flushed,
)

_MISSING = (FileNotFoundError, NotADirectoryError)


def _walk(directory: str, above: str, prefix: str) -> Iterator[ObjectInfo]:
    """Yield the objects of a directory, whose keys begin with `above`, that begin with `prefix`; in byte order."""
    found: list[tuple[str, os.DirEntry[str]]] = []
    with os_errors(Path(directory)), suppress(*_MISSING), os.scandir(directory) as entries:
        # A folder sorts as "name/", so that the walk yields whole keys in the order of their bytes.
        named = ((entry.name + "/" * entry.is_dir(follow_symlinks=False), entry) for entry in entries)
        found = sorted(named, key=itemgetter(0))
    for name, entry in found:
        key = above + name
        if key == TEMPORARY_PREFIX and not prefix.startswith(TEMPORARY_PREFIX):
            continue
        if name.endswith("/"):
            if key.startswith(prefix) or prefix.startswith(key):
                yield from _walk(entry.path, key, prefix)
        elif key.startswith(prefix):
            # A file whose name is no valid key is not listed.
            with suppress(FileNotFoundError, InvalidObjectKeyError):
                check_object_key(key)
                if entry.is_file(follow_symlinks=False):
                    yield _info(key, entry.stat(follow_symlinks=False))


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    """Describe an object by the status of its file."""
    modified_at = datetime.fromtimestamp(status.st_mtime, tz=timezone.utc)
    version = f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"
    return ObjectInfo(key=key, size_bytes=status.st_size, modified_at=modified_at, version=version)


class DirectoryStore:
    """The object store in one directory; see `ObjectStore` for the contract of each method.

    A write is flushed to the disk before it is visible, so that a stored object survives a power cut. The file system
    must have hard links: `link` fails if the name exists, which makes `create` atomic.

    Content types, cache directives, metadata and hashes are not kept, and `stat` returns no `sha256`: a file and a
    record beside it cannot change in one step, and a wrong record is worse than none. A given `PutOptions.sha256` is
    compared with the bytes before they are visible. Symbolic links below the root are neither followed nor listed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary_directory = root / TEMPORARY_PREFIX.rstrip("/")

    @property
    def name(self) -> str:
        return f"directory {self._root}"

    def ensure_bucket(self) -> None:
        with os_errors(self._root):
            self._root.mkdir(parents=True, exist_ok=True)

    def create(self, key: str, body: bytes, options: PutOptions) -> None:
        path = self._path(key)
        temporary = self._write_temporary(key, [body], options)
        self._publish(key, path, temporary, os.link)

    def overwrite(
        self, key: str, body: Body, options: PutOptions, progress: Progress | None = None
    ) -> ObjectInfo | None:
        path = self._path(key)
        temporary = self._write_temporary(key, _pieces(body, progress), options)
        self._publish(key, path, temporary, os.replace)
        return None  # The file was compared before it was visible.

    def read(self, key: str, *, limit_bytes: int) -> bytes:
        with self._open(key) as file, os_errors(self._root / key):
            size_bytes = os.fstat(file.fileno()).st_size
            data = file.read(limit_bytes + 1) if size_bytes <= limit_bytes else b""
        if max(size_bytes, len(data)) > limit_bytes:
            raise errors.ObjectTooLargeError(self.name, key, limit_bytes)
        return data

    def stream(self, key: str, *, fresh: bool = False) -> Iterator[bytes]:  # noqa: ARG002 - there is no cache
        with self._open(key) as file, os_errors(self._root / key):
            yield from pieces_of_open(file)

    def read_part(self, info: ObjectInfo, *, start: int, size_bytes: int) -> bytes:
        with self._open(info.key) as file, os_errors(self._root / info.key):
            self._check_version(info, file)
            file.seek(start)
            return file.read(size_bytes)

    def stat(self, key: str) -> ObjectInfo:
        with self._open(key) as file:
            return _info(key, os.fstat(file.fileno()))

    def list(self, prefix: str, *, bucket_exists: bool = False) -> Iterator[ObjectInfo]:  # noqa: ARG002 - it is looked for at no cost
        """Implement `list`; temporary files are listed only if `prefix` begins with TEMPORARY_PREFIX."""
        self._check_root()
        yield from _walk(str(self._root), "", prefix)

    def copy_in(self, bucket: str, info: ObjectInfo, key: str, options: PutOptions) -> ObjectInfo | None:
        """Copy the file, and compare it with the SHA-256 of `options` if there is one."""
        path = self._path(key)
        source = DirectoryStore(self._root.parent / bucket)
        try:
            file = source._open(info.key)
        except errors.ObjectNotFoundError as error:
            raise errors.StoreUnavailableError(
                source.name, f"copying {info.key}", "it was deleted meanwhile"
            ) from error
        with file:
            source._check_version(info, file)
            temporary = self._write_temporary(key, pieces_of_open(file), options)
        self._publish(key, path, temporary, os.link)
        return None

    def move(self, key: str, target: str) -> None:
        """Link the file under its new name, then delete the old one: a crash leaves both, never none."""
        source, path = self._path(key), self._path(target)
        self._open(key).close()
        self._make_parents(target, path)
        try:
            os.link(source, path)
        except FileExistsError as error:
            raise errors.ObjectExistsError(self.name, target) from error
        except FileNotFoundError as error:
            raise errors.ObjectNotFoundError(self.name, key) from error
        except OSError as error:
            raise LocalFileError(path, (error.strerror or str(error)).lower()) from error
        self._flush_directories(path.parent)
        self.delete([key])

    def _check_version(self, info: ObjectInfo, file: BinaryIO) -> None:
        if _info(info.key, os.fstat(file.fileno())).version != info.version:
            raise errors.StoreUnavailableError(self.name, f"reading {info.key}", "it was replaced meanwhile")

    def delete(self, keys: Sequence[str]) -> None:
        for path in [self._path(key) for key in keys]:
            with os_errors(path):
                try:
                    path.unlink()
                except _MISSING:
                    continue
                except OSError:
                    if path.is_dir():
                        continue
                    raise
            if path.parent != self._temporary_directory:
                self._prune(path.parent)

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _check_root(self) -> None:
        if not self._root.is_dir():
            raise errors.BucketNotFoundError(self.name, self._root.name)

    def _path(self, key: str) -> Path:
        """Return the path of an object's file.

        Raises:
            LocalFileError: the path contains a symbolic link.
        """
        parts = check_object_key(key).split("/")
        path = self._root.joinpath(*parts)
        if Path(os.path.realpath(path)) != Path(os.path.realpath(self._root)).joinpath(*parts):
            raise LocalFileError(path, "the path contains a symbolic link, and the store follows none")
        return path

    def _open(self, key: str) -> BinaryIO:
        path = self._path(key)
        with os_errors(path):
            try:
                file = open_for_reading(path)
            except (*_MISSING, IsADirectoryError) as error:
                self._check_root()
                raise errors.ObjectNotFoundError(self.name, key) from error
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise errors.ObjectNotFoundError(self.name, key)
        return file

    def _write_temporary(self, key: str, pieces: Iterable[bytes], options: PutOptions) -> Path:
        """Write a flushed temporary file, and compare it with the SHA-256 of `options` where there is one."""
        self._check_root()
        with os_errors(self._temporary_directory):
            self._temporary_directory.mkdir(exist_ok=True)
        temporary = self._temporary_directory / uuid.uuid4().hex
        with Hasher(sha256=options.sha256 is not None) as hasher:
            write_flushed(temporary, hasher.through(pieces))
            found = hasher.digests().sha256
        if options.sha256 is not None and options.sha256 != found:
            discard(temporary)
            raise errors.CorruptObjectError(self.name, key, f"SHA-256 {options.sha256}", f"SHA-256 {found}")
        return temporary

    def _publish(self, key: str, path: Path, temporary: Path, move: Callable[[Path, Path], None]) -> None:
        """Create the parents of `path`, move the file, and flush the directories; always delete the temporary file."""
        try:
            # A concurrent `delete` may prune a parent directory before the file is in it.
            for _ in range(100):
                if self._make_parents(key, path):
                    with suppress(FileNotFoundError):
                        move(temporary, path)
                        return self._flush_directories(path.parent)
            raise LocalFileError(path, "another process deletes its folder again and again")
        except OSError as error:
            if path.is_dir():
                raise InvalidObjectKeyError(key, "it is a folder of other objects") from error
            if isinstance(error, FileExistsError):
                raise errors.ObjectExistsError(self.name, key) from error
            raise LocalFileError(path, (error.strerror or str(error)).lower()) from error
        finally:
            discard(temporary)

    def _make_parents(self, key: str, path: Path) -> bool:
        """Create the parent directories; False if another process pruned one of them meanwhile."""
        self._check_root()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:
            return False
        except (FileExistsError, NotADirectoryError) as error:
            above = path.parents[: len(path.relative_to(self._root).parts) - 1]
            if any(parent.is_file() for parent in above):
                raise InvalidObjectKeyError(key, "one of its folders is an object") from error
            return False
        return True

    def _flush_directories(self, directory: Path) -> None:
        """Flush the entries of a directory and of those above it, up to the root, to the disk."""
        while True:
            # A directory that was deleted together with its last object needs no flush.
            with os_errors(directory), suppress(FileNotFoundError):
                descriptor = os.open(directory, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            if directory == self._root:
                return
            directory = directory.parent

    def _prune(self, directory: Path) -> None:
        """Delete empty directories upwards, below the root; `rmdir` refuses one that just received a file."""
        with suppress(OSError):
            while directory != self._root:
                directory.rmdir()
                directory = directory.parent


def _pieces(body: Body, progress: Progress | None) -> Iterator[bytes]:
    """Yield the pieces of a body, and report each one after its use."""
    for piece in [body] if isinstance(body, bytes) else pieces_of(body):
        yield piece
        if progress is not None:
            progress(len(piece))
