"""A bucket as a directory: an object is a file, atomic by temporary file, link and rename."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from supabase_bridge.errors import (
    BucketNotFoundError,
    CorruptObjectError,
    InvalidObjectKeyError,
    LocalFileError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StoreUnavailableError,
)
from supabase_bridge.layout import TEMPORARY_PREFIX, check_object_key
from supabase_bridge.object_store import Body, ObjectInfo, Progress, PutOptions
from supabase_bridge.object_store.directory_listing import info_of, walk
from supabase_bridge.object_store.local_files import (
    discard,
    flush_directories,
    local_error,
    metered,
    open_for_reading,
    pieces_of,
    pieces_of_open,
    prune_directories,
    write_flushed,
)

_RACES = 100
"""How often a parent directory may be pruned by a concurrent `delete` between making and using it."""


class DirectoryStore:
    """The object store below one directory; see `ObjectStore` for what each method promises.

    A write is flushed to the disk before it is visible, so an object that was reported stored survives a power cut. The
    file system must have hard links: `link` fails where the name exists, which is what makes `create` atomic.

    Content types, cache directives, metadata and recorded hashes are not kept, so `stat` knows no `sha256`: a file and
    a record beside it cannot change in one step, and a wrong record is worse than none. A given `PutOptions.sha256` is
    compared with the bytes before they become visible. Symbolic links below the root are neither followed nor listed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary_directory = root / TEMPORARY_PREFIX.rstrip("/")

    @property
    def name(self) -> str:
        return f"directory {self._root}"

    def ensure_bucket(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise local_error(self._root, error) from error

    def create(self, key: str, body: Body, options: PutOptions, progress: Progress | None = None) -> None:
        path = self._path(key)
        temporary = self._write_temporary(key, body, options, progress)
        self._place(key, path, temporary, lambda: os.link(temporary, path))

    def overwrite(self, key: str, body: Body, options: PutOptions, progress: Progress | None = None) -> None:
        path = self._path(key)
        temporary = self._write_temporary(key, body, options, progress)
        self._place(key, path, temporary, lambda: temporary.replace(path))

    def read(self, key: str, *, limit_bytes: int) -> bytes:
        with self._open(key) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            try:
                data = file.read(limit_bytes + 1) if size_bytes <= limit_bytes else b""
            except OSError as error:
                raise local_error(self._path(key), error) from error
        if max(size_bytes, len(data)) > limit_bytes:
            raise ObjectTooLargeError(self.name, key, limit_bytes)
        return data

    def stream(self, key: str, *, fresh: bool = False) -> Iterator[bytes]:  # noqa: ARG002 - no cache is on the way
        with self._open(key) as file:
            try:
                yield from pieces_of_open(file)
            except OSError as error:
                raise local_error(self._path(key), error) from error

    def read_part(self, info: ObjectInfo, *, start: int, size_bytes: int) -> bytes:
        with self._open(info.key) as file:
            self._check_version(info, file)
            try:
                file.seek(start)
                return file.read(size_bytes)
            except OSError as error:
                raise local_error(self._path(info.key), error) from error

    def stat(self, key: str) -> ObjectInfo:
        with self._open(key) as file:
            return info_of(key, os.fstat(file.fileno()))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """As the protocol says; temporary files are listed only where `prefix` begins with their own."""
        self._check_root()
        yield from walk(self._root, "", prefix)

    def copy_in(self, bucket: str, info: ObjectInfo, key: str, options: PutOptions) -> None:
        """As the protocol says; what is copied is hashed, and compared where a SHA-256 is given."""
        path = self._path(key)
        source = DirectoryStore(self._root.parent / bucket)
        try:
            file = source._open(info.key)
        except ObjectNotFoundError as error:
            raise StoreUnavailableError(source.name, f"copying {info.key}", "it was deleted meanwhile") from error
        with file:
            source._check_version(info, file)
            temporary = self._temporary_path()
            found = write_flushed(temporary, pieces_of_open(file))
        if options.sha256 not in (None, found):
            discard(temporary)
            raise CorruptObjectError(self.name, key, f"SHA-256 {options.sha256}", f"SHA-256 {found}")
        self._place(key, path, temporary, lambda: os.link(temporary, path))

    def _check_version(self, info: ObjectInfo, file: BinaryIO) -> None:
        if info_of(info.key, os.fstat(file.fileno())).version != info.version:
            raise StoreUnavailableError(self.name, f"reading {info.key}", "it was replaced meanwhile")

    def delete(self, keys: Sequence[str]) -> None:
        for path in [self._path(key) for key in keys]:
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if path.is_dir():
                    continue
                raise local_error(path, error) from error
            if path.parent != self._temporary_directory:
                prune_directories(path.parent, up_to=self._root)

    def close(self) -> None:
        """Nothing is held open."""

    def _check_root(self) -> None:
        if not self._root.is_dir():
            raise BucketNotFoundError(self.name, self._root.name)

    def _path(self, key: str) -> Path:
        """The file of a key.

        Raises:
            LocalFileError: a symbolic link lies on the way, so it could lead anywhere.
        """
        parts = check_object_key(key).split("/")
        path = self._root.joinpath(*parts)
        if Path(os.path.realpath(path)) != Path(os.path.realpath(self._root)).joinpath(*parts):
            raise LocalFileError(path, "a symbolic link lies on the way, and the store follows none")
        return path

    def _open(self, key: str) -> BinaryIO:
        path = self._path(key)
        try:
            file = open_for_reading(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            self._check_root()
            raise ObjectNotFoundError(self.name, key) from error
        except OSError as error:
            raise local_error(path, error) from error
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise ObjectNotFoundError(self.name, key)
        return file

    def _temporary_path(self) -> Path:
        self._check_root()
        try:
            self._temporary_directory.mkdir(exist_ok=True)
        except OSError as error:
            raise local_error(self._temporary_directory, error) from error
        return self._temporary_directory / uuid.uuid4().hex

    def _write_temporary(self, key: str, body: Body, options: PutOptions, progress: Progress | None) -> Path:
        """A temporary file with the bytes of `body`, flushed, and compared with their hash where that was given."""
        temporary = self._temporary_path()
        pieces = iter([body]) if isinstance(body, bytes) else pieces_of(body)
        found = write_flushed(temporary, pieces if progress is None else metered(pieces, progress))
        if options.sha256 not in (None, found):
            discard(temporary)
            raise CorruptObjectError(self.name, key, f"SHA-256 {options.sha256}", f"SHA-256 {found}")
        return temporary

    def _place(self, key: str, path: Path, temporary: Path, publish: Callable[[], object]) -> None:
        """Make the parents of `path`, publish, and flush the directories; the temporary file is gone in any case."""
        try:
            for _ in range(_RACES):
                if self._make_parents(key, path) and _published(publish):
                    return flush_directories(path.parent, up_to=self._root)
            raise LocalFileError(path, "its folder is deleted again and again by somebody else")
        except OSError as error:
            if path.is_dir():
                raise InvalidObjectKeyError(key, "it is a folder of other objects") from error
            if isinstance(error, FileExistsError):
                raise ObjectExistsError(self.name, key) from error
            raise local_error(path, error) from error
        finally:
            discard(temporary)

    def _make_parents(self, key: str, path: Path) -> bool:
        """True if the parents are there; False if somebody pruned one of them meanwhile."""
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


def _published(publish: Callable[[], object]) -> bool:
    """False if a parent directory was pruned before its file came."""
    try:
        publish()
    except FileNotFoundError:
        return False
    return True
