"""Restore the release of a version whose model files retention removed: from an archive, if one has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from supabase_bridge.core.documents import ModelMeta
from supabase_bridge.core.layout import ReleasePaths, RunId
from supabase_bridge.core.tags import RUN_ID_TAG
from supabase_bridge.registry.client import RegisteredVersion
from supabase_bridge.registry.naming import may_be_of
from supabase_bridge.releases.archive import Bucket, restore_release
from supabase_bridge.releases.errors import ReleaseConflictError
from supabase_bridge.releases.removal import Hold, held, read_archived
from supabase_bridge.storage.base import ObjectStore


@dataclass(frozen=True, kw_only=True)
class RemovedRelease:
    """A version's release without its model files, held for the length of a restoration.

    Attributes:
        raw: The bytes of its commit record.
    """

    store: ObjectStore
    paths: ReleasePaths
    hold: Hold
    raw: bytes

    def restore_from(self, archives: Sequence[Bucket], *, bucket: str) -> bool:
        """Restore the release from the first archive that has all its files; False: none has.

        Args:
            bucket: The name of the release's own bucket.

        Raises:
            ReleaseBusyError, CorruptObjectError, ReleaseDamagedError: see `restore_release`.
        """
        target = Bucket(name=bucket, store=self.store)
        return any(restore_release(archive, target, self.paths, self.hold) for archive in archives)


@contextmanager
def hold_removed(store: ObjectStore, version: RegisteredVersion, model_key: str) -> Iterator[RemovedRelease | None]:
    """Hold the release of a version for the length of a block if it was removed; None: it was not.

    Raises:
        ReleaseBusyError: files of the release are being deleted.
        ReleaseConflictError: it is another version's release.
    """
    given = version.tags.get(RUN_ID_TAG)
    paths = None if given is None else ReleasePaths(model_key=model_key, run_id=RunId.parse(given))
    raw = None if paths is None else read_archived(store, paths)
    if paths is None or raw is None:
        yield None
        return
    meta = ModelMeta.parse(raw)
    if meta.mlflow is not None and not may_be_of(meta, version):
        owner, number = meta.mlflow.registered_model, meta.mlflow.version
        raise ReleaseConflictError.of_version(paths.archived_meta, owner, number, version.model, version.version)
    with held(store, paths) as hold:
        hold.check_no_removal(paths)
        yield RemovedRelease(store=store, paths=paths, hold=hold, raw=raw)
