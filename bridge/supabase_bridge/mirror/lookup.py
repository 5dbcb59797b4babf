"""Read what storage has of a release that is to be made, all at once: over a network this takes one round trip."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from supabase_bridge.core.documents import Document, Manifest, Metrics, ModelMeta
from supabase_bridge.core.errors import InvalidDocumentError
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId
from supabase_bridge.mirror.release_draft import Baseline
from supabase_bridge.releases.channel import Channel, KnownHeads
from supabase_bridge.releases.claim import read_claim
from supabase_bridge.releases.heads import in_parallel
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.storage.errors import ObjectNotFoundError, ObjectTooLargeError
from supabase_bridge.trust.signer import SigningPolicy

_Document = TypeVar("_Document", bound=Document)


class Baselines:
    """The releases with which new ones are compared: the current one of a channel.

    Args:
        heads: The heads of logs that were read before.
    """

    def __init__(self, store: ObjectStore, channel: str, signing: SigningPolicy, heads: KnownHeads) -> None:
        self._store = store
        self._channel = channel
        self._signing = signing
        self._heads = heads

    def is_missing(self, paths: ReleasePaths) -> bool | None:
        """Return whether there was no baseline when the channel was read before; None: it was not read."""
        known = self._heads.known(self._log(paths))
        return None if known is None else _before(known.head, paths) is None

    def current(self, paths: ReleasePaths) -> Baseline | None:
        """Return a release's baseline; None where there is none, or its metrics cannot be read."""
        log, begun = self._log(paths), dict[str, Future[Baseline | None]]()
        with ThreadPoolExecutor(2, thread_name_prefix="reading") as pool:

            def begin(head: Manifest | None) -> None:
                if (expected := _before(head, paths)) is not None:
                    begun[expected] = pool.submit(self.read, paths.model_key, expected)

            known = self._heads.known(log)
            begin(None if known is None else known.head)
            run_id = _before(self._heads.read(log, shown=begin).head, paths)
        if run_id is None:
            return None
        return begun[run_id].result() if run_id in begun else self.read(paths.model_key, run_id)

    def run_id(self, paths: ReleasePaths) -> str | None:
        """Return the current release; if this release itself is current and is mirrored again, the one before it."""
        return _before(self._heads.read(self._log(paths)).head, paths)

    def read(self, model_key: str, run_id: str) -> Baseline | None:
        """Return a release to compare with; None where its metrics cannot be read."""
        paths = ReleasePaths(model_key=model_key, run_id=RunId.parse(run_id))

        def commit_record() -> ModelMeta | None:
            # Retention removes no documents, but renames this one.
            return self._parsed(ModelMeta, paths.meta) or self._parsed(ModelMeta, paths.archived_meta)

        metrics, meta = in_parallel(partial(self._parsed, Metrics, paths.metrics), commit_record)
        return None if metrics is None else Baseline(metrics=metrics, meta=meta)

    def _parsed(self, kind: type[_Document], key: str) -> _Document | None:
        try:
            return kind.parse(self._store.read(key, limit_bytes=LIMIT_BYTES))
        except (ObjectNotFoundError, ObjectTooLargeError, InvalidDocumentError):
            return None

    def _log(self, paths: ReleasePaths) -> Channel:
        channel = ChannelPaths(model_key=paths.model_key, channel=self._channel)
        return Channel(self._store, channel, self._signing, at_once=in_parallel)


class FolderLookup:
    """The commit record and the claim of a release's folder, and its baseline; reading begins at once.

    Each method waits for its own result, and raises what the read raised.

    Attributes:
        lacks_baseline: Whether there was no baseline when the channel was read before; None: it was not read.
    """

    def __init__(self, store: ObjectStore, paths: ReleasePaths, baselines: Baselines) -> None:
        self.paths = paths
        self.lacks_baseline = baselines.is_missing(paths)
        pool = ThreadPoolExecutor(3, thread_name_prefix="reading")
        self._commit_record = pool.submit(_read, store, paths.meta)
        self._claim = pool.submit(read_claim, store, paths)
        self._baseline = pool.submit(baselines.current, paths)
        pool.shutdown(wait=False)

    def commit_record(self) -> bytes | None:
        """Return the content of model_meta.json; None: there is none. Raises ObjectTooLargeError."""
        return self._commit_record.result()

    def claim(self) -> ModelMeta | None:
        """Return the draft for which the folder is claimed; see `read_claim`."""
        return self._claim.result()

    def baseline(self) -> Baseline | None:
        """Return the baseline; see `Baselines.current`."""
        return self._baseline.result()


def _before(head: Manifest | None, paths: ReleasePaths) -> str | None:
    """Return the newest release of a log that is another one than this."""
    candidates = [] if head is None else [head.current, *head.previous]
    return next((release.run_id for release in candidates if release.run_id != str(paths.run_id)), None)


def _read(store: ObjectStore, key: str) -> bytes | None:
    try:
        return store.read(key, limit_bytes=LIMIT_BYTES)
    except ObjectNotFoundError:
        return None
