"""Reports of which release a consumer uses, and how each stands to the current release of its channel. Pure.

A report is a claim: anyone with the publishable key can write one. Nothing but people's attention depends on it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Annotated

from pydantic import Field

from supabase_bridge.core.documents import Document, Time
from supabase_bridge.core.layout import SEQUENCE_LIMIT

TABLE = "release_usage"
"""The table of all reports; docs/consumers.md has its SQL."""
LATEST_VIEW = "release_usage_latest"
"""The newest report of each instance of a consumer."""
ONE_OFF = "-"
"""The instance of a consumer that reports once and ends, such as a batch job: its newest report counts."""
_NAME_LIMIT = 100
_MISSED_REPORTS = 2
_DELAY = timedelta(minutes=1)
"""What a report may take, beside the time that its interval allows."""
_SHOWN_SILENT = timedelta(days=1)


class UsageReport(Document):
    """One report: this consumer has used this release of the model since then.

    Attributes:
        channel: The channel that named the release; None: the consumer asked for the run_id.
        sequence: The entry of the channel's log that the consumer saw.
        consumer: The consumer's own name.
        instance: Differs between the processes of one consumer; ONE_OFF for one that reports once.
        used_since: By the consumer's clock.
        next_report_seconds: The time within which the next report follows; None: none is planned.
        ended: The consumer has stopped in an orderly manner.
        reported_at: By the database's clock; None in a report that is not stored yet.
    """

    document_name = "usage report"

    bucket: str
    model: str
    channel: str | None = None
    run_id: str
    sequence: Annotated[int, Field(ge=1, le=SEQUENCE_LIMIT)] | None = None
    consumer: str
    instance: str = ONE_OFF
    used_since: Time
    next_report_seconds: Annotated[int, Field(ge=1)] | None = None
    ended: bool = False
    reported_at: Time | None = None


class Standing(str, Enum):
    """How a consumer stands to the current release of its channel.

    IDLE: it reports once per run, and has not run since the switch. SILENT: its next report is overdue, so that it has
    probably died. PINNED: it asked for a run_id, so that no switch concerns it. UNKNOWN: the channel cannot be read.
    """

    CURRENT = "current"
    BEHIND = "behind"
    IDLE = "idle"
    SILENT = "silent"
    PINNED = "pinned"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class CurrentUse:
    """What a channel names now.

    Attributes:
        switched_at: The time of each missed switch by the sequence that a consumer saw: of the first entry after it.
        since: The time of the newest switch, where `switched_at` has no better answer.
    """

    run_id: str
    since: datetime
    switched_at: Mapping[int, datetime]


@dataclass(frozen=True, kw_only=True)
class ConsumerUse:
    """Instances of one consumer that use the same release and stand alike.

    Attributes:
        instances: How many they are.
        used_since: The earliest beginning.
        reported_at: The newest report.
        behind_since: The switch that they have not followed; None unless they use another release.
    """

    consumer: str
    channel: str | None
    run_id: str
    standing: Standing
    instances: int
    used_since: datetime
    reported_at: datetime
    behind_since: datetime | None = None


def consumer_name(text: str) -> str:
    """Return a name as reports have it: one line, of a limited length; "unnamed" where nothing is left."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_NAME_LIMIT] or "unnamed"


def assess(
    reports: Iterable[UsageReport], current: Mapping[str, CurrentUse], *, now: datetime, everything: bool = False
) -> list[ConsumerUse]:
    """Return how the consumers of one model stand, those that lag first.

    Args:
        reports: The newest report of each instance.
        current: What each channel names now; a channel that cannot be read is absent.
        everything: Include instances that have been silent for more than a day.
    """
    groups: dict[tuple[str, str, str, Standing], ConsumerUse] = {}
    counts: dict[tuple[str, str, str, Standing], int] = defaultdict(int)
    for report in reports:
        if report.ended or report.reported_at is None:
            continue
        use = _use(report, report.reported_at, current.get(report.channel or ""), now)
        if use.standing is Standing.SILENT and now - use.reported_at > _SHOWN_SILENT and not everything:
            continue
        key = (use.consumer, use.channel or "", use.run_id, use.standing)
        counts[key] += 1
        groups[key] = _joined(groups.get(key), use)
    found = [replace(use, instances=counts[key]) for key, use in groups.items()]
    order = [Standing.BEHIND, Standing.SILENT, Standing.IDLE, Standing.UNKNOWN, Standing.PINNED, Standing.CURRENT]
    return sorted(found, key=lambda use: (order.index(use.standing), use.consumer, use.channel or "", use.run_id))


def use_line(use: ConsumerUse, *, now: datetime) -> str:
    """Return how a consumer stands as text: `api uses 20251031T093831Z, BEHIND latest for 2 h 5 min (...)`."""
    channel = use.channel or ""
    standing = {
        Standing.CURRENT: f"as {channel} does",
        Standing.BEHIND: f"BEHIND {channel} for {_span(now - (use.behind_since or now))}",
        Standing.IDLE: f"has not run since {channel} switched {_span(now - (use.behind_since or now))} ago",
        Standing.SILENT: f"SILENT for {_span(now - use.reported_at)}",
        Standing.PINNED: "pinned",
        Standing.UNKNOWN: f"{channel} cannot be read",
    }[use.standing]
    count = "1 instance" if use.instances == 1 else f"{use.instances} instances"
    reported = f"{count}, last report {_span(now - use.reported_at)} ago"
    return f"{use.consumer} uses {use.run_id}, {standing} ({reported})"


def _span(time: timedelta) -> str:
    """Return a length of time in its two largest units."""
    seconds = max(0, int(time.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours, days = seconds // 60, seconds // 3_600, seconds // 86_400
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{days} days {hours % 24} h"


def _use(report: UsageReport, reported_at: datetime, current: CurrentUse | None, now: datetime) -> ConsumerUse:
    behind_since = None
    if current is not None and current.run_id != report.run_id:
        behind_since = current.switched_at.get(report.sequence or 0, current.since)
    next_report = report.next_report_seconds
    if next_report is not None and now > reported_at + _overdue(next_report):
        standing = Standing.SILENT
    elif report.channel is None:
        standing = Standing.PINNED
    elif current is None:
        standing = Standing.UNKNOWN
    elif behind_since is None:
        standing = Standing.CURRENT
    else:
        idle = next_report is None and reported_at < behind_since
        standing = Standing.IDLE if idle else Standing.BEHIND
    return ConsumerUse(
        consumer=report.consumer,
        channel=report.channel,
        run_id=report.run_id,
        standing=standing,
        instances=1,
        used_since=report.used_since,
        reported_at=reported_at,
        behind_since=behind_since,
    )


def _overdue(seconds: int) -> timedelta:
    """Return the time after a report at which a consumer counts as silent: when two reports are missing."""
    return timedelta(seconds=_MISSED_REPORTS * min(seconds, 10**9)) + _DELAY


def _joined(one: ConsumerUse | None, other: ConsumerUse) -> ConsumerUse:
    if one is None:
        return other
    behind = [use.behind_since for use in (one, other) if use.behind_since is not None]
    return replace(
        one,
        used_since=min(one.used_since, other.used_since),
        reported_at=max(one.reported_at, other.reported_at),
        behind_since=min(behind, default=None),
    )
