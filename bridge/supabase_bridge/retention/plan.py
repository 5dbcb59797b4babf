"""Plan the retention of a registry's releases: one listing of each bucket, and one pass over the registry's versions.

Both are read side by side in the byte order of their paths. Only the releases of one model are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.core.documents import Manifest
from supabase_bridge.core.errors import InvalidDocumentError, InvalidNameError
from supabase_bridge.core.events import DEFAULT_WORKSPACE, Event, EventKind, EventState
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId, check_channel, check_model_key
from supabase_bridge.core.retention import (
    HOLD_AGE,
    ModelFacts,
    ReleaseFacts,
    Removal,
    RetentionPolicy,
    VersionFacts,
    reasons_to_keep,
)
from supabase_bridge.core.text import time_from_ms
from supabase_bridge.outbox import sql
from supabase_bridge.outbox.database import database_errors
from supabase_bridge.registry.tables import RegistryTables, bytewise
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.errors import UntrustedLogError
from supabase_bridge.releases.folders import Folder, folders, is_complete
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.storage.errors import BucketNotFoundError, ObjectTooLargeError
from supabase_bridge.trust.errors import ManifestRefusedError
from supabase_bridge.trust.signer import NO_SIGNING, SigningPolicy

_PAGE = 5_000
_LATE = timedelta(hours=1)
"""A worker that lost an event may still carry it out for this time; see `worker.decide.may_be_late`."""


@dataclass(frozen=True, kw_only=True)
class PlannedRelease:
    """A release, and why it stays.

    Attributes:
        version: The version that it belongs to; None: no version names it, or several do.
        model_bytes: The size of the model files that its policy removes.
        reason: Why it stays; None: its model files may be removed.
        removed: They were removed already, wholly or in part.
        foreign: The number of objects in its folder that no part of the bridge writes; they are never deleted.
        stale: Marks and holds that killed commands have left in its folder.
    """

    workspace: str
    paths: ReleasePaths
    policy: RetentionPolicy | None
    version: VersionFacts | None
    model_bytes: int
    reason: str | None
    removed: bool = False
    foreign: int = 0
    stale: tuple[str, ...] = ()

    @property
    def goes(self) -> bool:
        """True if something is left to remove."""
        return self.reason is None and (not self.removed or self.model_bytes > 0)


@dataclass(frozen=True, kw_only=True)
class ForeignFolders:
    """The folders of a bucket that belong to no registered model of this registry; they are never touched."""

    workspace: str
    names: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _Claims:
    """The versions whose tags name releases of one folder."""

    key: str
    versions: Mapping[str, Sequence[VersionFacts]]

    @property
    def models(self) -> list[str]:
        return sorted({version.model for versions in self.versions.values() for version in versions})


@dataclass(frozen=True, kw_only=True)
class _OpenEvents:
    """The events that a worker may still carry out, or an operator retry.

    Attributes:
        changing: A change of stages or aliases that no worker has finished.
        about: The event about each version of a model.
    """

    changing: int | None
    about: Mapping[tuple[str, int], int]

    def with_later(self, later: _OpenEvents) -> _OpenEvents:
        """Return these events and those of a later reading."""
        return _OpenEvents(changing=self.changing or later.changing, about={**later.about, **self.about})


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Plans retention. It writes nothing.

    Attributes:
        open_store: From a bucket's name to its object store.
        signing: Whose log entries are trusted; by default signatures are off.
    """

    settings: Settings
    engine: Engine
    tables: RegistryTables
    open_store: Callable[[str], ObjectStore]
    signing: SigningPolicy = NO_SIGNING

    def plan(self, *, now: datetime, model: str | None = None) -> Iterator[Sequence[PlannedRelease] | ForeignFolders]:
        """Yield the releases of each folder, and the folders that are none of this registry's.

        Args:
            now: The time by the database's clock.
            model: Only of this registered model.

        Raises:
            ObjectStoreError, RegistryUnavailableError: the plan is incomplete.
        """
        for workspace in (DEFAULT_WORKSPACE, *self.settings.workspaces):
            keys = [None] if model is None else self._keys(workspace, model)
            for key in keys:
                yield from self._of_bucket(workspace, now, key)

    def plan_folder(
        self, workspace: str, key: str, models: Sequence[str], *, now: datetime
    ) -> Sequence[PlannedRelease]:
        """Return the releases of one folder as they are now; see `plan`.

        The order of the readings matters, because an activation ends with its entry in a log and then closes its event,
        or deletes its hold: events first, then releases with their holds, then channels, then the heads of their logs.

        Args:
            models: The registered models whose events may be about these releases.
        """
        before = self._open_events(workspace, models, now)
        planned = self._of_bucket(workspace, now, key, before)
        found = [item for item in planned if not isinstance(item, ForeignFolders)]
        return found[0] if found else ()

    def _of_bucket(
        self, workspace: str, now: datetime, key: str | None, before: _OpenEvents | None = None
    ) -> Iterator[Sequence[PlannedRelease] | ForeignFolders]:
        store = self.open_store(self.settings.bucket_of(workspace) or self.settings.bucket)
        foreign: list[str] = []
        claims = self._claims(workspace, key)
        claimed = next(claims, None)
        try:
            for name, group in groupby(folders(store.list("" if key is None else f"{key}/")), _key_of):
                while claimed is not None and f"{claimed.key}/" < f"{name}/":
                    claimed = next(claims, None)
                if claimed is not None and claimed.key == name:
                    yield self._of_folder(store, workspace, claimed, group, now, before)
                else:
                    foreign.append(name)
        except BucketNotFoundError:
            return  # Nothing was ever released.
        if foreign:
            yield ForeignFolders(workspace=workspace, names=foreign)

    def _of_folder(
        self,
        store: ObjectStore,
        workspace: str,
        claims: _Claims,
        group: Iterable[Folder],
        now: datetime,
        before: _OpenEvents | None,
    ) -> Sequence[PlannedRelease]:
        channels: list[ChannelPaths] = []
        found: list[Folder] = []
        for folder in group:
            if folder.run_id is not None:
                found.append(folder)
            elif folder.logged is not None or folder.published is not None:
                try:
                    channels.append(ChannelPaths(model_key=claims.key, channel=check_channel(folder.name)))
                except InvalidNameError:
                    continue
        events = self._open_events(workspace, claims.models, now)
        if before is not None:
            events = before.with_later(events)
        named, problem = self._named(store, channels)
        if len(claims.models) > 1:
            problem = f"several registered models claim the folder: {', '.join(claims.models)}"
        holds = self._holds(workspace, claims.models)
        releases: list[ReleaseFacts] = []
        for folder in found:
            paths = ReleasePaths(model_key=claims.key, run_id=RunId.parse(folder.name))
            versions = [
                replace(
                    version,
                    holds=(*version.holds, *holds.get((version.model, version.version), ())),
                    open_event=events.about.get((version.model, version.version)),
                )
                for version in claims.versions.get(folder.name, ())
            ]
            releases.append(
                ReleaseFacts(
                    run_id=folder.name,
                    versions=tuple(versions),
                    changed_at=folder.newest_at,
                    complete=is_complete(folder, paths) and not folder.archived,
                    removed=folder.archived,
                    held_since=folder.held_since,
                )
            )
        facts = ModelFacts(releases=releases, named=named, changing=events.changing, problem=problem)
        policy = self.settings.retention.of(claims.models[0], claims.key)
        reasons = reasons_to_keep(facts, policy, now)
        archives = policy is not None and policy.then is Removal.ARCHIVE
        return [
            PlannedRelease(
                workspace=workspace,
                paths=ReleasePaths(model_key=claims.key, run_id=RunId.parse(folder.name)),
                policy=policy,
                version=release.versions[0] if len(release.versions) == 1 else None,
                model_bytes=folder.model_bytes + (folder.tower_bytes if archives else 0),
                reason=reasons[folder.name],
                removed=release.removed,
                foreign=folder.foreign,
                stale=tuple(item.key for item in folder.marks if now - item.modified_at > HOLD_AGE),
            )
            for folder, release in zip(found, releases, strict=True)
        ]

    def _named(self, store: ObjectStore, channels: Iterable[ChannelPaths]) -> tuple[dict[str, str], str | None]:
        """The releases that any channel of a model names: in the newest log entry, and in the manifest.

        The second result is the reason why no release of the model may go: a log cannot be read.
        """
        named: dict[str, str] = {}
        problem: str | None = None
        for paths in channels:
            try:
                state = Channel(store, paths, self.signing).read_head()
                documents = [] if state.head is None else [state.head]
                if state.manifest_bytes is not None and not state.manifest_is_current:
                    documents.append(Manifest.parse(state.manifest_bytes))
            except (InvalidDocumentError, ManifestRefusedError, UntrustedLogError, ObjectTooLargeError) as error:
                problem = problem or f"the log of {paths.channel} cannot be read: {error}"
                continue
            for document in documents:
                named.setdefault(document.current.run_id, f"the manifest of {paths.channel} (current)")
                for pointer in document.previous:
                    named.setdefault(pointer.run_id, f"the manifest of {paths.channel} (previous)")
        return named, problem

    # --- the registry -------------------------------------------------------------------------------------------------

    def _keys(self, workspace: str, model: str) -> list[str | None]:
        claims = self.tables.claims
        query = sa.select(claims.c.key).distinct().where(claims.c.workspace == workspace, claims.c.model == model)
        return [key for (key,) in self._rows(query) if _is_key(key)]

    def _claims(self, workspace: str, key: str | None) -> Iterator[_Claims]:
        """Yield the versions of each folder whose tags name a release, in the byte order of the releases' paths."""
        for name, rows in groupby(self._claim_rows(workspace, key), lambda row: str(row.key)):
            versions: dict[str, list[VersionFacts]] = {}
            for row in rows:
                versions.setdefault(row.run_id, []).append(self._version(row))
            if _is_key(name):
                yield _Claims(key=name, versions=versions)

    def _claim_rows(self, workspace: str, key: str | None) -> Iterator[Any]:
        claims = self.tables.claims
        path = bytewise(claims.c.key + "/" + claims.c.run_id + "/", self.engine.dialect.name)
        query = sa.select(claims, path.label("path")).where(claims.c.workspace == workspace)
        query = query if key is None else query.where(claims.c.key == key)
        last: tuple[str, str, int] = ("", "", 0)
        while True:
            after = (path > last[0]) | ((path == last[0]) & _after(claims, last[1], last[2]))
            order = (path, claims.c.model, claims.c.version)
            rows = self._rows(query.where(after).order_by(*order).limit(_PAGE))
            yield from rows
            if len(rows) < _PAGE:
                return
            last = (rows[-1].path, rows[-1].model, rows[-1].version)

    def _version(self, row: Any) -> VersionFacts:
        moved = self.settings.stages.get(row.stage)
        holds = () if moved is None else (f"the stage {row.stage}, which moves {moved}",)
        return VersionFacts(
            model=row.model,
            version=row.version,
            status=row.status,
            holds=holds,
            changed_at=time_from_ms(row.changed_ms),
        )

    def _holds(self, workspace: str, models: Iterable[str]) -> dict[tuple[str, int], tuple[str, ...]]:
        """The aliases of each version that move a channel."""
        aliases = self.tables.aliases
        held: dict[tuple[str, int], tuple[str, ...]] = {}
        moving = self.settings.aliases
        for model in models:
            query = sa.select(aliases.c.alias, aliases.c.version).where(
                aliases.c.workspace == workspace, aliases.c.model == model, aliases.c.alias.in_(list(moving))
            )
            for alias, version in self._rows(query):
                text = f"the alias {alias}, which moves {moving[alias]}"
                held[model, version] = (*held.get((model, version), ()), text)
        return held

    def _open_events(self, workspace: str, models: Iterable[str], now: datetime) -> _OpenEvents:
        changing: int | None = None
        about: dict[tuple[str, int], int] = {}
        for model in models:
            for row in self._rows(sql.open_events(workspace, model, late_since=now - _LATE)):
                event = sql.to_event(row)
                for version in (event.version, event.previous_version):
                    if version is not None:
                        about[model, version] = event.id
                if _changes_model(event):
                    changing = event.id
        return _OpenEvents(changing=changing, about=about)

    def _rows(self, query: sa.Select[Any]) -> Sequence[Any]:
        with database_errors("plan the retention"), self.engine.connect() as connection:
            return connection.execute(query).all()


def _changes_model(event: Event) -> bool:
    """Whether an event may activate another version than its own: a promotion or a loss that is not carried out."""
    return event.state is EventState.PENDING and event.kind is not EventKind.VERSION_CREATED


def _key_of(folder: Folder) -> str:
    return folder.model_key


def _after(claims: Any, model: str, version: int) -> Any:
    return (claims.c.model > model) | ((claims.c.model == model) & (claims.c.version > version))


def _is_key(key: str) -> bool:
    try:
        check_model_key(key)
    except InvalidNameError:
        return False
    return True
