"""MLflow artifact repository for `supabase://` URIs."""

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
from mlflow_supabase.artifact_files import (
    IN_MEMORY_BYTES,
    SpooledFile,
    body_of,
    check_file,
    files_below,
    upload_progress,
)
from mlflow_supabase.compat import StreamUploadMixin
from supabase_bridge.client.cache import Cache
from supabase_bridge.client.download import Files
from supabase_bridge.client.readers import open_reader
from supabase_bridge.client.release import Release
from supabase_bridge.client.resolution import Reference, ReleaseResolution, reference_in_path
from supabase_bridge.client.seen import SeenManifests
from supabase_bridge.core.documents import FileRecord
from supabase_bridge.core.errors import InvalidObjectKeyError, SettingsError
from supabase_bridge.core.layout import TEMPORARY_PREFIX, check_object_key, escape_path, unescape_path
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import BINARY_TYPE, NO_CACHE, Body, ObjectStore, Progress, PutOptions
from supabase_bridge.storage.download import fetch
from supabase_bridge.storage.errors import ObjectNotFoundError
from supabase_bridge.storage.factory import open_store
from supabase_bridge.storage.hashing import hash_body
from supabase_bridge.storage.http import MINIMUM_RATE
from supabase_bridge.storage.local_files import PIECE_BYTES
from supabase_bridge.trust.load import trust_policy

SCHEME = "supabase"

_RULE = (
    "A path has parts of at most 255 bytes, none of which is empty, '.' or '..'. Characters other than ASCII letters, "
    "digits, spaces and _!.*'()&$@=;:+,?- are escaped, and take about 3 bytes each"
)


class SupabaseArtifactRepository(ArtifactRepository, StreamUploadMixin):
    """The artifacts below one `supabase://bucket/path`.

    An artifact can be logged again: the last one wins as a whole, and no cache keeps the previous one. Every method
    raises MlflowException with a code for the cause: a path or file name that cannot be a key, a bucket that the
    settings do not allow, an unreachable store, a missing object. The constructor only assigns.

    In a bucket of releases, `<model>@<channel>/...` and `<model>/<run_id>/...` lead into a release. Its files are those
    that it records. Each one is compared with its record and cached by digest. If the settings trust keys, the record
    must be signed. A channel is resolved once per repository, so that no download mixes two releases.
    """

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        # The base class of MLflow 2.22 has only the URI as argument.
        super().__init__(artifact_uri)
        self.tracking_uri = tracking_uri
        self.registry_uri = registry_uri
        self._loaded: Settings | None = None
        self._opened: ObjectStore | None = None
        self._writable = False
        self._reading: tuple[ReleaseResolution, Files] | None = None
        self._releases: dict[Reference, Release] = {}
        self._opening = threading.RLock()

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Store a file under its name in the directory `artifact_path`, replacing what is there."""
        path = Path(local_file)
        check_file(path)
        self._upload(path, self._key_of_file(path, _join(artifact_path, path.name)))

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Store every file below a directory in the directory `artifact_path`, several at a time.

        All files and names are checked before the first upload. A special file, or a folder that cannot be listed, is
        refused. A link to a folder is not followed, with a warning. Not atomic: after a failure, the files that were
        uploaded before stay.
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
        """Store the content of a stream under the last part of the name; store nothing if the stream fails."""
        key = self.key_of_stream(artifact_file_name, artifact_path)
        with as_mlflow_exceptions(), SpooledFile() as spooled:
            while piece := stream.read(PIECE_BYTES):
                spooled.add(piece)
            self._put(key, spooled.body())

    async def log_artifact_from_async_stream(
        self, chunks: AsyncIterable[bytes], artifact_file_name: str, artifact_path: str | None = None
    ) -> None:
        """Store the content of a stream under the last part of the name; store nothing if the stream fails."""
        key = self.key_of_stream(artifact_file_name, artifact_path)
        with as_mlflow_exceptions(), SpooledFile() as spooled:
            async for chunk in chunks:
                if spooled.in_memory:
                    spooled.add(chunk)
                else:
                    await asyncio.to_thread(spooled.add, chunk)
            await asyncio.to_thread(self._put, key, spooled.body())

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """List one directory in the order of the names; empty for a file, and for a missing directory."""
        path = (path or "").rstrip("/")
        found: dict[tuple[str, bool], FileInfo] = {}
        for below, size_bytes in self._below(path):
            name, slash, _ = below.partition("/")
            if name:
                found[name, bool(slash)] = FileInfo(_join(path, name), bool(slash), None if slash else size_bytes)
        return [found[entry] for entry in sorted(found)]

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete a file, or everything below a directory; a whole bucket is refused."""
        key = self.key((artifact_path or "").rstrip("/"))
        if not key:
            raise invalid(f"{self.artifact_uri} is a whole bucket, which is not deleted: name a directory in it")
        with as_mlflow_exceptions():
            store = self.store_to_change()
            store.delete([key, *(info.key for info in store.list(f"{key}/"))])

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        """Write one file to a local path: whole and as recorded, or not at all."""
        target = Path(local_path)
        with as_mlflow_exceptions():
            key = self.key(remote_file_path)
            if (found := self._release(key)) is None:
                fetch(self.store(), key, target)
                return
            release, inside = found
            self._reader()[1].copy(release, inside, target)

    def _upload(self, file: Path, key: str) -> None:
        with as_mlflow_exceptions(), upload_progress(file) as progress:
            self._put(key, body_of(file), progress)

    def _put(self, key: str, body: Body, progress: Progress | None = None) -> None:
        self.store_to_change().overwrite(key, body, _options(key.rpartition("/")[2], body), progress)

    def _below(self, path: str) -> Iterator[tuple[str, int]]:
        """Yield the relative path and the size of every file below a directory."""
        key = self.key(path)
        prefix = f"{key}/" if key else ""
        with as_mlflow_exceptions():
            if (found := self._release(key)) is not None:
                release, inside = found
                above = f"{inside}/" if inside else ""
                for name, record in release.files.items():
                    if name.startswith(above):
                        yield name.removeprefix(above), record.size_bytes
                return
            for info in self.store().list(prefix):
                if not info.key.startswith(TEMPORARY_PREFIX):
                    below = info.key.removeprefix(prefix)
                    yield (below if self._holds_releases() else unescape_path(below)), info.size_bytes

    def _holds_releases(self) -> bool:
        bucket, _ = self._location()
        with as_mlflow_exceptions():
            return bucket in self._settings().release_buckets

    def _release(self, key: str) -> tuple[Release, str] | None:
        """Return the release of a key, and the path in it; None for a key outside of releases."""
        found = reference_in_path(key) if self._holds_releases() else None
        if found is None:
            return None
        reference, inside = found
        with self._opening:
            if reference not in self._releases:
                self._releases[reference] = self._reader()[0].resolve(reference)
            return self._releases[reference], inside

    def recorded(self, path: str) -> tuple[str, FileRecord] | None:
        """Return the object key and the record of a release's file; None for a path outside of releases."""
        with as_mlflow_exceptions():
            if (found := self._release(self.key(path))) is None:
                return None
            release, inside = found
            if inside not in release.files:
                raise ObjectNotFoundError(self.artifact_uri, release.paths.file(inside))
            return release.paths.file(inside), release.files[inside]

    def _reader(self) -> tuple[ReleaseResolution, Files]:
        """The client library's view of a bucket of releases; it needs reading rights only."""
        with self._opening:
            if self._reading is None:
                bucket, _ = self._location()
                settings = self._settings()
                reader = open_reader(
                    url=settings.supabase_url,
                    key=(settings.service_key or settings.anon_key) if settings.supabase_url else None,
                    bucket=bucket,
                    signed_urls=None,
                    directory=settings.home / "supabase" / bucket if settings.embedded else None,
                )
                weakref.finalize(self, reader.close)
                cache = None
                if settings.cache_dir is not None:
                    cache = Cache(settings.cache_dir, limit_bytes=settings.cache_limit_bytes)
                resolution = ReleaseResolution(
                    reader,
                    policy=trust_policy(settings),
                    seen=SeenManifests(None, place=reader.name),
                    timeout=settings.request_timeout,
                    clock=lambda: datetime.now(timezone.utc),
                )
                files = Files(reader, cache=cache, timeout=settings.request_timeout, minimum_rate=MINIMUM_RATE)
                self._reading = resolution, files
            return self._reading

    def _settings(self) -> Settings:
        """Return the settings, which are read on first use."""
        with self._opening:
            if self._loaded is None:
                self._loaded = Settings.load(reading=True)
            return self._loaded

    def store(self) -> ObjectStore:
        """Return the bucket's store, opened on first use: MLflow constructs repositories that it never uses."""
        with self._opening:
            if self._opened is None:
                bucket, _ = self._location()
                settings = self._settings()
                try:
                    self._opened = open_store(settings, bucket, reading=True)
                except SettingsError as error:
                    raise denied(str(error)) from error
                weakref.finalize(self, self._opened.close)
            return self._opened

    def store_to_change(self) -> ObjectStore:
        """Return the bucket's store for writing; create a missing bucket, and refuse a bucket of releases.

        Every client of MLflow chooses where an experiment's artifacts go, but only the worker writes releases.
        """
        bucket, _ = self._location()
        if bucket in self._settings().release_buckets:
            raise denied(
                f"bucket {bucket!r} holds releases, which only the worker writes: log artifacts to another bucket, "
                "and name it in artifact_buckets in the settings"
            )
        settings = self._settings()
        if not settings.embedded and settings.service_key is None:
            raise denied("SUPABASE_SECRET_KEY: missing; a reader's key cannot write artifacts")
        store = self.store()
        with self._opening:
            if not self._writable:
                store.ensure_bucket()
                self._writable = True
        return store

    def _location(self) -> tuple[str, str]:
        """Return the bucket and the path in it, without leading and trailing slashes."""
        scheme, separator, rest = self.artifact_uri.partition("://")
        bucket, _, path = rest.partition("/")
        if scheme.lower() != SCHEME or not separator or not bucket or "?" in rest or "#" in rest:
            raise invalid(f"{self.artifact_uri!r} is not an artifact URI: expected {SCHEME}://<bucket>/<path>")
        return bucket, path.strip("/")

    def key(self, path: str) -> str:
        """Return the object key of a path relative to the repository; '' for the root of a bucket."""
        _, root = self._location()
        key = _join(root, path)
        if not key:
            return key
        # Refuses all that MLflow's verify_artifact_path refuses, and absolute paths, '..' and empty parts.
        try:
            key = check_object_key(key if self._holds_releases() else escape_path(key))
        except InvalidObjectKeyError as error:
            raise invalid(f"{error}. {_RULE}") from error
        if key.startswith(TEMPORARY_PREFIX):
            raise invalid(f"{TEMPORARY_PREFIX} is reserved for running uploads")
        return key

    def key_of_stream(self, artifact_file_name: str, artifact_path: str | None) -> str:
        name = os.path.basename(artifact_file_name)  # noqa: PTH119 - part of a key, not a local path
        return self.key(_join(artifact_path, name))

    def _key_of_file(self, file: Path, path: str) -> str:
        """Return the key for a local file; the exception names the file."""
        try:
            return self.key(path)
        except MlflowException as error:
            raise invalid(f"{file}: {error.message}") from error


def _join(directory: str | None, name: str) -> str:
    return "/".join(part for part in (directory, name) if part)


def media_type(name: str) -> str:
    """Return the content type of an artifact by its name."""
    found, encoding = mimetypes.guess_type(name)
    return found if found and encoding is None else BINARY_TYPE


def _options(name: str, body: Body) -> PutOptions:
    """Return how to store an artifact: with authenticated digests, so that a release can copy it without reading it.

    A small artifact costs one request. Verifying it would prove little, as every client of MLflow can overwrite it, and
    the worker compares it with these digests when it reads it for a release.
    """
    digests = hash_body(body)
    return PutOptions(
        content_type=media_type(name),
        cache_control=NO_CACHE,
        sha256=digests.sha256,
        md5=digests.md5,
        compared=digests.size_bytes > IN_MEMORY_BYTES,
    )
