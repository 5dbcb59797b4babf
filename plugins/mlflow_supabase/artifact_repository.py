"""MLflow's artifacts at `supabase://bucket/path`, in the project or the embedded directory that the settings name.

A URI is taken literally, as MLflow takes `s3://`: nothing is percent-decoded. It names a bucket that the settings
allow, never a host.
"""

from __future__ import annotations

import asyncio
import mimetypes
import os
import threading
import weakref
from collections.abc import AsyncIterable, Iterator
from concurrent.futures import as_completed, wait
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.utils.file_utils import ArtifactProgressBar

from mlflow_supabase.artifact_errors import as_mlflow_exceptions, denied, invalid
from mlflow_supabase.local_artifacts import body_of, check_file, files_below
from mlflow_supabase.mlflow_features import StreamUploadMixin
from mlflow_supabase.progress import upload_progress
from mlflow_supabase.received import IN_MEMORY_BYTES, Received
from supabase_bridge import errors
from supabase_bridge.config import Settings
from supabase_bridge.digest_cache import DigestCache
from supabase_bridge.documents import FileRecord
from supabase_bridge.key_files import trust_policy
from supabase_bridge.layout import TEMPORARY_PREFIX, ChannelKeys, ReleaseKeys, check_object_key
from supabase_bridge.object_store import BINARY_TYPE, NO_CACHE, Body, ObjectStore, PutOptions
from supabase_bridge.object_store.digest import digests_of
from supabase_bridge.object_store.fetching import fetch
from supabase_bridge.object_store.local_files import PIECE_BYTES
from supabase_bridge.object_store.opening import open_store
from supabase_bridge.release_files import ReleaseFiles, files_of, parse_path

SCHEME = "supabase"
_RULE = (
    "A path is made of ASCII letters, digits, spaces and _!.*'()&$@=;:+,?- in parts of at most 255 bytes, "
    "none of which is empty, '.' or '..'"
)


class SupabaseArtifactRepository(ArtifactRepository, StreamUploadMixin):
    """The artifacts below one `supabase://bucket/path`.

    Artifacts may be logged again: the last one wins, whole, and no cache keeps the one before. Every method raises
    MlflowException with a code for the cause: a path or file name that cannot be a key, a bucket that the settings do
    not allow, a store that is unreachable, nothing there. Constructing one does nothing but assign.

    In a bucket of releases `<model>@<channel>/...` and `<model>/<run_id>/...` lead into a release: its files are those
    that it records, each compared with its record, and kept in the cache by digest. Where keys are trusted, the record
    must be signed. A channel is looked up once: the
    repository stays with the release it found, so that no download mixes two.
    """

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        # MLflow 2.22's base takes the URI alone.
        super().__init__(artifact_uri)
        self.tracking_uri = tracking_uri
        self.registry_uri = registry_uri
        self._loaded: Settings | None = None
        self._opened: ObjectStore | None = None
        self._writable = False
        self._releases: dict[ReleaseKeys | ChannelKeys, ReleaseFiles] = {}
        self._opening = threading.RLock()

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Store a file under its name in the directory `artifact_path`, over whatever is there."""
        path = Path(local_file)
        check_file(path)
        self._upload(path, self._key_of_file(path, _join(artifact_path, path.name)))

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Store every file below a directory in the directory `artifact_path`, several at a time.

        All files and names are checked before anything is sent: a file that is none, or a folder that cannot be listed,
        is refused; a link to a folder is not followed, and a warning says so. Not atomic: if an upload fails, what was
        sent before it stays.
        """
        root = Path(local_dir)
        uploads = [
            (file, self._key_of_file(file, _join(artifact_path, file.relative_to(root).as_posix())))
            for file in files_below(root)
        ]
        futures = [self.thread_pool.submit(self._upload, file, key) for file, key in uploads]
        try:
            with ArtifactProgressBar.files(desc="Uploading artifacts", total=len(futures)) as bar:
                for future in as_completed(futures):
                    future.result()
                    bar.update()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def log_artifact_from_stream(
        self, stream: BinaryIO, artifact_file_name: str, artifact_path: str | None = None
    ) -> None:
        """Store what a stream gives, under the last part of the name; nothing where the stream breaks."""
        name = os.path.basename(artifact_file_name)  # noqa: PTH119 - a key's part, not a path of this machine
        key = self._key(_join(artifact_path, name))
        with as_mlflow_exceptions(), Received() as received:
            while piece := stream.read(PIECE_BYTES):
                received.add(piece)
            self._put(key, name, received.body())

    async def log_artifact_from_async_stream(
        self, chunks: AsyncIterable[bytes], artifact_file_name: str, artifact_path: str | None = None
    ) -> None:
        """Store what a stream gives, under the last part of the name; nothing where the stream breaks."""
        name = os.path.basename(artifact_file_name)  # noqa: PTH119 - a key's part, not a path of this machine
        key = self._key(_join(artifact_path, name))
        with as_mlflow_exceptions(), Received() as received:
            async for chunk in chunks:
                if received.in_memory:
                    received.add(chunk)
                else:
                    await asyncio.to_thread(received.add, chunk)
            await asyncio.to_thread(self._put, key, name, received.body())

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """What lies directly in a directory, in the order of the names; nothing for a file, or where nothing is."""
        path = (path or "").rstrip("/")
        found: dict[tuple[str, bool], FileInfo] = {}
        for below, size_bytes in self._below(path):
            name, slash, _ = below.partition("/")
            if name:
                found[name, bool(slash)] = FileInfo(_join(path, name), bool(slash), None if slash else size_bytes)
        return [found[entry] for entry in sorted(found)]

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete a file, or everything below a directory, if there is one; a whole bucket is refused."""
        key = self._key((artifact_path or "").rstrip("/"))
        if not key:
            raise invalid(f"{self.artifact_uri} is a whole bucket, which is not deleted: name a directory in it")
        with as_mlflow_exceptions():
            store = self._store_to_change()
            store.delete([key, *(info.key for info in store.list(f"{key}/"))])

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        """Write one file to a local path: whole and as it is recorded, or not at all."""
        target = Path(local_path)
        recorded = self._recorded(remote_file_path)
        with as_mlflow_exceptions():
            if recorded is not None:
                self._cache().fetch(self._store(), recorded[0], recorded[1], target)
                return
            fetch(self._store(), self._key(remote_file_path), target)

    def _upload(self, file: Path, key: str) -> None:
        with as_mlflow_exceptions(), upload_progress(file) as progress:
            body = body_of(file)
            self._store_to_change().overwrite(key, body, _options(file.name, body), progress)

    def _put(self, key: str, name: str, body: Body) -> None:
        self._store_to_change().overwrite(key, body, _options(name, body))

    def _below(self, path: str) -> Iterator[tuple[str, int]]:
        """Every file below a directory, by its path from there, with its size."""
        key = self._key(path)
        prefix = f"{key}/" if key else ""
        with as_mlflow_exceptions():
            if (found := self._release(key)) is not None:
                release, inside = found
                above = f"{inside}/" if inside else ""
                for name, record in release.files.items():
                    if name.startswith(above):
                        yield name.removeprefix(above), record.size_bytes
                return
            for info in self._store().list(prefix):
                if not info.key.startswith(TEMPORARY_PREFIX):
                    yield info.key.removeprefix(prefix), info.size_bytes

    def _release(self, key: str) -> tuple[ReleaseFiles, str] | None:
        """The release that a key leads into, and the path in it; None for any other key."""
        bucket, _ = self._location()
        found = parse_path(key) if bucket in self._settings().release_buckets else None
        if found is None:
            return None
        with self._opening:
            if found.release not in self._releases:
                policy, now = trust_policy(self._settings()), datetime.now(timezone.utc)
                self._releases[found.release] = files_of(self._store(), found.release, policy=policy, now=now)
            return self._releases[found.release], found.inside

    def _recorded(self, path: str) -> tuple[str, FileRecord] | None:
        """The object key and the record of a release's file; None for a path that leads into no release."""
        with as_mlflow_exceptions():
            if (found := self._release(self._key(path))) is None:
                return None
            release, inside = found
            if inside not in release.files:
                raise errors.ObjectNotFoundError(self._store().name, release.keys.file(inside))
            return release.keys.file(inside), release.files[inside]

    def _cache(self) -> DigestCache:
        settings = self._settings()
        return DigestCache(settings.cache_dir, limit_bytes=settings.cache_limit_bytes)

    def _settings(self) -> Settings:
        """The settings, read when they are first needed."""
        with self._opening:
            if self._loaded is None:
                self._loaded = Settings.load()
            return self._loaded

    def _store(self) -> ObjectStore:
        """The bucket's store, opened when it is first needed: MLflow constructs repositories that it never uses."""
        with self._opening:
            if self._opened is None:
                bucket, _ = self._location()
                settings = self._settings()
                try:
                    self._opened = open_store(settings, bucket)
                except errors.SettingsError as error:
                    raise denied(str(error)) from error
                weakref.finalize(self, self._opened.close)
            return self._opened

    def _store_to_change(self) -> ObjectStore:
        """The bucket's store, for writing: created if it is missing, refused if releases are in it.

        Whoever can write to MLflow chooses where an experiment's artifacts go; releases and pointers are the worker's.
        """
        bucket, _ = self._location()
        if bucket in self._settings().release_buckets:
            raise denied(
                f"bucket {bucket!r} holds releases, which only the worker writes: log artifacts to another bucket, "
                "and name it in artifact_buckets in the settings"
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
            raise invalid(f"{self.artifact_uri!r} is no place for artifacts: expected {SCHEME}://<bucket>/<path>")
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
            raise invalid(f"{error}. {_RULE}") from error
        if key.startswith(TEMPORARY_PREFIX):
            raise invalid(f"{TEMPORARY_PREFIX} is kept for uploads in flight")
        return key

    def _key_of_file(self, file: Path, path: str) -> str:
        """The key that a local file gets; a refusal names the file."""
        try:
            return self._key(path)
        except MlflowException as error:
            raise invalid(f"{file}: {error.message}") from error


def _join(directory: str | None, name: str) -> str:
    return "/".join(part for part in (directory, name) if part)


def _options(name: str, body: Body) -> PutOptions:
    """How an artifact is stored: with its digests, sealed, so that a release can be given a copy without reading it.

    A small one costs one request: MLflow lets anybody overwrite it, so a look at what arrived would prove little, and
    what reads it for a release compares it with these digests.
    """
    media_type, encoding = mimetypes.guess_type(name)
    digests = digests_of(body)
    return PutOptions(
        content_type=media_type if media_type and encoding is None else BINARY_TYPE,
        cache_control=NO_CACHE,
        sha256=digests.sha256,
        md5=digests.md5,
        compared=digests.size_bytes > IN_MEMORY_BYTES,
    )
