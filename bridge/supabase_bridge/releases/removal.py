"""Remove the model files of a release, and keep removal, activation and restoration of one release apart.

Small objects in the release's folder order them; docs/adr/0024-retention.md has the proof:

- `removal-<attempt>.json` is the mark of a removal that has changed nothing yet. An activation deletes it, and the
  removal can never be carried out. A move of the mark to `model_meta.archived.json` carries the removal out: from then
  on no pointer may move to the release before it is restored.
- `removal-<attempt>-files.json` shows that model files are deleted now, for some seconds.
- `hold-<attempt>.json` shows that a command activates or restores the release; a removal that finds it stops.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from supabase_bridge.core.documents import ModelMeta
from supabase_bridge.core.errors import BridgeError, InvalidDocumentError
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import ReleasePaths, is_hold, is_removal
from supabase_bridge.releases.errors import (
    ReleaseArchivedError,
    ReleaseBusyError,
    ReleaseDamagedError,
    ReleaseNotFoundError,
)
from supabase_bridge.storage.base import JSON_TYPE, NO_CACHE, ObjectInfo, ObjectStore, PutOptions, exists
from supabase_bridge.storage.errors import ObjectExistsError, ObjectNotFoundError, StoreUnavailableError

_OPTIONS = PutOptions(content_type=JSON_TYPE, cache_control=NO_CACHE, compared=False)
_DELETING = timedelta(seconds=10)
"""For this time after its mark a removal may begin to delete files."""
_GRACE = timedelta(seconds=40)
"""The time between the mark of a removal and a hold, by the store's clock, after which no file is deleted any more."""


def read_archived(store: ObjectStore, paths: ReleasePaths) -> bytes | None:
    """Return the commit record of a release that was removed, as it was; None: there is none.

    Raises:
        ReleaseDamagedError: it is damaged, or another release's.
    """
    try:
        raw = store.read(paths.archived_meta, limit_bytes=LIMIT_BYTES)
    except ObjectNotFoundError:
        return None
    _parse(raw, paths)
    return raw


def _parse(raw: bytes, paths: ReleasePaths) -> ModelMeta:
    try:
        meta = ModelMeta.parse(raw)
        meta.check_identity(paths)
        meta.check_file_names(paths)
    except InvalidDocumentError as error:
        raise ReleaseDamagedError(paths.meta, error.reason) from None
    return meta


class Removal:
    """One attempt to remove the model files of a release. The documents stay, so that it can be restored.

    The order of the calls: `begin`, then the caller finds out what still uses the release, then `commit` and
    `delete_files`, or `cancel`. Each call may fail or be the last one before a crash; the next attempt finishes it.

    Args:
        attempt: A name that was never used before.
        clock: Seconds that no change of the machine's time affects.

    Attributes:
        committed: The release counts as removed.
        meta: Its commit record, after `begin`.
    """

    meta: ModelMeta

    def __init__(
        self, store: ObjectStore, paths: ReleasePaths, *, attempt: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self.paths = paths
        self._mark = paths.removal(attempt)
        self._deleting = paths.removal(f"{attempt}-files")
        self._clock = clock
        self.committed = False

    def begin(self) -> bytes:
        """Mark the release, and return the bytes of its commit record. An activation that begins later finds the mark.

        Raises:
            ReleaseNotFoundError: there is no such release, or it is incomplete.
            ReleaseDamagedError: its commit record is damaged, or another release's; nothing was written.
        """
        found = read_archived(self._store, self.paths)
        self.committed = found is not None
        if found is None:
            try:
                found = self._store.read(self.paths.meta, limit_bytes=LIMIT_BYTES)
            except ObjectNotFoundError:
                raise ReleaseNotFoundError(self.paths.model_key, str(self.paths.run_id)) from None
        self.meta = _parse(found, self.paths)
        if not self.committed:
            self._store.overwrite(self._mark, found, _OPTIONS)
        return found

    def cancel(self) -> None:
        """Give the attempt up; a removal that was carried out stays."""
        self._store.delete([self._mark])

    def commit(self) -> bool:
        """Carry the removal out: no pointer moves to the release any more. False: an activation prevents it.

        Raises:
            StoreUnavailableError: whether it was carried out is unknown; the next attempt finishes it.
        """
        if self.committed:
            return True
        try:
            self._store.move(self._mark, self.paths.archived_meta)
            self.committed = True
        except (ObjectNotFoundError, ObjectExistsError):
            # An activation has deleted the mark; or another attempt, or this one unnoticed, carried the removal out.
            self.committed = exists(self._store, self.paths.archived_meta)
            self._store.delete([self._mark])
        return self.committed

    def delete_files(self, names: Iterable[str]) -> bool:
        """Delete the commit record, and then model files. False: the release is being restored, and its files stay.

        Args:
            names: The names of the files in the release; missing ones are ignored.
        """
        begun = self._clock()
        self._store.overwrite(self._deleting, b"{}\n", _OPTIONS)
        listed = [item.key for item in self._store.list(self.paths.prefix)]
        deletes = self.paths.archived_meta in listed and not any(is_hold(_name(key)) for key in listed)
        for keys in ([self.paths.meta], [self.paths.file(name) for name in names]):
            deletes = deletes and self._clock() - begun < _DELETING.total_seconds()
            if deletes:
                self._store.delete(keys)
        # After a request without an answer the mark stays, because the server may still carry it out.
        self._store.delete([self._deleting])
        return deletes


def bar_removals(
    store: ObjectStore, paths: ReleasePaths, listed: Iterable[ObjectInfo] | None = None
) -> list[ObjectInfo]:
    """Prevent every removal of a release that has not been carried out, and return what lies in its folder.

    The caller has recorded before that it needs the release: by an event in the outbox, or by a hold. A removal that
    begins later finds that record.

    Args:
        listed: What lies in the folder, where the caller has listed it just now.

    Raises:
        ReleaseArchivedError: its model files were removed.
    """
    found = list(store.list(paths.prefix) if listed is None else listed)
    marks = [item.key for item in found if is_removal(_name(item.key))]
    if marks and all(item.key != paths.archived_meta for item in found):
        store.delete(marks)
        found = list(store.list(paths.prefix))
    if any(item.key == paths.archived_meta for item in found):
        raise ReleaseArchivedError(paths.model_key, str(paths.run_id))
    return found


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A hold on a release, and what lay in its folder after the hold was written."""

    written: ObjectInfo
    listed: tuple[ObjectInfo, ...]

    def check_no_removal(self, paths: ReleasePaths) -> None:
        """Check that no removal deletes files of the release, so that it may be restored.

        Raises:
            ReleaseBusyError: one may still do so; the same call succeeds within a minute.
        """
        for item in self.listed:
            if is_removal(_name(item.key)) and self.written.modified_at - item.modified_at < _GRACE:
                raise ReleaseBusyError(paths.model_key, str(paths.run_id))


@contextmanager
def held(store: ObjectStore, paths: ReleasePaths, *, attempt: str | None = None) -> Iterator[Hold]:
    """Hold a release for the length of a block, so that no removal begins or goes on.

    Args:
        attempt: A name that was never used before; None: a random one.
    """
    key = paths.hold(attempt or uuid.uuid4().hex)
    store.overwrite(key, b"{}\n", _OPTIONS)
    ended = True
    try:
        listed = tuple(store.list(paths.prefix))
        written = next((item for item in listed if item.key == key), None) or store.stat(key)
        yield Hold(written=written, listed=listed)
    except StoreUnavailableError:
        ended = False  # A request without an answer may still be carried out, so the hold ends by its age only.
        raise
    finally:
        if ended:
            with suppress(BridgeError):
                store.delete([key])


def _name(key: str) -> str:
    return key.rpartition("/")[2]
