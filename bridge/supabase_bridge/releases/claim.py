"""Claim the folder of a release, and complete the release, or bar it from completion.

Files of a release go straight to their final keys, because a move of a large object costs as much as its upload. Two
small objects below `_tmp/claims/` order the attempts instead; docs/adr/0020-claims.md has the proof:

- `claim.json` is created once, and names the version and the digest of every file. Only an attempt with the same
  digests may write to the folder; so a late write changes nothing.
- `verdict.json` is created once, when the checks have ended: the commit record to be, or a rejection. A move of the
  commit record to `model_meta.json` completes the release. A rejected release can never be completed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from supabase_bridge.core.documents import Document, ModelMeta
from supabase_bridge.core.errors import BridgeError, InvalidDocumentError
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import TEMPORARY_PREFIX, ReleasePaths
from supabase_bridge.releases.errors import ReleaseTakenError
from supabase_bridge.storage.base import JSON_TYPE, NO_CACHE, ObjectInfo, ObjectStore, PutOptions, exists
from supabase_bridge.storage.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StoreUnavailableError,
)

_OPTIONS = PutOptions(content_type=JSON_TYPE, cache_control=NO_CACHE, compared=False)
_VERDICT_OPTIONS = replace(_OPTIONS, compared=True)
_REJECTED = b"rejected\n"

_logger = logging.getLogger(__name__)


class _Claim(Document):
    """claim.json: the attempt that won the folder, and the release that it may become."""

    document_name = "claim.json"

    attempt: str
    release: ModelMeta


class ReleaseClaim:
    """The right to fill the folder of one release; shared by all attempts with the same digests.

    Both small objects can be uploaded to temporary keys before they are wanted, beside other requests: one move then
    publishes them. `forget` deletes those that were not published.

    Args:
        attempt: A name of this attempt for people and for its temporary keys, never used before.

    Attributes:
        draft: The release's model_meta.json, as far as it is known before the checks.
        present: The objects in the folder when the claim was won; each has the bytes of the release.
    """

    def __init__(self, store: ObjectStore, paths: ReleasePaths, draft: ModelMeta, *, attempt: str) -> None:
        self._store = store
        self._paths = paths
        self.draft = draft
        self._attempt = attempt
        self._claim = _Claim(attempt=attempt, release=draft).to_bytes()
        self._prepared: dict[str, bytes] = {}
        self._complete = False
        self.present: tuple[ObjectInfo, ...] = ()

    def prepare(self) -> None:
        """Upload the claim to a temporary key; `take` moves it."""
        self._prepare(self._paths.claim, self._claim, _OPTIONS)

    def prepare_verdict(self, meta: ModelMeta) -> None:
        """Upload the commit record that `accept` is expected to get to a temporary key, and compare it there."""
        self._prepare(self._paths.verdict, meta.to_bytes(), _VERDICT_OPTIONS)

    def take(self, is_ours: Callable[[ObjectInfo], bool], *, claimed: ModelMeta | None = None) -> None:
        """Win or share the claim; afterwards every file may be written to its key, also where it is present.

        Args:
            is_ours: Whether an object in the folder has the bytes of the release.
            claimed: The draft of a claim that was read before; None: none was there.

        Raises:
            ReleaseTakenError: the folder belongs to another release, was rejected, or holds other bytes.
        """
        if claimed is None:
            try:
                self._create(self._paths.claim, self._claim, _OPTIONS)
            except ObjectExistsError:
                claimed = read_claim(self._store, self._paths)
                if claimed is None:
                    raise self._taken("another attempt has just finished with it") from None
        if claimed is not None:
            if not _is_same(claimed, self.draft):
                raise self._taken("another attempt claimed it for other bytes")
            if self._verdict() == _REJECTED:
                raise self._taken("its files were rejected by an earlier check")
        # A claim says nothing of a release that was completed before; so the folder is read after the claim was won.
        present = tuple(self._store.list(self._paths.prefix, bucket_exists=True))
        for info in present:
            if info.key == self._paths.meta:
                if not _is_same(ModelMeta.parse(self._commit_record()), self.draft):
                    raise self._taken("it holds another complete release")
            elif info.key != self._paths.signature and not is_ours(info):
                raise self._taken(f"{info.key} has other bytes")
        self.present = present

    def accept(self, meta: ModelMeta) -> bytes:
        """Record that the checks have passed, and return the commit record that completes the release.

        Args:
            meta: The draft with the notes of the checks. If another attempt was faster, its commit record is returned.

        Raises:
            ReleaseTakenError: another attempt rejected the files, or the record is none of this release.
        """
        raw = meta.to_bytes()
        try:
            self._create(self._paths.verdict, raw, _VERDICT_OPTIONS)
        except ObjectExistsError:
            # A commit record that is gone has completed the release.
            raw = self._verdict() or self._commit_record()
            if raw == _REJECTED:
                raise self._taken("its files were rejected by another attempt's check") from None
            if not _is_same(ModelMeta.parse(raw), self.draft):
                raise self._taken("its commit record names other bytes") from None
        return raw

    def commit(self) -> bool:
        """Complete the release, whose files are all stored and accepted; `forget` deletes its claim afterwards.

        Returns:
            True if this attempt completed it with the commit record of `accept`; False: another attempt did.

        Raises:
            ReleaseTakenError: another release is complete here.
            StoreUnavailableError: whether it is complete is unknown.
        """
        try:
            self._store.move(self._paths.verdict, self._paths.meta)
        except (ObjectExistsError, ObjectNotFoundError, StoreUnavailableError) as error:
            try:
                raw = self._commit_record()
            except StoreUnavailableError as unknown:
                raise unknown from error
            if not _is_same(ModelMeta.parse(raw), self.draft):
                raise self._taken("it holds another release") from error
            self._complete = True
            return False
        self._complete = True
        return True

    def forget(self) -> None:
        """Delete what this attempt left at temporary keys, and the claim of a release that is complete.

        The claim of an incomplete release stays for good.
        """
        keys = [self._temporary(key) for key in self._prepared]
        keys += [self._paths.claim, self._paths.verdict] if self._complete else []
        try:
            if keys:
                self._store.delete(keys)
        except BridgeError as error:
            facts = {"keys": keys, "reason": str(error)}
            _logger.info("Objects of an attempt were left behind", extra=facts)

    def reject(self) -> None:
        """Bar the release from completion, and delete its files; a release that another attempt completes stays."""
        if bar_completion(self._store, self._paths):
            names = {self._paths.file(name) for name in self.draft.files}
            self._store.delete([info.key for info in self._store.list(self._paths.prefix) if info.key in names])

    def _prepare(self, key: str, raw: bytes, options: PutOptions) -> None:
        self._prepared[key] = raw
        self._store.overwrite(self._temporary(key), raw, options)

    def _create(self, key: str, raw: bytes, options: PutOptions) -> None:
        """Create an object, by a move of the prepared one where that has these bytes; raises ObjectExistsError."""
        if self._prepared.get(key) == raw:
            try:
                self._store.move(self._temporary(key), key)
                self._prepared.pop(key)
                return
            except ObjectNotFoundError:
                # A cleanup deleted it, or an earlier try of this move succeeded and its answer was lost.
                self._prepared.pop(key)
        self._store.create(key, raw, options)

    def _temporary(self, key: str) -> str:
        """Return the temporary key of an object, which no other attempt uses."""
        return f"{TEMPORARY_PREFIX}{self._attempt}-{key.rpartition('/')[2]}"

    def _verdict(self) -> bytes | None:
        try:
            return self._store.read(self._paths.verdict, limit_bytes=LIMIT_BYTES)
        except ObjectNotFoundError:
            return None

    def _commit_record(self) -> bytes:
        try:
            return self._store.read(self._paths.meta, limit_bytes=LIMIT_BYTES)
        except ObjectNotFoundError as error:
            operation = f"creating {self._paths.meta}"
            raise StoreUnavailableError(self._store.name, operation, "whether it was created is unknown") from error

    def _taken(self, problem: str) -> ReleaseTakenError:
        return ReleaseTakenError(self._paths.prefix, problem)


def read_claim(store: ObjectStore, paths: ReleasePaths) -> ModelMeta | None:
    """Return the draft of the release for which a folder is claimed; None: it is not claimed.

    Raises:
        ReleaseTakenError: the claim is damaged.
    """
    try:
        return _Claim.parse(store.read(paths.claim, limit_bytes=LIMIT_BYTES)).release
    except ObjectNotFoundError:
        return None
    except (InvalidDocumentError, ObjectTooLargeError) as error:
        raise ReleaseTakenError(paths.prefix, f"{paths.claim} is damaged ({error})") from error


def bar_completion(store: ObjectStore, paths: ReleasePaths) -> bool:
    """Reject an incomplete release for good; False: it is complete, or its files have passed the checks."""
    try:
        store.create(paths.verdict, _REJECTED, _OPTIONS)
    except ObjectExistsError:
        try:
            if store.read(paths.verdict, limit_bytes=LIMIT_BYTES) != _REJECTED:
                return False
        except ObjectNotFoundError:
            return False
    # A commit frees the key of the verdict, so that a rejection can come after it.
    return not exists(store, paths.meta)


def _is_same(found: ModelMeta, own: ModelMeta) -> bool:
    """Return whether both describe the same files of the same version, under any name of its model."""
    origins = [
        meta.mlflow and (meta.mlflow.version, meta.mlflow.run_id, meta.mlflow.workspace) for meta in (found, own)
    ]
    return found.files == own.files and origins[0] == origins[1]
