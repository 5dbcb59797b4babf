"""Releases that were verified, for as long as a listing of their files stays the same."""

from __future__ import annotations

import threading
from collections import OrderedDict

from supabase_bridge.activate import VerifiedRelease, verify_release
from supabase_bridge.layout import ReleaseKeys
from supabase_bridge.object_store import ObjectInfo, ObjectStore
from supabase_bridge.signing import Seal

_KEPT = 1_000
"""How many releases are remembered; each takes a few kilobytes."""


class VerifiedReleases:
    """Verifies releases in one request where nothing of them was written since the last time. Thread-safe.

    Every write gives an object another time and, with other bytes, another ETag, and both are in a listing. A store
    that lists no ETags (a directory) is verified anew each time.

    Args:
        seal: See `verify_release`; whom it trusts does not change.
    """

    def __init__(self, seal: Seal) -> None:
        self._seal = seal
        self._verified: OrderedDict[tuple[str, str], tuple[list[ObjectInfo], VerifiedRelease]] = OrderedDict()
        self._lock = threading.Lock()

    def verify(self, store: ObjectStore, keys: ReleaseKeys) -> VerifiedRelease:
        """The release, complete and whole.

        Raises:
            ReleaseNotFoundError, ReleaseDamagedError, ReleaseSignatureError: see `verify_release`.
        """
        place = (store.name, keys.prefix)
        # Before the files are looked at: what is written meanwhile shows in the next listing.
        listed = list(store.list(keys.prefix))
        with self._lock:
            found = self._verified.pop(place, None)
            if found is not None and found[0] == listed:
                self._verified[place] = found
                return found[1]
        release = verify_release(store, keys, seal=self._seal)
        if listed and all(item.etag is not None for item in listed):
            with self._lock:
                self._verified[place] = (listed, release)
                while len(self._verified) > _KEPT:
                    self._verified.popitem(last=False)
        return release
