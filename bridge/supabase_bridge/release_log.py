"""What the next entry of a channel's release log is. Pure: head, release and reason come in, a manifest goes out.

The log is the truth, `manifest.json` is its newest entry byte for byte; docs/adr/0001 says why.
"""

from __future__ import annotations

from datetime import datetime

from supabase_bridge.documents import Cause, CurrentRelease, FileRecord, Manifest, ReleasePointer
from supabase_bridge.errors import InvalidDocumentError
from supabase_bridge.layout import SEQUENCE_LIMIT, ChannelKeys

PREVIOUS_KEPT = 2


def next_entry(
    head: Manifest | None,
    channel: ChannelKeys,
    *,
    current: CurrentRelease,
    cause: Cause,
    release_notes: str | None,
) -> Manifest | None:
    """The entry that makes `current` the current release, or None where nothing would change.

    The release that was current comes first in `previous`, the ones before it after; the new current one is not
    repeated there, and PREVIOUS_KEPT are kept. So a rollback keeps the release rolled back from. Nothing changes where
    the release is current already, unless the reason does: a pointer moved by hand that somebody now promotes is the
    registry's again.

    Raises:
        InvalidDocumentError: the log has its last entry.
    """
    if head is not None and head.sequence >= SEQUENCE_LIMIT:
        raise InvalidDocumentError(channel.history(head.sequence), "no entry can follow it; was it written by hand?")
    if head is None:
        previous: list[ReleasePointer] = []
    else:
        if head.current.run_id == current.run_id and moved_by_hand(head) == bool(cause.by_hand):
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


def confirmed(head: Manifest, *, files: dict[str, FileRecord], at: datetime) -> Manifest:
    """The entry that says again what `head` says, with the release's files as they are recorded now."""
    return head.model_copy(
        update={
            "sequence": head.sequence + 1,
            "current": head.current.model_copy(update={"files": files}),
            "confirmed_at": at,
            "signature": None,
        }
    )


def moved_by_hand(entry: Manifest) -> bool:
    """True where a person moved the pointer without the registry."""
    return entry.cause is not None and bool(entry.cause.by_hand)


def pinned(head: Manifest | None, *, promoted_at: datetime | None) -> bool:
    """True where a person moved the pointer by hand after this promotion, so that the promotion does not move it.

    Args:
        promoted_at: None: nobody promoted; a version that was current left its stage.
    """
    if head is None or not moved_by_hand(head):
        return False
    return promoted_at is None or promoted_at < head.current.published_at


def commits(entry: Manifest, cause: Cause) -> bool:
    """True where `entry` is the switch that this event asked for."""
    return (
        entry.cause is not None
        and cause.event_id is not None
        and entry.cause.event_id == cause.event_id
        and entry.cause.registry_id == cause.registry_id
    )


def precedes(entry: Manifest, cause: Cause) -> bool:
    """True where an earlier event of the same registry made `entry`, so that no entry before it can be this event's."""
    return (
        entry.cause is not None
        and entry.cause.registry_id == cause.registry_id
        and entry.cause.event_id is not None
        and cause.event_id is not None
        and entry.cause.event_id < cause.event_id
    )


def _pointer(release: CurrentRelease) -> ReleasePointer:
    """A release as `previous` names it: everything but the record of its files."""
    value = release.to_object()
    value.pop("files", None)
    return ReleasePointer.from_object(value)
