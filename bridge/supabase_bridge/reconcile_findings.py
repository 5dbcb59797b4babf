"""What a reconcile pass found, and what it did about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


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
