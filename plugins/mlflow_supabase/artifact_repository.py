"""MLflow's artifacts at `supabase://bucket/path`, in the project or the embedded directory that the settings name.

A URI is taken literally, as MLflow takes `s3://`: nothing is percent-decoded. It names a bucket that the settings
allow, never a host.
"""

from __future__ import annotations

import mimetypes
import os
import threading
import uuid
import weakref
from collections.abc import Iterator
from concurrent.futures import as_completed, wait
from contextlib import contextmanager
from pathlib import Path

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    DATA_LOSS,
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    INVALID_STATE,
    PERMISSION_DENIED,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from supabase_bridge import errors
from supabase_bridge.config import Settings
from supabase_bridge.layout import TEMPORARY_PREFIX, check_object_key
from supabase_bridge.object_store import BINARY_TYPE, NO_CACHE, ObjectStore, PutOptions
from supabase_bridge.object_store.opening import open_store

SCHEME = "supabase"
_RULE = (
    "A path is made of ASCII letters, digits, spaces and _!.*'()&$@=;:+,?- in parts of at most 255 bytes, "
    "none of which is empty, '.' or '..'"
)
_CODES: dict[type[errors.BridgeError], int] = {
    errors.SettingsError: INVALID_STATE,
    errors.InvalidObjectKeyError: INVALID_PARAMETER_VALUE,
    errors.ObjectNotFoundError: RESOURCE_DOES_NOT_EXIST,
    errors.BucketNotFoundError: RESOURCE_DOES_NOT_EXIST,
    errors.ObjectTooLargeError: INVALID_PARAMETER_VALUE,
    errors.AccessDeniedError: PERMISSION_DENIED,
    errors.StoreUnavailableError: TEMPORARILY_UNAVAILABLE,
    errors.CorruptObjectError: DATA_LOSS,
}
"""What MLflow says, and which HTTP status its server answers, for each cause; INTERNAL_ERROR for the others."""


class SupabaseArtifactRepository(ArtifactRepository):
    """The artifacts below one `supabase://bucket/path`.

    Artifacts may be logged again: the last one wins, whole, and no cache keeps the one before. Every method raises
    MlflowException with a code for the cause: a path or file name that cannot be a key, a bucket that the settings do
    not allow, a store that is unreachable, nothing there. Constructing one does nothing but assign.
    """

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        # MLflow 2.22's base takes the URI alone.
        super().__init__(artifact_uri)
        self.tracking_uri = tracking_uri
        self.registry_uri = registry_uri
        self._opened: ObjectStore | None = None
        self._writable = False
        self._opening = threading.Lock()

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Store a file under its name in the directory `artifact_path`, over whatever is there."""
        path = Path(local_file)
        if not path.is_file():
            raise MlflowException(f"{path} is not a file", error_code=INVALID_PARAMETER_VALUE)
        self._upload(path, self._key_of_file(path, _join(artifact_path, path.name)))

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Store every file below a directory in the directory `artifact_path`.

        All names are checked before anything is sent. Not atomic: if an upload fails, what was sent before it stays.
        """
        root = Path(local_dir)
        if not root.is_dir():
            raise MlflowException(f"{root} is not a directory", error_code=INVALID_PARAMETER_VALUE)
        files = sorted(Path(directory, name) for directory, _, names in os.walk(root) for name in names)
        uploads = [
            (file, self._key_of_file(file, _join(artifact_path, file.relative_to(root).as_posix()))) for file in files
        ]
        futures = [self.thread_pool.submit(self._upload, file, key) for file, key in uploads]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """What lies directly in a directory, in the order of the names; nothing for a file, or where nothing is."""
        path = (path or "").rstrip("/")
        key = self._key(path)
        prefix = f"{key}/" if key else ""
        found: dict[tuple[str, bool], FileInfo] = {}
        with _as_mlflow_exceptions():
            for info in self._store().list(prefix):
                name, slash, _ = info.key.removeprefix(prefix).partition("/")
                if name and not info.key.startswith(TEMPORARY_PREFIX):
                    size = None if slash else info.size_bytes
                    found[name, bool(slash)] = FileInfo(_join(path, name), bool(slash), size)
        return [found[entry] for entry in sorted(found)]

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete a file, or everything below a directory, if there is one; a whole bucket is refused."""
        key = self._key((artifact_path or "").rstrip("/"))
        if not key:
            raise MlflowException(
                f"{self.artifact_uri} is a whole bucket, which is not deleted: name a directory in it",
                error_code=INVALID_PARAMETER_VALUE,
            )
        with _as_mlflow_exceptions():
            store = self._store_to_change()
            store.delete([key, *(info.key for info in store.list(f"{key}/"))])

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        """Write one file to a local path: whole, or not at all."""
        key = self._key(remote_file_path)
        target = Path(local_path)
        temporary = target.with_name(f".{uuid.uuid4().hex}.part")
        try:
            with temporary.open("xb") as file, _as_mlflow_exceptions():
                for piece in self._store().stream(key):
                    file.write(piece)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _upload(self, file: Path, key: str) -> None:
        media_type, encoding = mimetypes.guess_type(file.name)
        content_type = media_type if media_type and encoding is None else BINARY_TYPE
        with _as_mlflow_exceptions():
            self._store_to_change().overwrite(key, file, PutOptions(content_type=content_type, cache_control=NO_CACHE))

    def _store(self) -> ObjectStore:
        """The bucket's store, opened when it is first needed: MLflow constructs repositories that it never uses."""
        with self._opening:
            if self._opened is None:
                bucket, _ = self._location()
                settings = Settings.load()
                try:
                    self._opened = open_store(settings, bucket)
                except errors.SettingsError as error:
                    raise MlflowException(str(error), error_code=PERMISSION_DENIED) from error
                weakref.finalize(self, self._opened.close)
            return self._opened

    def _store_to_change(self) -> ObjectStore:
        """The bucket's store, for writing: created if it is missing, refused if releases are in it.

        Whoever can write to MLflow chooses where an experiment's artifacts go; releases and pointers are the worker's.
        """
        bucket, _ = self._location()
        settings = Settings.load()
        if bucket in settings.release_buckets:
            raise MlflowException(
                f"bucket {bucket!r} holds releases, which only the worker writes: log artifacts to another bucket, "
                "and name it in artifact_buckets in the settings",
                error_code=PERMISSION_DENIED,
            )
        store = self._store()
        with self._opening:
            if not self._writable:
                store.ensure_bucket()
                self._writable = True
        return store

    def _location(self) -> tuple[str, str]:
        """The bucket and the path in it, without slashes around it."""
        scheme, separator, rest = self.artifact_uri.partition("://")
        bucket, _, path = rest.partition("/")
        if scheme.lower() != SCHEME or not separator or not bucket or "?" in rest or "#" in rest:
            raise MlflowException(
                f"{self.artifact_uri!r} is no place for artifacts: expected {SCHEME}://<bucket>/<path>",
                error_code=INVALID_PARAMETER_VALUE,
            )
        return bucket, path.strip("/")

    def _key(self, path: str) -> str:
        """The object key of a path relative to the repository; '' for the root of a bucket."""
        _, root = self._location()
        key = _join(root, path)
        if not key:
            return key
        # This refuses what MLflow's verify_artifact_path refuses, and more: absolute paths, '..', empty parts.
        try:
            check_object_key(key)
        except errors.InvalidObjectKeyError as error:
            raise MlflowException(f"{error}. {_RULE}", error_code=INVALID_PARAMETER_VALUE) from error
        if key.startswith(TEMPORARY_PREFIX):
            raise MlflowException(
                f"{TEMPORARY_PREFIX} is kept for uploads in flight", error_code=INVALID_PARAMETER_VALUE
            )
        return key

    def _key_of_file(self, file: Path, path: str) -> str:
        """The key that a local file gets; a refusal names the file."""
        try:
            return self._key(path)
        except MlflowException as error:
            raise MlflowException(f"{file}: {error.message}", error_code=INVALID_PARAMETER_VALUE) from error


def _join(directory: str | None, name: str) -> str:
    return "/".join(part for part in (directory, name) if part)


@contextmanager
def _as_mlflow_exceptions() -> Iterator[None]:
    """Let MLflow's callers see MLflow's exception, with the code that fits the cause."""
    try:
        yield
    except errors.BridgeError as error:
        raise MlflowException(str(error), error_code=_CODES.get(type(error), INTERNAL_ERROR)) from error
