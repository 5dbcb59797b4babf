"""Compare the listing of a bucket with the releases that the registry's versions expect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from sqlalchemy.engine import Engine

from supabase_bridge.core.errors import InvalidNameError
from supabase_bridge.core.events import EventKind, NewEvent
from supabase_bridge.core.layout import META_NAME, ChannelPaths, ReleasePaths, check_channel, is_model_key
from supabase_bridge.outbox.record import changes_wait, enqueue_again, reason_not_enqueued
from supabase_bridge.reconcile.channels import damaged_releases, has_new_entry, is_current, restore
from supabase_bridge.reconcile.cleanup import LoggedRuns, delete_incomplete_release, logged_runs
from supabase_bridge.reconcile.findings import Finding, FindingKind, Remedy
from supabase_bridge.reconcile.releases import (
    ExpectedRelease,
    damage_of,
    expected_releases,
    merge_join,
    problem_of,
)
from supabase_bridge.registry.tables import RegistryTables
from supabase_bridge.releases.folders import Folder, folders, is_complete
from supabase_bridge.releases.heads import HeadState
from supabase_bridge.storage.base import ObjectInfo, ObjectStore
from supabase_bridge.trust.signer import SigningPolicy

_LEAST_COST = 50
"""Minimum cost of one listing, in objects."""


class Scope(str, Enum):
    """How much of the store a pass compares.

    INCREMENTAL: the folders of the next models, about a thousand objects; the next pass continues there.
    FULL: every folder, by one listing, and every file of the releases that a manifest names, by its recorded digest.
    DEEP: every byte of every release, compared with its recorded SHA-256.
    """

    INCREMENTAL = "incremental"
    FULL = "full"
    DEEP = "deep"


@dataclass(frozen=True, kw_only=True)
class PassOptions:
    """The options of one pass; objects older than `before` may be deleted."""

    scope: Scope
    before: datetime
    dry_run: bool
    sweep: bool


class ReleaseCheck:
    """Compares the listing of one bucket with the releases that the versions of one workspace expect.

    Args:
        heads: What this pass has read before of the channels that agree with their logs, by the manifest's path.
        changed: See `Reconciler`.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        tables: RegistryTables,
        store: ObjectStore,
        workspace: str,
        options: PassOptions,
        signing: SigningPolicy,
        seen: MutableMapping[str, str],
        heads: Mapping[str, HeadState],
        changed: Callable[[str, ChannelPaths], None],
    ) -> None:
        self.workspace = workspace
        self.options = options
        self.listed = 0
        self._engine = engine
        self._tables = tables
        self._store = store
        self._signing = signing
        self._seen = seen
        self._heads = heads
        self._changed = changed
        self._deferred: list[Finding] = []
        self._channels: list[ChannelPaths] = []
        self._damaged: set[str] = set()
        self._logged: LoggedRuns | None = None

    def of_all(self) -> Iterator[Finding]:
        """Compare every folder of the bucket."""
        yield from self._compare("", self._expected())

    def of_model(self, key: str, model: str | None) -> Iterator[Finding]:
        """Compare the folders of one model."""
        before = self.listed
        yield from self._compare(f"{key}/" if is_model_key(key) else None, self._expected(model=model, key=key))
        self.listed = max(self.listed, before + _LEAST_COST)

    def _expected(self, **only: str | None) -> Iterator[ExpectedRelease]:
        return expected_releases(
            self._engine,
            self._tables,
            workspace=self.workspace,
            unusable=self._deferred.append,
            **only,
        )

    def _compare(self, prefix: str | None, releases: Iterator[ExpectedRelease]) -> Iterator[Finding]:
        """Compare expected releases with the folders below a prefix; None: no folder can exist."""
        for release, folder in merge_join(releases, () if prefix is None else self._release_folders(prefix)):
            found = self._check_expected(release, folder) if release is not None else self._check_unclaimed(folder)
            if found is not None:
                yield found
        yield from self._deferred
        self._deferred.clear()
        if self.options.scope is not Scope.INCREMENTAL:
            yield from self._check_named()
        self._channels.clear()

    def _check_named(self) -> Iterator[Finding]:
        """Check every file of the releases that the manifests name: the current ones, and those in `previous`."""
        deep = self.options.scope is Scope.DEEP
        for channel in self._channels:
            known = self._heads.get(channel.manifest)
            for paths, problem in damaged_releases(self._store, channel, known, signing=self._signing, deep=deep):
                if paths.prefix in self._damaged:
                    continue
                self._damaged.add(paths.prefix)
                expected = next(self._expected(key=paths.model_key, run_id=str(paths.run_id)), None)
                if expected is not None:
                    yield self._repair(expected, problem)
                    continue
                detail = f"{problem}; {channel.manifest} names this release, and no version with a release does"
                yield Finding(
                    kind=FindingKind.DAMAGED_RELEASE, subject=paths.prefix, detail=detail, remedy=Remedy.REPORTED
                )

    def _release_folders(self, prefix: str) -> Iterator[Folder]:
        for folder in folders(self._counted(prefix)):
            if folder.run_id is not None:
                yield folder
            elif (found := self._check_channel(folder)) is not None:
                self._deferred.append(found)

    def _check_channel(self, folder: Folder) -> Finding | None:
        """Check a channel, including one that was activated manually and that no tag names."""
        with suppress(InvalidNameError):
            paths = ChannelPaths(model_key=folder.model_key, channel=check_channel(folder.name))
            if folder.logged is not None:
                self._channels.append(paths)
            if not self.options.dry_run and has_new_entry(self._store, paths, folder, self._seen):
                self._changed(self.workspace, paths)
            if is_current(folder) or paths.manifest in self._heads:
                return None
            found = restore(self._store, paths, self._seen, signing=self._signing, dry_run=self.options.dry_run)
            return found if isinstance(found, Finding) else None
        return None

    def _counted(self, prefix: str) -> Iterator[ObjectInfo]:
        for item in self._store.list(prefix):
            self.listed += 1
            yield item

    def _check_expected(self, release: ExpectedRelease, folder: Folder | None) -> Finding | None:
        """Check a release that a version refers to."""
        deep = self.options.scope is Scope.DEEP
        if (folder is not None and folder.archived) or (is_complete(folder, release.paths) and not deep):
            return None
        # The registry and the listing were read at different moments, so read the release itself before reporting it.
        problem = problem_of(self._store, release.paths, deep=deep)
        if problem is None:
            return None
        self._damaged.add(release.paths.prefix)
        return self._repair(release, problem)

    def _repair(self, release: ExpectedRelease, problem: str) -> Finding:
        """Enqueue the mirroring of a version whose release is missing, incomplete or damaged."""
        event = NewEvent(
            kind=EventKind.VERSION_CREATED,
            workspace=release.workspace,
            model=release.model,
            version=release.version,
            stage=release.stage,
        )
        if self.options.dry_run:
            with self._engine.connect() as connection:
                reason = reason_not_enqueued(connection, event)
        else:
            reason = enqueue_again(self._engine, event)
        return Finding(
            kind=FindingKind.INCOMPLETE_RELEASE,
            subject=f"{release.model} version {release.version}",
            detail=problem if reason is None else f"{problem}; {reason}",
            remedy=Remedy.RECORDED if reason is None else Remedy.REPORTED,
        )

    def _check_unclaimed(self, folder: Folder | None) -> Finding | None:
        """Check a folder that no version refers to. An old incomplete one is deleted if `sweep` is set."""
        if folder is None:
            return None
        if META_NAME in folder.names:
            return self._check_complete(folder)
        if folder.archived:
            return None  # Retention removed its model files.
        if folder.newest_at >= self.options.before:
            return None
        detail = "it has no model_meta.json, so it is no complete release, and no version refers to it"
        remedy = Remedy.REPORTED
        if self.options.sweep and folder.run_id is not None:
            if reason := self._delete_incomplete(ReleasePaths(model_key=folder.model_key, run_id=folder.run_id)):
                detail = f"{detail}; it stays: {reason}"
            else:
                remedy = Remedy.DELETED
        return Finding(kind=FindingKind.UNCLAIMED_FOLDER, subject=folder.path, detail=detail, remedy=remedy)

    def _check_complete(self, folder: Folder) -> Finding | None:
        """With DEEP, read every byte of a complete release that no version refers to."""
        if self.options.scope is not Scope.DEEP or folder.run_id is None or not is_model_key(folder.model_key):
            return None
        paths = ReleasePaths(model_key=folder.model_key, run_id=folder.run_id)
        if (problem := damage_of(self._store, paths, deep=True)) is None:
            return None
        self._damaged.add(paths.prefix)
        detail = f"{problem}; no version refers to this release"
        return Finding(kind=FindingKind.DAMAGED_RELEASE, subject=paths.prefix, detail=detail, remedy=Remedy.REPORTED)

    def _delete_incomplete(self, paths: ReleasePaths) -> str | None:
        if changes_wait(self._engine, self.workspace):
            return "registry events are waiting (supabase-bridge outbox list)"
        if self._logged is None or self._logged.model_key != paths.model_key:
            # Folders come model by model, so only the logs of one model are in memory.
            self._logged = logged_runs(self._store, paths.model_key)
        before, dry_run = self.options.before, self.options.dry_run
        return delete_incomplete_release(self._store, paths, self._logged, before=before, dry_run=dry_run)
