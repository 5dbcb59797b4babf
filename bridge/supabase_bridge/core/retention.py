"""The retention policy: which releases may lose their model files, and why each of the others stays. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

LEAST_KEPT = 3
"""A manifest names its current release and two previous ones."""

HOLD_AGE = timedelta(hours=48)
"""A hold that is older was left by a command that was killed."""


class Removal(str, Enum):
    """What happens to the model files of a release that may go; its documents stay in any case.

    ARCHIVE: they are copied to the archive's bucket first.
    DELETE: they are deleted, except those of single towers, which MLflow does not have.
    """

    ARCHIVE = "archive"
    DELETE = "delete"


@dataclass(frozen=True, kw_only=True)
class RetentionPolicy:
    """The retention policy of a model.

    Attributes:
        keep: The number of newest complete releases that stay, LEAST_KEPT at least.
        min_age: A release stays for this time after its last change.
        archive_bucket: Where ARCHIVE copies the release; None with DELETE.
    """

    then: Removal
    keep: int = LEAST_KEPT
    min_age: timedelta = timedelta(days=30)
    archive_bucket: str | None = None

    @property
    def place(self) -> str:
        """From where the model files of a removed release come back."""
        return "MLflow" if self.archive_bucket is None else f"bucket {self.archive_bucket}"


@dataclass(frozen=True, kw_only=True)
class VersionFacts:
    """A version whose tags name a release.

    Attributes:
        holds: The stages and aliases of the version that move a channel, as text.
        open_event: An event about the version that is not finished, or that an operator may retry.
    """

    model: str
    version: int
    status: str | None = None
    holds: tuple[str, ...] = ()
    open_event: int | None = None
    changed_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class ReleaseFacts:
    """A release as its folder and the registry show it.

    Attributes:
        versions: The versions whose tags name it.
        changed_at: When its newest file was written.
        complete: It has its commit record and has not been removed.
        removed: It was removed, or its removal was interrupted.
        held_since: When an operator's command began to activate or restore it, if one runs.
    """

    run_id: str
    versions: tuple[VersionFacts, ...] = ()
    changed_at: datetime
    complete: bool = True
    removed: bool = False
    held_since: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Everything that decides about the releases of one folder.

    Attributes:
        named: The releases that a manifest or the newest entry of a log names, and which.
        changing: An unfinished change of the model's stages or aliases.
        problem: Why nothing of the model may be removed.
    """

    releases: Sequence[ReleaseFacts]
    named: Mapping[str, str]
    changing: int | None = None
    problem: str | None = None


def reasons_to_keep(facts: ModelFacts, policy: RetentionPolicy | None, now: datetime) -> dict[str, str | None]:
    """Return by run_id why a release stays; None: its model files may be removed, or their removal may be finished."""
    ranked = sorted(
        (release for release in facts.releases if release.complete and release.versions),
        key=lambda release: max(version.version for version in release.versions),
        reverse=True,
    )
    newest = frozenset(release.run_id for release in ranked[: 0 if policy is None else policy.keep])
    return {
        release.run_id: _kept_by_use(release, facts, now)
        or ("no policy is set for the model" if policy is None else _kept_by_age(release, policy, newest, now))
        for release in facts.releases
    }


def _kept_by_use(release: ReleaseFacts, facts: ModelFacts, now: datetime) -> str | None:
    if not (release.complete or release.removed):
        return "it is incomplete: sync reports it"
    if (place := facts.named.get(release.run_id)) is not None:
        return f"{place} names it"
    if facts.problem is not None:
        return facts.problem
    if not release.versions:
        return "no version of this registry names it"
    if len(release.versions) > 1:
        names = ", ".join(f"{version.model} v{version.version}" for version in release.versions)
        return f"several versions name it: {names}"
    (version,) = release.versions
    if version.holds:
        return f"version {version.version} has {', '.join(version.holds)}"
    if version.open_event is not None:
        return f"event {version.open_event} about version {version.version} is open"
    if facts.changing is not None:
        return f"event {facts.changing} changes the model's stages or aliases"
    if release.held_since is not None and now - release.held_since < HOLD_AGE:
        return "a command activates or restores it"
    return None


def _kept_by_age(release: ReleaseFacts, policy: RetentionPolicy, newest: frozenset[str], now: datetime) -> str | None:
    if release.run_id in newest:
        return f"it is among the newest {policy.keep}"
    changes = [release.changed_at, *(version.changed_at for version in release.versions if version.changed_at)]
    if not release.removed and (age := now - max(changes)) < policy.min_age:
        return f"it was changed {_days(age)} ago, and min_age is {_days(policy.min_age)}"
    return None


def _days(time: timedelta) -> str:
    return f"{max(time, timedelta(0)) / timedelta(days=1):.4g} days"
