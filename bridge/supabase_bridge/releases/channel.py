"""A channel of a model: read the head of its log, activate a release, publish and repair the manifest."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from supabase_bridge.core.documents import RELEASE_NOTES_LIMIT, Cause, CurrentRelease, Manifest, ModelMeta
from supabase_bridge.core.errors import InvalidDocumentError
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.core.release_log import chained, commits, next_entry, precedes, repeated
from supabase_bridge.releases.errors import ReleaseConflictError, ReleaseDamagedError, UntrustedLogError
from supabase_bridge.releases.heads import AtOnce, HeadState, one_by_one
from supabase_bridge.releases.verify import VerifiedRelease
from supabase_bridge.storage.base import JSON_TYPE, NO_CACHE, ObjectStore, PutOptions
from supabase_bridge.storage.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StoreUnavailableError,
)
from supabase_bridge.trust.signer import NO_SIGNING, SigningPolicy
from supabase_bridge.trust.verify import check_paths

logger = logging.getLogger(__name__)

_OPTIONS = PutOptions(content_type=JSON_TYPE, cache_control=NO_CACHE)

_ATTEMPTS = 100
"""How often a writer starts again after another writer was faster; each time one activation was committed."""

_KNOWN_CHANNELS = 10_000  # Each takes a few kilobytes.


@dataclass(frozen=True, kw_only=True)
class Activation:
    """The result of `Channel.activate`.

    Attributes:
        entry: The log entry that holds the release: the new one, or the one that held it already; where the activation
            was no longer wanted, the entry that it would have followed.
        activated: True where this call, or an earlier attempt at the same event, moved the pointer.
        head: The log's newest entry when the call ended.
    """

    entry: Manifest
    activated: bool
    head: Manifest


class Channel:
    """A channel and its release log. Any number of writers may use it at the same time; no update is lost.

    Args:
        signing: Signs new entries, and names the keys whose entries are trusted; by default signatures are off.
        at_once: Makes two reads that do not depend on each other; the result is the same in any order.
    """

    def __init__(
        self,
        store: ObjectStore,
        paths: ChannelPaths,
        signing: SigningPolicy = NO_SIGNING,
        *,
        at_once: AtOnce = one_by_one,
    ) -> None:
        self._store = store
        self.paths = paths
        self._signing = signing
        self._at_once = at_once
        self._unsigned_until = 0

    @property
    def place(self) -> str:
        """The store and the folder of the log."""
        return f"{self._store.name} {self.paths.history_prefix}"

    def read_head(
        self, known: HeadState | None = None, *, shown: Callable[[Manifest], None] = lambda _: None
    ) -> HeadState:
        """The newest entry and the manifest. The manifest is only a hint where to look; the log decides.

        Args:
            known: What the caller has read or written before. Entries never change, so the known head is not read again
                if the manifest still shows it.
            shown: Called with the entry that the manifest shows, before the log is read; it is probably the head.

        Raises:
            InvalidDocumentError: the newest entry is no manifest of this channel; a foreign writer made it.
            UntrustedLogError: no trusted key signed the newest entry.
        """
        if known is not None and known.manifest_is_current:
            head = known.head
            manifest, later = self._at_once(self._manifest_bytes, partial(self._entry_after, head))
            if manifest != known.manifest_bytes:
                head, later = self._named_by(manifest)
        else:
            manifest = self._manifest_bytes()
            if (entry := _parsed(manifest)) is not None:
                shown(entry)
            head, later = self._named_by(manifest)
        if known is not None and head == known.head and later is None:
            return HeadState(head=head, manifest_bytes=manifest)  # Its signature was verified before.
        while later is not None:
            head, later = later, self._entry_after(later)
        self._refuse_untrusted(head)
        return HeadState(head=head, manifest_bytes=manifest)

    def _named_by(self, manifest: bytes | None) -> tuple[Manifest | None, Manifest | None]:
        """The entry that a manifest names, or the newest one that is listed; and the entry after it."""
        if (shown := _parsed(manifest)) is not None:
            sequence = shown.sequence
            named, later = self._at_once(
                partial(self._entry_or_none, sequence), partial(self._entry_or_none, sequence + 1)
            )
            if named is not None:
                return named, later
        sequences, first = self._at_once(self._sequences, partial(self._entry_or_none, 1))
        if not sequences:
            return None, first
        head = self.entry(max(sequences))
        return head, self._entry_after(head)

    def _entry_after(self, head: Manifest | None) -> Manifest | None:
        return self._entry_or_none(1 if head is None else head.sequence + 1)

    def entry(self, sequence: int) -> Manifest:
        """One entry.

        Raises:
            ObjectNotFoundError: there is none.
            InvalidDocumentError: it is no manifest of this channel, or names files elsewhere.
        """
        path = self.paths.history(sequence)
        entry = Manifest.parse(self._store.read(path, limit_bytes=LIMIT_BYTES))
        named = (entry.model_name, entry.channel, entry.sequence)
        if named != (self.paths.model_key, self.paths.channel, sequence):
            raise InvalidDocumentError(path, "it names another model, channel or sequence than its key")
        check_paths(entry, self.paths)
        return entry

    def find(self, cause: Cause, head: Manifest | None) -> Manifest | None:
        """The entry at or below `head` that another attempt at this event committed; None: there is none.

        A manual activation has no event, so the result is None.
        """
        entry = None if cause.event_id is None else head
        while entry is not None and not commits(entry, cause):
            entry = None if precedes(entry, cause) else self.entry_before(entry)
        return entry

    def check_owner(self, head: Manifest | None, registry_id: str) -> None:
        """Check that no other registry wrote the log up to `head`; a manual activation belongs to no registry.

        Raises:
            ReleaseConflictError: another registry wrote it, and no operator has adopted it.
        """
        owner = self.owner(head)
        if head is not None and owner not in {None, registry_id}:
            reference = f"{self.paths.model_key}@{self.paths.channel}"
            key = self.paths.history(head.sequence)
            raise ReleaseConflictError.of_registry(key, str(owner), registry_id, reference)

    def owner(self, head: Manifest | None) -> str | None:
        """The registry of the newest entry up to `head` that names one; None: no entry does."""
        while head is not None and (head.cause is None or head.cause.registry_id is None):
            head = self.entry_before(head)
        return None if head is None or head.cause is None else head.cause.registry_id

    def activate(
        self,
        release: VerifiedRelease,
        *,
        head: Manifest | None,
        cause: Cause,
        published_at: datetime,
        still_wanted: Callable[[Manifest | None], bool] = lambda _: True,
        always: bool = False,
    ) -> Activation:
        """Make a release that was just verified the current one: commit an entry to the log, then publish it.

        Idempotent for one event (`cause.event_id`): after any number of attempts and crashes the log has one entry for
        it. A release that is current already gets no new entry.

        Args:
            head: The log's newest entry as the caller has read it.
            published_at: The entry's time; the same at every attempt at one event.
            still_wanted: Called with each head that the entry would follow, after that head was read. No other entry
                can come between this call and the new entry, because an entry is created only where the head has not
                moved. Where it returns False, no entry is made.
            always: Make an entry also where the release is current already.

        Raises:
            StoreUnavailableError: the outcome is unknown; the caller may repeat the same call.
            UntrustedLogError, SigningError: see `commit`; the pointer is not moved.
        """
        entry = self.find(cause, head)
        activated, known = entry is not None, None
        if entry is None:

            def build(head: Manifest | None) -> Manifest | None:
                if self.find(cause, head) is not None or not still_wanted(head):
                    return None
                entry = self.following(release, head=head, cause=cause, published_at=published_at)
                return repeated(head, cause) if entry is None and head is not None and always else entry

            entry, activated = self.commit(head, build)
            if entry is not None and activated:
                self.publish(entry)
                known = HeadState.published(entry)
            elif (own := self.find(cause, entry)) is not None:
                # A second attempt at the same event, whose worker lost its lease, was faster.
                entry, activated = own, True
        head = self.repair_manifest(known)
        if entry is None or head is None:
            raise ReleaseDamagedError(self.paths.history_prefix, "the log was emptied while it was written")
        return Activation(entry=entry, activated=activated, head=head)

    def following(
        self, release: VerifiedRelease, *, head: Manifest | None, cause: Cause, published_at: datetime
    ) -> Manifest | None:
        """Return the unsigned entry that would follow `head`; None if the release is current already."""
        current, notes = _current(release, published_at), _release_notes(release.meta)
        return next_entry(head, self.paths, current=current, cause=cause, release_notes=notes)

    def commit(
        self, head: Manifest | None, build: Callable[[Manifest | None], Manifest | None]
    ) -> tuple[Manifest | None, bool]:
        """Append the entry that `build` makes of `head`, or of a newer head that other writers made meanwhile.

        The entry names the digest of the entry that it follows.

        Atomic: the entry is created under its sequence only if absent, so that of concurrent writers one gets the
        sequence and the others build again on its entry. A crash leaves the log with the entry or without it.
        The manifest is not written yet.

        Returns:
            The new entry and True; or, where `build` returned None, the head that it was given and False.

        Raises:
            SigningError: the entry must be signed, and there is no key to sign it with.
            UntrustedLogError: see `read_head`.
        """
        for _ in range(_ATTEMPTS):
            entry = build(head)
            if entry is None:
                return head, False
            entry = self._signing.entry(chained(entry, head), head=head, channel=self.paths)
            try:
                self._store.create(self.paths.history(entry.sequence), entry.to_bytes(), _OPTIONS)
            except ObjectExistsError:
                head = self.read_head().head
            else:
                return entry, True
        raise self._overtaken()

    def publish(self, entry: Manifest) -> None:
        """Write `manifest.json`. Another writer may have written a newer one: call `repair_manifest` afterwards."""
        self._store.overwrite(self.paths.manifest, entry.to_bytes(), _OPTIONS)

    def repair_manifest(self, known: HeadState | None = None) -> Manifest | None:
        """Make `manifest.json` equal to the newest entry, and return that entry.

        Every writer ends with this call. An overtaken writer that wrote an older entry over a newer one thus puts the
        newer one back, and after a crash the next writer does.

        Args:
            known: See `read_head`.
        """
        for _ in range(_ATTEMPTS):
            state = self.read_head(known)
            if state.head is None or state.manifest_is_current:
                return state.head
            facts = {"key": self.paths.manifest, "sequence": state.head.sequence}
            logger.info("the manifest was behind its log and is written again", extra=facts)
            self.publish(state.head)
            known = HeadState.published(state.head)
        raise self._overtaken()

    def _manifest_bytes(self) -> bytes | None:
        try:
            return self._store.read(self.paths.manifest, limit_bytes=LIMIT_BYTES)
        except (ObjectNotFoundError, ObjectTooLargeError):
            return None

    def _sequences(self) -> list[int]:
        """The sequences of all entries; a deleted entry leaves a gap. The manifest was read before."""
        found = self._store.list(self.paths.history_prefix, bucket_exists=True)
        listed = [self.paths.sequence_of(item.key) for item in found]
        return [sequence for sequence in listed if sequence is not None]

    def _refuse_untrusted(self, head: Manifest | None) -> None:
        """Accept an unsigned head only where no entry is signed: a writer of the bucket cannot switch signing off."""
        if head is None:
            return
        path = self.paths.history(head.sequence)
        problem = self._signing.problem(head, path)
        if problem is None:
            return
        if head.signature is not None:
            raise UntrustedLogError(path, str(problem)) from problem
        if self._signed_before(head):
            raise UntrustedLogError(path, "it is not signed, and an entry before it is") from problem

    def _signed_before(self, head: Manifest) -> bool:
        """Whether any entry below `head` has a signature."""
        if head.sequence <= self._unsigned_until:
            return False
        lower = sorted((number for number in self._sequences() if number < head.sequence), reverse=True)
        if any(entry is not None and entry.signature is not None for entry in map(self._entry_or_none, lower)):
            return True
        self._unsigned_until = head.sequence
        return False

    def entry_before(self, entry: Manifest) -> Manifest | None:
        """The entry before a trusted one, if it is trusted too; an unsigned one only below an unsigned one."""
        before = self._entry_or_none(entry.sequence - 1)
        if before is None or self._signing.problem(before, self.paths.history(before.sequence)) is None:
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
        return StoreUnavailableError(self._store.name, f"switching {self.paths.manifest}", reason)


class KnownHeads:
    """The heads that this process has read or written before; thread-safe. Each read asks the store what is newer."""

    def __init__(self) -> None:
        self._states: OrderedDict[str, HeadState] = OrderedDict()
        self._lock = threading.Lock()

    def known(self, channel: Channel) -> HeadState | None:
        """Return what was read or written before, without a request; None: nothing."""
        with self._lock:
            return self._states.get(channel.place)

    def read(self, channel: Channel, *, shown: Callable[[Manifest], None] = lambda _: None) -> HeadState:
        """Read the head of a channel; see `Channel.read_head`."""
        state = channel.read_head(self.known(channel), shown=shown)
        self.keep(channel, state)
        return state

    def keep(self, channel: Channel, state: HeadState) -> None:
        """Keep what the caller has read or written."""
        with self._lock:
            self._states[channel.place] = state
            self._states.move_to_end(channel.place)
            while len(self._states) > _KNOWN_CHANNELS:
                self._states.popitem(last=False)


def _parsed(manifest: bytes | None) -> Manifest | None:
    """The content of a manifest; None where it is absent or damaged."""
    try:
        return None if manifest is None else Manifest.parse(manifest)
    except InvalidDocumentError:
        return None


def _release_notes(meta: ModelMeta) -> str:
    """The notes in model_meta.json, or a sentence that names the release: a training job may write any value there."""
    found = (meta.model_extra or {}).get("release_notes")
    if isinstance(found, str) and found.strip():
        return found[:RELEASE_NOTES_LIMIT]
    version = "" if meta.mlflow is None else f" of version {meta.mlflow.version}"
    return f"Release {meta.run_id}{version}."


def _current(release: VerifiedRelease, published_at: datetime) -> CurrentRelease:
    paths, origin = release.paths, release.meta.mlflow
    return CurrentRelease(
        run_id=str(paths.run_id),
        published_at=published_at,
        onnx_path=paths.onnx,
        meta_path=paths.meta,
        metrics_path=paths.metrics,
        model_version=None if origin is None else origin.version,
        **{field: paths.file(name) for field, name in paths.tower_names.items() if name in release.files},
        files=release.files,
    )
