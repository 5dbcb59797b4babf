"""What is announced: the kinds, and the message of a switch or of another change, as one JSON object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.core.text import format_time

if TYPE_CHECKING:
    from supabase_bridge.core.comparison import MetricChange, MetricComparison
    from supabase_bridge.core.documents import Manifest, ReleasePointer

_NOTES_LIMIT = 1_000
_METRICS_LIMIT = 20


class AnnouncementKind(str, Enum):
    """What happened; the value is the `type` of the message.

    ACTIVATED: the pointer of a channel moved to another release.
    FAILED: a change was given up, and is a dead letter. REJECTED: so was one of a version whose files did not pass.
    MIRRORED: a version's release is complete.
    LEFT: a version left its stage or lost its alias, and the channel still points to it.
    """

    ACTIVATED = "release.activated"
    FAILED = "release.failed"
    REJECTED = "release.rejected"
    MIRRORED = "release.mirrored"
    LEFT = "release.left"
    TEST = "announcement.test"


OPTIONAL = (AnnouncementKind.FAILED, AnnouncementKind.REJECTED, AnnouncementKind.MIRRORED, AnnouncementKind.LEFT)
"""The kinds that a destination hears of only if it asks for them."""


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """One message. It is a hint and not the truth: a receiver reads the manifest.

    Attributes:
        id: Identifies the message; a repetition has the same.
        time: When it happened.
        data: A JSON object, without any secret.
    """

    id: str
    kind: AnnouncementKind
    time: datetime
    data: Mapping[str, Any]

    def to_json(self) -> str:
        """Return the message as it is sent to a webhook; the same text at every attempt."""
        value = {"type": self.kind.value, "timestamp": format_time(self.time), "data": self.data}
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def identity(*parts: object) -> str:
    """Return the id of the message about these facts; other facts have another id, and an id has no full stop."""
    return "ann_" + hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def switch(
    entry: Manifest,
    before: Manifest | None,
    *,
    bucket: str,
    metrics: MetricComparison,
) -> Announcement:
    """Return the message about a log entry that moved the pointer.

    Args:
        before: The entry before it.
        metrics: Those of the release that was current before, and of the one that is current now.
    """
    # The settings need this module's kinds in each command; the documents take 0.05 s to import.
    from supabase_bridge.core.release_log import activated_manually

    paths = ChannelPaths(model_key=entry.model_name, channel=entry.channel)
    former = before.current if before is not None else next(iter(entry.previous), None)
    known = set() if before is None else {pointer.run_id for pointer in before.previous}
    problem = {} if metrics.problem is None else {"metrics_not_comparable": metrics.problem}
    data: dict[str, Any] = {
        "model": entry.model_name,
        "channel": entry.channel,
        "sequence": entry.sequence,
        "bucket": bucket,
        "current": {**_named(entry.current), "published_at": format_time(entry.current.published_at)},
        "previous": None if former is None else _named(former),
        "metrics": {change.name: _values(change) for change in metrics.changes[:_METRICS_LIMIT]},
        **problem,
        "release_notes": (entry.release_notes or "")[:_NOTES_LIMIT],
        **({} if entry.cause is None or entry.cause.by is None else {"by": entry.cause.by}),
        "by_hand": activated_manually(entry),
        "rollback": entry.current.run_id in known,
        "manifest_path": paths.manifest,
    }
    message = identity(bucket, paths.history(entry.sequence), hashlib.sha256(entry.to_bytes()).hexdigest())
    return Announcement(id=message, kind=AnnouncementKind.ACTIVATED, time=entry.current.published_at, data=data)


def moves_pointer(entry: Manifest, before: Manifest | None) -> bool:
    """Return whether an entry names another release than the entry before it: one that was only reissued does not."""
    former = before.current if before is not None else next(iter(entry.previous), None)
    return former is None or former.run_id != entry.current.run_id


def _values(change: MetricChange) -> dict[str, float]:
    values = {"before": change.before, "after": change.after}
    return {name: value for name, value in values.items() if value is not None}


def _named(release: ReleasePointer) -> dict[str, Any]:
    version = {} if release.model_version is None else {"model_version": release.model_version}
    return {"run_id": release.run_id, **version}
