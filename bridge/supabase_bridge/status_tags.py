"""The tags by which a version shows in MLflow's UI what became of it. Pure: outcomes in, tags out; None removes one."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeAlias

from supabase_bridge.documents import Manifest, format_time

Tags: TypeAlias = Mapping[str, str | None]

STATUS_TAG = "supabase.status"
ERROR_TAG = "supabase.error"
NOTE_TAG = "supabase.note"
VERDICT_TAG = "supabase.verdict"
"""What a gate said; `supabase.gate` is the registered model's tag that steers one."""
CHANNEL_TAG = "supabase.channel."
CURRENT = "current since "
_UNREFUSED = "MLflow could not be made to refuse it, because the change did not go through the bridge's plugin"


class Status(str, Enum):
    """What became of a version."""

    MIRRORED = "mirrored"
    ACTIVE = "active"
    SUPERSEDED = "superseded"
    RETRYING = "retrying"
    FAILED = "failed"
    REJECTED = "rejected"


def mirrored(tags: Mapping[str, str]) -> Tags:
    """A release is complete; one that is or was current stays so."""
    if tags.get(ERROR_TAG, "").endswith(_UNREFUSED):
        return {NOTE_TAG: None}  # What its gate said of an arrival still holds.
    keeps = tags.get(STATUS_TAG) in {Status.ACTIVE.value, Status.SUPERSEDED.value}
    status = tags.get(STATUS_TAG) if keeps else Status.MIRRORED.value
    return {STATUS_TAG: status, ERROR_TAG: None, NOTE_TAG: None}


def promotion_verdict(target: str, said: str) -> tuple[str, str]:
    """The tag that says what the gate said when a version was promoted."""
    return VERDICT_TAG, f"{target}: {said}"


def withheld(tags: Mapping[str, str], target: str, said: str, *, channel: str) -> Tags:
    """A version came to a gated channel past the plugin, fails, and is not made current there.

    Args:
        target: The stage, or the alias, that it got.
        said: The gate's verdict.
    """
    name, verdict = promotion_verdict(target, said)
    reason = f"{channel} does not follow: at {target} the version {said[:1_500]}; {_UNREFUSED}"
    return {name: verdict, **failed(tags, reason, retrying=False, rejected=True)}


def activated(entry: Manifest) -> Tags:
    """A release became the current one of a channel."""
    since = f"{CURRENT}{format_time(entry.current.published_at)}"
    return {STATUS_TAG: Status.ACTIVE.value, CHANNEL_TAG + entry.channel: since, ERROR_TAG: None, NOTE_TAG: None}


def superseded(tags: Mapping[str, str], entry: Manifest) -> Tags:
    """A release is no longer the current one of a channel; it stays active where it is current in another one."""
    own = CHANNEL_TAG + entry.channel
    elsewhere = any(
        name.startswith(CHANNEL_TAG) and name != own and value.startswith(CURRENT) for name, value in tags.items()
    )
    status = Status.ACTIVE if elsewhere else Status.SUPERSEDED
    return {STATUS_TAG: status.value, own: f"superseded by {entry.current.run_id}"}


def mirrored_verdict(tags: Mapping[str, str], said: str) -> Tags:
    """What the gate says of a version that was just mirrored; what it said of a promotion counts for more."""
    return {} if VERDICT_TAG in tags else {VERDICT_TAG: said}


def let_through(tags: Mapping[str, str]) -> str | None:
    """What a version failed by and was promoted all the same, where the gate only warns."""
    said = tags.get(VERDICT_TAG, "")
    return said if ": failed: " in said else None


def failed(tags: Mapping[str, str], reason: str, *, retrying: bool, rejected: bool = False) -> Tags:
    """Something went wrong; a release that is current stays active, and the error says what did not happen.

    Args:
        rejected: The version's own files are at fault.
    """
    status = Status.RETRYING if retrying else Status.REJECTED if rejected else Status.FAILED
    active = tags.get(STATUS_TAG) == Status.ACTIVE.value
    return {STATUS_TAG: Status.ACTIVE.value if active else status.value, ERROR_TAG: reason}


def left_without_successor(stage: str, channel: str) -> Tags:
    """A version left its stage, nothing came after it, and the pointer stays."""
    return {NOTE_TAG: f"left {stage} with no successor; {channel} still points to this release"}
