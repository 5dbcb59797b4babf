"""A channel's release log in an object store: read, append, and keep `manifest.json` equal to its newest entry.

Source: docs/adr/0001; the store's `create` (exactly one winner) is what the log is built on. docs/adr/0008: whose
entries are built upon.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from supabase_bridge.documents import LIMIT_BYTES, Cause, Manifest
from supabase_bridge.errors import (
    InvalidDocumentError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StoreUnavailableError,
    UntrustedLogError,
)
from supabase_bridge.layout import ChannelKeys
from supabase_bridge.object_store import JSON_TYPE, NO_CACHE, ObjectStore, PutOptions
from supabase_bridge.release_log import commits, precedes
from supabase_bridge.signing import UNSEALED, Seal
from supabase_bridge.trust import check_paths

logger = logging.getLogger(__name__)

_OPTIONS = PutOptions(content_type=JSON_TYPE, cache_control=NO_CACHE)
_ATTEMPTS = 100
"""How often a writer starts again because another one was faster; each time somebody else's switch was committed."""


@dataclass(frozen=True, kw_only=True)
class LogState:
    """A log as it was found.

    Attributes:
        head: The newest entry; None: the log is empty.
        published: What `manifest.json` held; None: it does not exist, or is too large to be a manifest.
    """

    head: Manifest | None
    published: bytes | None

    @property
    def in_step(self) -> bool:
        """True where consumers see the newest entry."""
        return self.published == (None if self.head is None else self.head.to_bytes())


class ChannelLog:
    """One channel's release log. Any number of writers may use it at once; none loses an update.

    Args:
        seal: What entries are signed with, and whose entries are believed; by default signatures are off.
    """

    def __init__(self, store: ObjectStore, keys: ChannelKeys, seal: Seal = UNSEALED) -> None:
        self._store = store
        self.keys = keys
        self._seal = seal
        self._unsigned_until = 0

    def look(self) -> LogState:
        """The newest entry, and what is published. `manifest.json` says where to look; only the log is believed.

        Raises:
            InvalidDocumentError: the newest entry is no manifest of this channel; somebody wrote into the log.
            UntrustedLogError: the newest entry is nobody's who is trusted.
        """
        published = self._published()
        head = self._entry_or_none(_sequence_in(published))
        if head is None:
            listed = [self.keys.sequence_of(item.key) for item in self._store.list(self.keys.history_prefix)]
            newest = max((sequence for sequence in listed if sequence is not None), default=None)
            head = None if newest is None else self.entry(newest)
        while (later := self._entry_or_none(1 if head is None else head.sequence + 1)) is not None:
            head = later
        self._refuse_untrusted(head)
        return LogState(head=head, published=published)

    def entry(self, sequence: int) -> Manifest:
        """One entry.

        Raises:
            ObjectNotFoundError: there is none.
            InvalidDocumentError: it is no manifest of this channel, or names files elsewhere.
        """
        key = self.keys.history(sequence)
        entry = Manifest.parse(self._store.read(key, limit_bytes=LIMIT_BYTES))
        named = (entry.model_name, entry.channel, entry.sequence)
        if named != (self.keys.model_key, self.keys.channel, sequence):
            raise InvalidDocumentError(key, "it names another model, channel or sequence than its key")
        check_paths(entry, self.keys)
        return entry

    def find(self, cause: Cause, head: Manifest | None) -> Manifest | None:
        """The entry at or below `head` that another attempt at this event committed, or None; None too by hand."""
        entry = None if cause.event_id is None else head
        while entry is not None and not commits(entry, cause):
            entry = None if precedes(entry, cause) else self._believed_before(entry)
        return entry

    def commit(
        self, head: Manifest | None, build: Callable[[Manifest | None], Manifest | None]
    ) -> tuple[Manifest | None, bool]:
        """Append what `build` makes of `head`, or of whatever newer head other writers have made meanwhile.

        Atomic: the entry is created under its sequence's key only if absent, so that of concurrent writers one gets the
        sequence and the others build again on its entry. A crash leaves the log with the entry or without it.
        Published is nothing yet.

        Returns:
            The new entry and True; or, where `build` found nothing to do, the head it found nothing to do on and False.

        Raises:
            SigningKeyMissingError: the entry must be signed, and there is no key to sign it with.
            UntrustedLogError: see `look`.
        """
        for _ in range(_ATTEMPTS):
            entry = build(head)
            if entry is None:
                return head, False
            entry = self._seal.entry(entry, head=head, channel=self.keys)
            try:
                self._store.create(self.keys.history(entry.sequence), entry.to_bytes(), _OPTIONS)
            except ObjectExistsError:
                head = self.look().head
            else:
                return entry, True
        raise self._overtaken()

    def publish(self, entry: Manifest) -> None:
        """Write `manifest.json`. Ends with nothing certain: `heal` afterwards."""
        self._store.overwrite(self.keys.manifest, entry.to_bytes(), _OPTIONS)

    def heal(self) -> Manifest | None:
        """Make `manifest.json` equal to the newest entry, and return that entry.

        Every writer ends with this, so that one that was overtaken, and wrote an older entry over a newer one, puts the
        newer one back; after a crash the next writer does.
        """
        for _ in range(_ATTEMPTS):
            state = self.look()
            if state.head is None or state.in_step:
                return state.head
            facts = {"key": self.keys.manifest, "sequence": state.head.sequence}
            logger.info("the manifest was behind its log and is written again", extra=facts)
            self.publish(state.head)
        raise self._overtaken()

    def _published(self) -> bytes | None:
        try:
            return self._store.read(self.keys.manifest, limit_bytes=LIMIT_BYTES)
        except (ObjectNotFoundError, ObjectTooLargeError):
            return None

    def _refuse_untrusted(self, head: Manifest | None) -> None:
        """Signing may be switched on for a log that has been unsigned so far, and not off again by whoever writes."""
        if head is None:
            return
        key = self.keys.history(head.sequence)
        problem = self._seal.problem(head, key)
        if problem is None:
            return
        if head.signature is not None:
            raise UntrustedLogError(key, str(problem)) from problem
        if self._signed_before(head):
            raise UntrustedLogError(key, "it is not signed, and an entry before it is") from problem

    def _signed_before(self, head: Manifest) -> bool:
        """Whether any entry there is below `head` has a signature; what is deleted leaves a gap, not an end."""
        if head.sequence <= self._unsigned_until:
            return False
        listed = [self.keys.sequence_of(item.key) for item in self._store.list(self.keys.history_prefix)]
        lower = sorted((number for number in listed if number is not None and number < head.sequence), reverse=True)
        if any(entry is not None and entry.signature is not None for entry in map(self._entry_or_none, lower)):
            return True
        self._unsigned_until = head.sequence
        return False

    def _believed_before(self, entry: Manifest) -> Manifest | None:
        """The entry before a believed one, if it is believed too: unsigned only where the later one is."""
        before = self._entry_or_none(entry.sequence - 1)
        if before is None or self._seal.problem(before, self.keys.history(before.sequence)) is None:
            return before
        return before if before.signature is None and entry.signature is None else None

    def _entry_or_none(self, sequence: int) -> Manifest | None:
        if sequence < 1:
            return None
        try:
            return self.entry(sequence)
        except ObjectNotFoundError:
            return None

    def _overtaken(self) -> StoreUnavailableError:
        reason = f"other writers were faster {_ATTEMPTS} times"
        return StoreUnavailableError(self._store.name, f"switching {self.keys.manifest}", reason)


def _sequence_in(published: bytes | None) -> int:
    """The sequence that a published manifest names, or 0 where it is absent or damaged."""
    try:
        return 0 if published is None else Manifest.parse(published).sequence
    except InvalidDocumentError:
        return 0
