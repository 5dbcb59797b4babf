"""Verify a release in the bucket, and cache the result until a file changes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from supabase_bridge.core.documents import FileRecord, ModelMeta
from supabase_bridge.core.errors import InvalidDocumentError
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import META_NAME, METRICS_NAME, SIGNATURE_NAME, ReleasePaths
from supabase_bridge.releases.errors import ReleaseArchivedError, ReleaseDamagedError, ReleaseNotFoundError
from supabase_bridge.releases.removal import bar_removals
from supabase_bridge.storage.base import JSON_TYPE, ObjectInfo, ObjectStore, PutOptions, exists, for_each
from supabase_bridge.storage.errors import ObjectNotFoundError, ObjectTooLargeError
from supabase_bridge.storage.hashing import hash_object
from supabase_bridge.trust.errors import ReleaseSignatureError
from supabase_bridge.trust.signer import NO_SIGNING, SigningPolicy

_LOOKED_UP_AHEAD = 16
_CACHED_RELEASES = 1_000  # Each takes a few kilobytes.


def _check_signature(
    store: ObjectStore, paths: ReleasePaths, files: Mapping[str, FileRecord], signing: SigningPolicy
) -> FileRecord:
    """Verify a release's `model.sig`, which a trusted key must have made of exactly these files; return its record."""
    try:
        found = store.read(paths.signature, limit_bytes=LIMIT_BYTES)
    except (ObjectNotFoundError, ObjectTooLargeError) as error:
        problem = "the release has no model signature; it may be from before signing was switched on"
        if isinstance(error, ObjectTooLargeError):
            problem = "it is too large to be a model signature"
        raise ReleaseSignatureError(paths.signature, problem, paths.model_key, str(paths.run_id)) from None
    signing.check_release(found, files, paths)
    return FileRecord.of(found)


def place_signature(
    store: ObjectStore, paths: ReleasePaths, files: Mapping[str, FileRecord], signing: SigningPolicy
) -> None:
    """Write a signature of these files into a release, unless a trusted key has signed them already.

    Any other signature is replaced: an unfinished attempt, or a key that is no longer trusted, made it.
    Where signing is off, nothing is written.

    Raises:
        SigningError: the library that makes it is not installed.
    """
    made = signing.release_signature(files, paths)
    if made is None:
        return
    try:
        _check_signature(store, paths, files, signing)
    except ReleaseSignatureError:
        options = PutOptions(content_type=JSON_TYPE, sha256=FileRecord.of(made).sha256)
        store.overwrite(paths.signature, made, options)


@dataclass(frozen=True, kw_only=True)
class VerifiedRelease:
    """A complete release; each of its files exists as recorded.

    Attributes:
        files: The record of every file, model_meta.json itself among them.
    """

    paths: ReleasePaths
    meta: ModelMeta
    files: dict[str, FileRecord]


@dataclass(frozen=True, kw_only=True)
class Written:
    """A release that this process has just completed, and its objects as the store described them.

    Attributes:
        objects: By key, with the size and the ETag for which each object was compared with its record.
    """

    release: VerifiedRelease
    objects: Mapping[str, tuple[int, str | None]]

    def is_unchanged(self, listed: Sequence[ObjectInfo]) -> bool:
        """Return whether a listing of its folder has the same objects, and each has an ETag."""
        found = {item.key: (item.size_bytes, item.etag) for item in listed}
        return found == self.objects and None not in [etag for _, etag in found.values()]


def verify_release(
    store: ObjectStore,
    paths: ReleasePaths,
    *,
    signing: SigningPolicy = NO_SIGNING,
    read_all: bool = False,
    listed: Sequence[ObjectInfo] = (),
) -> VerifiedRelease:
    """Verify every file that a release records.

    A file is compared by its size and the digest that the store recorded at the upload. Where the store recorded none,
    the file is read and hashed.

    Args:
        signing: Where it trusts any key, such a key must have signed exactly these files.
        read_all: Read every file. A writer of the bucket can change a recorded digest as well as the file.
        listed: What lies in the release's folder, so that its files are looked up while model_meta.json is read.

    Raises:
        ReleaseNotFoundError: there is no such release, or it is incomplete.
        ReleaseDamagedError: a file is missing or differs from its record; or model_meta.json belongs to another
            release, or has no record of a file that a manifest names.
        ReleaseSignatureError: no trusted key signed the release.
    """
    with ThreadPoolExecutor(_LOOKED_UP_AHEAD, thread_name_prefix="verifying") as pool:
        keys = [item.key for item in listed if item.key != paths.meta][:_LOOKED_UP_AHEAD]
        found = {key: pool.submit(store.stat, key) for key in keys}
        try:
            raw = store.read(paths.meta, limit_bytes=LIMIT_BYTES)
        except ObjectNotFoundError:
            raise _not_found(store, paths) from None
    meta = ModelMeta.parse(raw)
    try:
        meta.check_identity(paths)
    except InvalidDocumentError as error:
        raise ReleaseDamagedError(paths.meta, error.reason) from None
    for name in (paths.onnx_name, METRICS_NAME):
        if name not in meta.files:
            raise ReleaseDamagedError(paths.file(name), "model_meta.json has no record of it")

    def check(name: str) -> None:
        key = paths.file(name)
        look = found[key].result if key in found else partial(store.stat, key)
        _check_file(store, key, look, meta.files[name], read_all=read_all)

    # The error names the first wrong file in the order of the record.
    for_each(meta.files, check)
    own = FileRecord.of(raw)
    files = {**meta.files, META_NAME: own}
    if signing.keys:
        files[SIGNATURE_NAME] = _check_signature(store, paths, files, signing)
    return VerifiedRelease(paths=paths, meta=meta, files=files)


def _not_found(store: ObjectStore, paths: ReleasePaths) -> ReleaseNotFoundError:
    """The error of a release without its commit record: retention removed it, or there is none."""
    kind = ReleaseArchivedError if exists(store, paths.archived_meta) else ReleaseNotFoundError
    return kind(paths.model_key, str(paths.run_id))


def _check_file(
    store: ObjectStore, key: str, look: Callable[[], ObjectInfo], record: FileRecord, *, read_all: bool
) -> None:
    try:
        info = look()
        digest = None if read_all else info.sha256
        if digest is None and info.size_bytes == record.size_bytes:
            digest = hash_object(store, key, size_bytes=record.size_bytes)
    except ObjectNotFoundError:
        raise ReleaseDamagedError(key, "it is missing") from None
    if (info.size_bytes, digest) != (record.size_bytes, record.sha256):
        raise ReleaseDamagedError(key, "it differs from what model_meta.json records")


class VerificationAhead:
    """Verifies releases while their caller reads something else; each result is used once.

    Args:
        verified: Verifies, and caches results.
    """

    def __init__(self, verified: VerifiedReleases) -> None:
        self._verified = verified
        self._begun: dict[str, Future[VerifiedRelease]] = {}

    def begin(self, store: ObjectStore, releases: Iterable[ReleasePaths]) -> None:
        """Begin to verify releases, each in a thread of its own."""
        for paths in releases:
            pool = ThreadPoolExecutor(1, thread_name_prefix="verifying")
            self._begun[paths.prefix] = pool.submit(self._verified.verify, store, paths)
            pool.shutdown(wait=False)

    def verify(self, store: ObjectStore, paths: ReleasePaths) -> VerifiedRelease:
        """Return the result of a verification that was begun, or verify now; see `VerifiedReleases.verify`."""
        begun = self._begun.pop(paths.prefix, None)
        return self._verified.verify(store, paths) if begun is None else begun.result()

    def verify_written(self, store: ObjectStore, written: Written) -> VerifiedRelease:
        """See `VerifiedReleases.verify_written`."""
        return self._verified.verify_written(store, written)


class VerifiedReleases:
    """Verifies releases, with one request where no file changed since the last time. Thread-safe.

    Every write gives an object another modification time, and another ETag (Supabase) or version (a directory: inode,
    time in nanoseconds, size). The listing has them all. A release is verified in full where the listing lacks both.

    Args:
        signing: See `verify_release`; its trusted keys do not change.
    """

    def __init__(self, signing: SigningPolicy) -> None:
        self._signing = signing
        self._verified: OrderedDict[tuple[str, str], tuple[list[ObjectInfo], VerifiedRelease]] = OrderedDict()
        self._lock = threading.Lock()

    def verify(self, store: ObjectStore, paths: ReleasePaths) -> VerifiedRelease:
        """Verify a release that an event needs, or return the cached result. A removal that has begun is prevented.

        Raises:
            ReleaseArchivedError: see `bar_removals`.
            ReleaseNotFoundError, ReleaseDamagedError, ReleaseSignatureError: see `verify_release`.
        """
        place = (store.name, paths.prefix)
        # The listing comes first: a file that changes during the verification differs in the next listing.
        listed = bar_removals(store, paths)
        with self._lock:
            found = self._verified.pop(place, None)
            if found is not None and found[0] == listed:
                self._verified[place] = found
                return found[1]
        release = verify_release(store, paths, signing=self._signing, listed=listed)
        if listed and all(item.etag is not None or item.version is not None for item in listed):
            self._keep(place, listed, release)
        return release

    def verify_written(self, store: ObjectStore, written: Written) -> VerifiedRelease:
        """Return a release that was just written, with one request: none of its files is read again if none changed.

        Raises:
            ReleaseNotFoundError, ReleaseDamagedError, ReleaseSignatureError: see `verify_release`.
        """
        paths = written.release.paths
        listed = list(store.list(paths.prefix))
        if not written.is_unchanged(listed):
            return self.verify(store, paths)
        self._keep((store.name, paths.prefix), listed, written.release)
        return written.release

    def _keep(self, place: tuple[str, str], listed: list[ObjectInfo], release: VerifiedRelease) -> None:
        with self._lock:
            self._verified[place] = (listed, release)
            while len(self._verified) > _CACHED_RELEASES:
                self._verified.popitem(last=False)
