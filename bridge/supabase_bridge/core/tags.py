"""The names of all `supabase.*` tags, and the tags that an outcome sets on a version; None removes a tag."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from supabase_bridge.core.layout import referenced_version
from supabase_bridge.core.text import for_database, format_time

if TYPE_CHECKING:
    from supabase_bridge.core.documents import Manifest, ModelMeta

PREFIX = "supabase."
MODE_TAG = "supabase.gate"
CRITERION_TAG = "supabase.gate."

TRIAL_TAG = "supabase.trial"
"""Of a registered model: `warn` turns a failed trial of the model into a note, `enforce` does not."""

MODEL_KEY_TAG = "supabase.key"

RUN_ID_TAG = "supabase.run_id"

TOWERS_TAG = "supabase.towers"
"""Of a run: the towers that its release carries as ONNX files of their own, as in `user` or `user,item`."""

COPY_TAG = "supabase.copy_of"
"""Of a version that MLflow copied from another one: the source of this copy, to which the other tags belong."""

Tags: TypeAlias = Mapping[str, str | None]

STATUS_TAG = "supabase.status"
ERROR_TAG = "supabase.error"
NOTE_TAG = "supabase.note"
UNMAPPED_TAG = "supabase.note.unmapped"
"""Of a version: its newest stage or alias that moves no channel."""
VERDICT_TAG = "supabase.verdict"
"""The verdict of the gate; `supabase.gate` on the registered model is its mode."""
CHANNEL_TAG = "supabase.channel."
CURRENT = "current since "
_LEFT = "left "
_NOTE_LIMIT = 4_000
_WAITS = "waits: "
_STEP = "step "
_UNREFUSED = "MLflow could not be made to refuse it, because the change did not go through the bridge's plugin"
MODEL_GUIDE = "docs/bring-your-own-model.md"
"""The page that messages about unsuitable files of a version name."""


class Status(str, Enum):
    """The state of a version in the tag `supabase.status`."""

    MIRRORED = "mirrored"
    ACTIVE = "active"
    SUPERSEDED = "superseded"
    RETRYING = "retrying"
    PREPARING = "preparing"
    FAILED = "failed"
    REJECTED = "rejected"


ARCHIVED = "archived"
"""The state of a version whose model files retention removed; no `Status`, so that no pass makes a release of it."""
ARCHIVED_TAG = "supabase.archived"
"""Of such a version: from where its model files come back."""


def inherited(source: str, tags: Mapping[str, str]) -> Tags:
    """Return the changes that make the tags of a copied version its own: MLflow copies those of the original too."""
    own = for_database(source, limit=_NOTE_LIMIT)
    if referenced_version(source) is None or tags.get(COPY_TAG) == own:
        return {}
    return {**{name: None for name in tags if name.startswith(PREFIX)}, COPY_TAG: own}


def noted(meta: ModelMeta) -> Tags:
    """Return the tag with the mirror's notes on a release; None removes the tag."""
    text = "; ".join(meta.mirror_notes or [])
    return {NOTE_TAG: text[:_NOTE_LIMIT] or None}


def mirrored(tags: Mapping[str, str], meta: ModelMeta) -> Tags:
    """Return the tags of a version with a complete release; an active or superseded version keeps its status."""
    if tags.get(ERROR_TAG, "").endswith(_UNREFUSED):
        return noted(meta)  # The gate blocked a promotion, and still does.
    keeps = tags.get(STATUS_TAG) in {Status.ACTIVE.value, Status.SUPERSEDED.value}
    status = tags.get(STATUS_TAG) if keeps else not_archived(tags).get(STATUS_TAG, Status.MIRRORED.value)
    return {STATUS_TAG: status, ERROR_TAG: None, ARCHIVED_TAG: None, **noted(meta)}


def archived(place: str) -> Tags:
    """Return the tags of a version whose model files retention removes.

    Args:
        place: From where they come back.
    """
    return {STATUS_TAG: ARCHIVED, ARCHIVED_TAG: place}


def not_archived(tags: Mapping[str, str]) -> Tags:
    """Return the tags of a version whose release is complete, although its tags say that it is archived."""
    if tags.get(STATUS_TAG) != ARCHIVED:
        return {}
    channels = [value for name, value in tags.items() if name.startswith(CHANNEL_TAG)]
    current = any(value.startswith(CURRENT) for value in channels)
    status = Status.ACTIVE if current else Status.SUPERSEDED if channels else Status.MIRRORED
    return {STATUS_TAG: status.value, ARCHIVED_TAG: None}


def promotion_verdict(target: str, said: str) -> tuple[str, str]:
    """Return the tag with the gate's verdict on a promotion to a stage or alias."""
    return VERDICT_TAG, f"{target}: {said}"


def blocked(tags: Mapping[str, str], target: str, said: str, *, channel: str) -> Tags:
    """Return the tags of a version that bypassed the plugin, failed its gate, and is not activated.

    Args:
        target: The stage or alias that the version got.
        said: The gate's verdict.
    """
    name, verdict = promotion_verdict(target, said)
    reason = f"{channel} does not follow: at {target} the version {said[:1_500]}; {_UNREFUSED}"
    return {name: verdict, **failed(tags, reason, retrying=False, rejected=True)}


def activated(tags: Mapping[str, str], entry: Manifest) -> Tags:
    """Return the tags of a version that became current in a channel; the mirror's notes stay."""
    kept: Tags = {NOTE_TAG: None} if tags.get(NOTE_TAG, "").startswith((_LEFT, _STEP)) else {}
    since = f"{CURRENT}{format_time(entry.current.published_at)}"
    if entry.cause is not None and entry.cause.by is not None:
        since += f" by {entry.cause.by}"
    done: Tags = {ERROR_TAG: None, ARCHIVED_TAG: None}
    return {STATUS_TAG: Status.ACTIVE.value, CHANNEL_TAG + entry.channel: since, **done, **kept}


def superseded(tags: Mapping[str, str], entry: Manifest) -> Tags:
    """Return the tags of a version that is no longer current in a channel; it is active if another channel has it."""
    own = CHANNEL_TAG + entry.channel
    elsewhere = any(
        name.startswith(CHANNEL_TAG) and name != own and value.startswith(CURRENT) for name, value in tags.items()
    )
    status = Status.ACTIVE if elsewhere else Status.SUPERSEDED
    return {STATUS_TAG: status.value, own: f"superseded by {entry.current.run_id}"}


def mirrored_verdict(tags: Mapping[str, str], said: str) -> Tags:
    """Return the tag with the verdict on a mirrored version, unless there is one on a promotion."""
    return {} if VERDICT_TAG in tags else {VERDICT_TAG: said}


def passed_with_warning(tags: Mapping[str, str]) -> str | None:
    """Return the failed verdict of a version whose promotion passed because the gate only warns; else None."""
    said = tags.get(VERDICT_TAG, "")
    return said if ": failed: " in said else None


def failed(tags: Mapping[str, str], reason: str, *, retrying: bool, rejected: bool = False) -> Tags:
    """Return the tags of a failure; a version that is current stays active.

    Args:
        rejected: True if the version's own files are at fault.
    """
    status = Status.RETRYING if retrying else Status.REJECTED if rejected else Status.FAILED
    active = tags.get(STATUS_TAG) == Status.ACTIVE.value
    ended: Tags = {NOTE_TAG: None} if tags.get(NOTE_TAG, "").startswith(_STEP) else {}
    return {STATUS_TAG: Status.ACTIVE.value if active else status.value, ERROR_TAG: reason, **ended}


def rejection(tags: Mapping[str, str]) -> str | None:
    """Return the reason why a version's own files cannot become a release; None if none is known."""
    reason = tags.get(ERROR_TAG, "")
    if tags.get(STATUS_TAG) != Status.REJECTED.value or reason.endswith(_UNREFUSED):
        return None
    return reason or "its files were rejected"


def waiting(reason: str) -> Tags:
    """Return the tag of a version whose promotion waits."""
    return {NOTE_TAG: f"{_WAITS}{reason}"}


def preparing(tags: Mapping[str, str], step: str, since: datetime, *, attempt: int) -> Tags:
    """Return the tags of a version whose activation waits for a step; a version that is current stays active."""
    active = tags.get(STATUS_TAG) == Status.ACTIVE.value
    status = Status.ACTIVE if active else Status.PREPARING
    return {
        STATUS_TAG: status.value,
        NOTE_TAG: f"{_STEP}{step} since {format_time(since)}, attempt {attempt}",
        ERROR_TAG: None,
    }


def not_waiting(tags: Mapping[str, str]) -> Tags:
    """Return the tags of a version whose promotion is superseded: it waits no longer, and is not retried."""
    changed: dict[str, str | None] = {NOTE_TAG: None} if tags.get(NOTE_TAG, "").startswith((_WAITS, _STEP)) else {}
    if tags.get(STATUS_TAG) == Status.RETRYING.value:
        changed[STATUS_TAG] = Status.FAILED.value
    if tags.get(STATUS_TAG) == Status.PREPARING.value:
        changed[STATUS_TAG] = Status.MIRRORED.value
    return changed


def moves_no_channel(target: str) -> Tags:
    """Return the tag of a version that got a stage or alias which no channel follows."""
    return {UNMAPPED_TAG: f"{target} moves no channel; see docs/settings.md, Stages and aliases"}


def not_unmapped(tags: Mapping[str, str], target: str) -> Tags:
    """Return the tag of a version that has lost this stage or alias, or for which it moves a channel now."""
    return {UNMAPPED_TAG: None} if tags.get(UNMAPPED_TAG, "").startswith(f"{target} ") else {}


def left_without_successor(stage: str, channel: str) -> Tags:
    """Return the tag of a version that left its stage without a successor, so that the channel keeps it."""
    return {NOTE_TAG: f"{_LEFT}{stage} with no successor; {channel} still points to this release"}
