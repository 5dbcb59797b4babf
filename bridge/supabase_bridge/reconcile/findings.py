"""The differences that a reconcile pass reports, and the remedy of each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from supabase_bridge.core.errors import BridgeError
from supabase_bridge.core.events import Event, EventKind, NewEvent


class FindingKind(str, Enum):
    """The kind of a difference."""

    UNRECORDED_CHANGE = "unrecorded_change"
    FAILED_GATE = "failed_gate"
    DEAD_LETTER = "dead_letter"
    INCOMPLETE_RELEASE = "incomplete_release"
    DAMAGED_RELEASE = "damaged_release"
    MANIFEST_DIFFERS = "manifest_differs"
    DAMAGED_LOG = "damaged_log"
    UNCLAIMED_FOLDER = "unclaimed_folder"
    TEMPORARY_KEY = "temporary_key"
    REMEMBERED_UPLOAD = "remembered_upload"
    UNCHECKED = "unchecked"
    UNUSABLE_TAG = "unusable_tag"
    WOULD_FAIL = "would_fail"


class Remedy(str, Enum):
    """What the pass did about a difference, or would do without `dry_run`."""

    RECORDED = "recorded"
    RESTORED = "restored"
    DELETED = "deleted"
    REPORTED = "reported"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One difference.

    Attributes:
        subject: The version, model, object or folder concerned.
        detail: The problem as text.
        event: The event that is recorded because of it.
    """

    kind: FindingKind
    subject: str
    detail: str
    remedy: Remedy
    event: NewEvent | None = None


def missing_event(event: NewEvent) -> Finding:
    """A change of the registry without an event, which is recorded now."""
    return Finding(
        kind=FindingKind.UNRECORDED_CHANGE,
        subject=_subject(event),
        detail=_change(event),
        remedy=Remedy.RECORDED,
        event=event,
    )


def blocked_event(event: NewEvent, reason: str) -> Finding:
    """A change without an event, which the promotion gate blocks."""
    detail = f"{_change(event)} is blocked: {reason}"
    return Finding(kind=FindingKind.FAILED_GATE, subject=_subject(event), detail=detail, remedy=Remedy.REPORTED)


def dead_letter(event: Event) -> Finding:
    """An event that failed for good, and that no operator has retried or discarded."""
    detail = f"{_change(event)} failed: {event.outcome}; supabase-bridge outbox retry {event.id}, or discard {event.id}"
    return Finding(kind=FindingKind.DEAD_LETTER, subject=_subject(event), detail=detail, remedy=Remedy.REPORTED)


def unusable_tag(model: str, version: int, problem: BridgeError) -> Finding:
    """A tag of a version or model that is no valid path; any user of MLflow can write such a tag."""
    return Finding(
        kind=FindingKind.UNUSABLE_TAG,
        subject=f"{model} version {version}",
        detail=str(problem),
        remedy=Remedy.REPORTED,
    )


def _subject(event: NewEvent) -> str:
    return event.model if event.version is None else f"{event.model} version {event.version}"


def _change(event: NewEvent) -> str:
    if event.kind is EventKind.STAGE_CHANGED:
        return f"{event.previous_stage} -> {event.stage}"
    if event.kind in {EventKind.ALIAS_SET, EventKind.ALIAS_REMOVED}:
        return f"{event.kind.value} @{event.alias}"
    return str(event.kind.value)
