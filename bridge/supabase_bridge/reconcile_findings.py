"""What a reconcile pass found, and what it did about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from supabase_bridge.errors import BridgeError


class FindingKind(str, Enum):
    """What was not as it should be."""

    UNRECORDED_CHANGE = "unrecorded_change"
    FAILED_GATE = "failed_gate"
    INCOMPLETE_RELEASE = "incomplete_release"
    MANIFEST_DIFFERS = "manifest_differs"
    DAMAGED_LOG = "damaged_log"
    UNCLAIMED_FOLDER = "unclaimed_folder"
    TEMPORARY_KEY = "temporary_key"
    REMEMBERED_UPLOAD = "remembered_upload"
    UNCHECKED = "unchecked"
    UNUSABLE_TAG = "unusable_tag"


class Remedy(str, Enum):
    """What was done about it, or would be, where nothing is to be changed."""

    RECORDED = "recorded"
    RESTORED = "restored"
    DELETED = "deleted"
    REPORTED = "reported"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was not as it should be.

    Attributes:
        subject: What it is about: a version, a key.
        detail: What is the matter, for people.
    """

    kind: FindingKind
    subject: str
    detail: str
    remedy: Remedy


def unusable_tag(model: str, version: int, problem: BridgeError) -> Finding:
    """A tag of a version, or of its model, that names no place in a bucket: anybody may have written it."""
    return Finding(
        kind=FindingKind.UNUSABLE_TAG,
        subject=f"{model} version {version}",
        detail=str(problem),
        remedy=Remedy.REPORTED,
    )
