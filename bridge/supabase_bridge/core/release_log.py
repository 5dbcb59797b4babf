"""Rules of a channel's release log: its next entry, a reissued entry, and manual activations; see docs/adr/0001."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime
from enum import Enum

from supabase_bridge.core.documents import Cause, CurrentRelease, FileRecord, Manifest, ReleasePointer
from supabase_bridge.core.errors import InvalidDocumentError
from supabase_bridge.core.json_objects import canonical
from supabase_bridge.core.layout import SEQUENCE_LIMIT, ChannelPaths

PREVIOUS_KEPT = 2


class EntryKind(str, Enum):
    """What an entry of a release log is.

    PROMOTED: an event of the registry made the release current. ROLLED_BACK: the release was current before, too.
    BY_HAND: an operator did, without the registry.
    REISSUED, ADOPTED: an operator wrote the entry before again, or gave the log to another registry.
    """

    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    BY_HAND = "by hand"
    REISSUED = "reissued"
    ADOPTED = "adopted"


def kind_of(entry: Manifest, before: Manifest | None, earlier: Collection[str]) -> EntryKind:
    """Return what an entry is.

    Args:
        before: The entry before it; None: there is none, or it is not known.
        earlier: The run_ids that were current before this entry.
    """
    if before is not None and before.current == entry.current.model_copy(update={"files": before.current.files}):
        if entry.confirmed_at != before.confirmed_at:
            return EntryKind.REISSUED
        if entry.cause is not None and entry.cause.adopted:
            return EntryKind.ADOPTED
    if activated_manually(entry):
        return EntryKind.BY_HAND
    moved = before is None or before.current.run_id != entry.current.run_id
    return EntryKind.ROLLED_BACK if moved and entry.current.run_id in earlier else EntryKind.PROMOTED


def next_entry(
    head: Manifest | None,
    channel: ChannelPaths,
    *,
    current: CurrentRelease,
    cause: Cause,
    release_notes: str | None,
) -> Manifest | None:
    """Return the entry that makes `current` the current release; None if it is current already.

    The former current release becomes the first in `previous`, which has PREVIOUS_KEPT releases without the current
    one. A release that is current by a manual activation gets a new entry when it is promoted, and the reverse.

    Raises:
        InvalidDocumentError: the log is full.
    """
    if head is not None and head.sequence >= SEQUENCE_LIMIT:
        raise InvalidDocumentError(channel.history(head.sequence), "no entry can follow it; was it written manually?")
    if head is None:
        previous: list[ReleasePointer] = []
    else:
        if head.current.run_id == current.run_id and activated_manually(head) == bool(cause.by_hand):
            return None
        earlier = [_pointer(head.current), *head.previous]
        previous = [pointer for pointer in earlier if pointer.run_id != current.run_id]
    return Manifest(
        model_name=channel.model_key,
        channel=channel.channel,
        sequence=1 if head is None else head.sequence + 1,
        current=current,
        previous=previous[:PREVIOUS_KEPT],
        release_notes=release_notes,
        cause=cause,
    )


def digest(entry: Manifest) -> str:
    """Return the SHA-256 of an entry's canonical JSON, with its signature: the entry after it names this digest.

    Raises:
        InvalidDocumentError: see `json_objects.canonical`.
    """
    return hashlib.sha256(canonical(entry.to_object(), entry.document_name)).hexdigest()


def chained(entry: Manifest, head: Manifest | None) -> Manifest:
    """Return an entry that names the digest of `head`, which it follows.

    It names none if it is the first one, or if a foreign writer wrote a head that has no canonical form.
    """
    named = None
    if head is not None:
        with suppress(InvalidDocumentError):
            named = digest(head)
    return entry.model_copy(update={"previous_entry_sha256": named})


def reissued(head: Manifest, *, files: dict[str, FileRecord], at: datetime, by: str | None = None) -> Manifest:
    """Return an entry like `head`, reissued by an operator, with the release's files as they are recorded now."""
    return head.model_copy(
        update={
            "sequence": head.sequence + 1,
            "current": head.current.model_copy(update={"files": files}),
            "confirmed_at": at,
            "confirmed_by": by,
            "signature": None,
        }
    )


def repeated(head: Manifest, cause: Cause) -> Manifest:
    """Return an entry like `head` for another event, so that no attempt which was decided on `head` can add one."""
    return head.model_copy(update={"sequence": head.sequence + 1, "cause": cause, "signature": None})


def adopted(head: Manifest, registry_id: str, *, by: str | None = None) -> Manifest:
    """Return an entry like `head` by which a log belongs to another registry; a manual activation stays one."""
    cause = Cause(registry_id=registry_id, by=by, by_hand=True if activated_manually(head) else None, adopted=True)
    return head.model_copy(update={"sequence": head.sequence + 1, "cause": cause, "signature": None})


def activated_manually(entry: Manifest) -> bool:
    """Return whether an operator made this entry without the registry."""
    return entry.cause is not None and bool(entry.cause.by_hand)


def pinned(head: Manifest | None, *, promoted_at: datetime | None) -> bool:
    """Return whether a manual activation is newer than a promotion, so that the promotion must not replace it.

    Args:
        promoted_at: The time of the promotion. None: a version only left its stage or lost its alias.
    """
    if head is None or not activated_manually(head):
        return False
    return promoted_at is None or promoted_at < head.current.published_at


def commits(entry: Manifest, cause: Cause) -> bool:
    """Return whether `entry` is the activation of this event."""
    return (
        entry.cause is not None
        and cause.event_id is not None
        and entry.cause.event_id == cause.event_id
        and entry.cause.registry_id == cause.registry_id
    )


def precedes(entry: Manifest, cause: Cause) -> bool:
    """Return whether an earlier event of the same registry made `entry`; older entries cannot be this event's then."""
    return (
        entry.cause is not None
        and entry.cause.registry_id == cause.registry_id
        and entry.cause.event_id is not None
        and cause.event_id is not None
        and entry.cause.event_id < cause.event_id
    )


def _pointer(release: CurrentRelease) -> ReleasePointer:
    """Return a release without the record of its files, as `previous` has it."""
    value = release.to_object()
    value.pop("files", None)
    return ReleasePointer.from_object(value)
