"""One pass that finds what no event said, and sees to it: in the registry, in the store, in the home directory.

What a pass looks at is bounded (docs/reconcile.md): all changes of the registry, every channel in use, temporary keys,
and the folders of the next few models. A full pass looks at every release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from supabase_bridge.arrival_gate import ArrivalGate
from supabase_bridge.config import Settings
from supabase_bridge.errors import (
    BucketNotFoundError,
    InvalidChannelError,
    InvalidModelKeyError,
    RegistryUnavailableError,
)
from supabase_bridge.layout import META_NAME, ChannelKeys, ReleaseKeys, check_channel, check_model_key
from supabase_bridge.object_store import ObjectInfo, ObjectStore
from supabase_bridge.outbox import duties
from supabase_bridge.outbox.events import DEFAULT_WORKSPACE, EventKind, NewEvent
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.reconcile_channels import agrees, is_unchanged, promote_again, restore, used_channels
from supabase_bridge.reconcile_findings import Finding, FindingKind, Remedy
from supabase_bridge.reconcile_registry import find_unrecorded, record_unrecorded
from supabase_bridge.reconcile_releases import (
    ClaimedRelease,
    Folder,
    bytewise,
    claimed_releases,
    folders,
    is_complete,
    problem_of,
    side_by_side,
)
from supabase_bridge.reconcile_repeat import changes_wait, hindrance, record_again
from supabase_bridge.reconcile_sweep import (
    LoggedRuns,
    logged_runs,
    sweep_half_written,
    sweep_remembered_uploads,
    sweep_temporary_keys,
)
from supabase_bridge.registry import Registry
from supabase_bridge.registry_tables import RegistryTables
from supabase_bridge.signing import UNSEALED, Seal

_OBJECTS_A_PASS = 1_000
_LEAST_COST = 50
"""What a listing costs, in objects, however few it shows."""
_MODELS = 100


class Depth(str, Enum):
    """How much of the store a pass looks at.

    NEXT: the folders of the models that come next, about a thousand objects; the pass after goes on from there.
    LISTED: every folder, by one listing. THOROUGH: every file of every release, compared with its record.
    """

    NEXT = "next"
    LISTED = "listed"
    THOROUGH = "thorough"


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What one pass does with what it finds in the store; `before`: what is older is old."""

    depth: Depth
    before: datetime
    dry_run: bool
    sweep: bool


@dataclass(frozen=True, kw_only=True)
class Reconciler:
    """Looks for what no event said. Idempotent; safe beside workers, servers and other passes.

    Attributes:
        registry: What versions must meet is asked there, and shown there.
        open_store: From a bucket's name to its object store.
        seal: Whose log entries are believed; by default signatures are off.
        seen: Manifests that were found to be as their logs say; see `is_unchanged`.
    """

    settings: Settings
    engine: Engine
    tables: RegistryTables
    registry: Registry
    open_store: Callable[[str], ObjectStore]
    seal: Seal = UNSEALED
    seen: MutableMapping[str, str] = field(default_factory=dict)

    def run(
        self, *, now: datetime, depth: Depth, model: str | None = None, dry_run: bool = False, sweep: bool = False
    ) -> Iterator[Finding]:
        """Look, and see to what is found; each finding is given back once that is done.

        Args:
            now: By the database's clock: what is old is deleted.
            model: Only at this registered model.
            dry_run: Write nothing anywhere; the findings are what would be done.
            sweep: Delete old half-written releases that belong to no version; else they are reported.

        Raises:
            ObjectStoreError, RegistryUnavailableError: the pass ends; what it did holds, the next one does the rest.
        """
        try:
            yield from self._run(now, depth, model, dry_run=dry_run, sweep=sweep)
        except SQLAlchemyError as error:
            raise RegistryUnavailableError("compare it with the outbox", str(error).split("\n")[0][:300]) from error

    def _run(self, now: datetime, depth: Depth, model: str | None, *, dry_run: bool, sweep: bool) -> Iterator[Finding]:
        gate = ArrivalGate(settings=self.settings, registry=self.registry, outbox=Outbox(self.engine), dry_run=dry_run)
        yield from self._unrecorded(gate, model, dry_run=dry_run)
        before = now - self.settings.temporary_keys_age
        look = _Look(depth=depth, before=before, dry_run=dry_run, sweep=sweep)
        for workspace in (DEFAULT_WORKSPACE, *self.settings.workspaces):
            store = self.open_store(self.settings.bucket_of(workspace) or self.settings.bucket)
            try:
                reported: set[tuple[FindingKind, str, str]] = set()
                for found in self._channels(store, workspace, model, gate, dry_run=dry_run):
                    reported.add((found.kind, found.subject, found.detail))
                    yield found
                for found in self._releases(store, workspace, model, look):
                    if (found.kind, found.subject, found.detail) not in reported:
                        yield found
                if model is None:
                    yield from sweep_temporary_keys(store, before=before, dry_run=dry_run)
            except BucketNotFoundError as error:
                yield Finding(kind=FindingKind.UNCHECKED, subject=store.name, detail=str(error), remedy=Remedy.REPORTED)
        if model is None:
            yield from sweep_remembered_uploads(self.settings.home, before=before, dry_run=dry_run)

    def _unrecorded(self, gate: ArrivalGate, model: str | None, *, dry_run: bool) -> Iterator[Finding]:
        would = self._recordable(gate, model) if dry_run else None
        for event in would or record_unrecorded(self.engine, self.tables, model=model, gate=gate):
            yield Finding(
                kind=FindingKind.UNRECORDED_CHANGE,
                subject=_subject(event),
                detail=_change(event),
                remedy=Remedy.RECORDED,
            )
        for event, reason in gate.withheld.items():
            yield Finding(
                kind=FindingKind.FAILED_GATE,
                subject=_subject(event),
                detail=f"{_change(event)} is not carried out: {reason}",
                remedy=Remedy.REPORTED,
            )

    def _recordable(self, gate: ArrivalGate, model: str | None) -> Iterator[NewEvent]:
        """What a pass that writes would record."""
        for item in find_unrecorded(self.engine, self.tables, model=model):
            gate.judge([item.event])
            if gate.admits(item.event):
                yield item.event

    def _channels(
        self, store: ObjectStore, workspace: str, model: str | None, gate: ArrivalGate, *, dry_run: bool
    ) -> Iterator[Finding]:
        for used in used_channels(self.engine, self.tables, workspace=workspace, model=model):
            if isinstance(used, Finding):
                yield used
                continue
            if is_unchanged(store, used.keys, self.seen):
                continue
            found = restore(store, used.keys, self.seen, seal=self.seal, dry_run=dry_run)
            if found is None:
                found = promote_again(self.engine, store, used, self.settings, gate, seal=self.seal, dry_run=dry_run)
            if found is not None:
                yield found

    def _releases(self, store: ObjectStore, workspace: str, model: str | None, look: _Look) -> Iterator[Finding]:
        check = _ReleaseCheck(self, store, workspace, look)
        if model is not None:
            for key in self._keys(workspace, after="", model=model):
                yield from check.of_model(key, model)
        elif look.depth is Depth.NEXT:
            yield from self._next(check, workspace, dry_run=look.dry_run)
        else:
            yield from check.of_all()

    def _next(self, check: _ReleaseCheck, workspace: str, *, dry_run: bool) -> Iterator[Finding]:
        """Look at the next models' folders, and remember where to go on."""
        duty = f"folders {workspace}"
        reached = "" if dry_run else duties.place(self.engine, duty)
        for key in self._keys(workspace, after=reached, model=None):
            yield from check.of_model(key, None)
            reached = key
            if check.listed >= _OBJECTS_A_PASS:
                break
        else:
            reached = ""
        if not dry_run:
            duties.set_place(self.engine, duty, reached)

    def _keys(self, workspace: str, *, after: str, model: str | None) -> list[str]:
        """The folders of the models that come next."""
        claims = self.tables.claims
        key = bytewise(claims.c.key, self.engine.dialect.name)
        query = sa.select(key.label("key")).distinct().where(claims.c.workspace == workspace, key > after)
        if model is not None:
            query = query.where(claims.c.model == model)
        with self.engine.connect() as connection:
            return [str(row.key) for row in connection.execute(query.order_by(sa.text("1")).limit(_MODELS))]


class _ReleaseCheck:
    """Compares listings of one bucket with what the versions of one workspace claim."""

    def __init__(self, reconciler: Reconciler, store: ObjectStore, workspace: str, look: _Look) -> None:
        self._reconciler = reconciler
        self._store = store
        self._workspace = workspace
        self._look = look
        self._aside: list[Finding] = []
        self._logged: LoggedRuns | None = None
        self.listed = 0

    def of_all(self) -> Iterator[Finding]:
        """Every folder of the bucket."""
        yield from self._compare("", self._claims())

    def of_model(self, key: str, model: str | None) -> Iterator[Finding]:
        """One model's folders."""
        before = self.listed
        yield from self._compare(f"{key}/" if _is_folder(key) else None, self._claims(model=model, key=key))
        self.listed = max(self.listed, before + _LEAST_COST)

    def _claims(self, **only: str | None) -> Iterator[ClaimedRelease]:
        return claimed_releases(
            self._reconciler.engine,
            self._reconciler.tables,
            workspace=self._workspace,
            unusable=self._aside.append,
            **only,
        )

    def _compare(self, prefix: str | None, claims: Iterator[ClaimedRelease]) -> Iterator[Finding]:
        """Claims beside what lies below a prefix; None: nothing can."""
        for claim, folder in side_by_side(claims, () if prefix is None else self._release_folders(prefix)):
            found = self._claimed(claim, folder) if claim is not None else self._unclaimed(folder)
            if found is not None:
                yield found
        yield from self._aside
        self._aside.clear()

    def _release_folders(self, prefix: str) -> Iterator[Folder]:
        for folder in folders(self._counted(prefix)):
            if folder.run_id is not None:
                yield folder
            elif (found := self._channel(folder)) is not None:
                self._aside.append(found)

    def _channel(self, folder: Folder) -> Finding | None:
        """What is wrong with a channel, also one of which no tag tells: a pointer moved by hand."""
        if agrees(folder):
            return None
        with suppress(InvalidChannelError):
            keys = ChannelKeys(model_key=folder.model_key, channel=check_channel(folder.name))
            known, seal = self._reconciler.seen, self._reconciler.seal
            return restore(self._store, keys, known, seal=seal, dry_run=self._look.dry_run)
        return None

    def _counted(self, prefix: str) -> Iterator[ObjectInfo]:
        for item in self._store.list(prefix):
            self.listed += 1
            yield item

    def _claimed(self, claim: ClaimedRelease, folder: Folder | None) -> Finding | None:
        """What is wrong with a release that a version says is its own."""
        thorough = self._look.depth is Depth.THOROUGH
        if is_complete(folder, claim.keys) and not thorough:
            return None
        # The registry, the listing and the release itself were read at different moments; now the release alone counts.
        problem = problem_of(self._store, claim.keys, thorough=thorough)
        if problem is None:
            return None
        event = NewEvent(
            kind=EventKind.VERSION_CREATED,
            workspace=claim.workspace,
            model=claim.model,
            version=claim.version,
            stage=claim.stage,
        )
        engine = self._reconciler.engine
        if self._look.dry_run:
            with engine.connect() as connection:
                reason = hindrance(connection, event)
        else:
            reason = record_again(engine, event)
        return Finding(
            kind=FindingKind.INCOMPLETE_RELEASE,
            subject=f"{claim.model} version {claim.version}",
            detail=problem if reason is None else f"{problem}; {reason}",
            remedy=Remedy.RECORDED if reason is None else Remedy.REPORTED,
        )

    def _unclaimed(self, folder: Folder | None) -> Finding | None:
        """A folder that was begun and belongs to no version; deleted only where that is asked for."""
        if folder is None or META_NAME in folder.names or folder.newest_at >= self._look.before:
            return None
        detail = "it has no model_meta.json, so it is no release, and no version says that it is its own"
        remedy = Remedy.REPORTED
        if self._look.sweep and folder.run_id is not None:
            if reason := self._swept(ReleaseKeys(model_key=folder.model_key, run_id=folder.run_id)):
                detail = f"{detail}; it stays: {reason}"
            else:
                remedy = Remedy.DELETED
        return Finding(kind=FindingKind.UNCLAIMED_FOLDER, subject=folder.path, detail=detail, remedy=remedy)

    def _swept(self, keys: ReleaseKeys) -> str | None:
        if changes_wait(self._reconciler.engine, self._workspace):
            return "changes of the registry are on their way (supabase-bridge outbox list)"
        if self._logged is None or self._logged.model_key != keys.model_key:
            # Folders come model by model, so that one model's logs are kept at a time.
            self._logged = logged_runs(self._store, keys.model_key)
        look = self._look
        return sweep_half_written(self._store, keys, self._logged, before=look.before, dry_run=look.dry_run)


def _is_folder(key: str) -> bool:
    try:
        check_model_key(key)
    except InvalidModelKeyError:
        return False
    return True


def _subject(event: NewEvent) -> str:
    return event.model if event.version is None else f"{event.model} version {event.version}"


def _change(event: NewEvent) -> str:
    """A change that no event told of, for people."""
    if event.kind is EventKind.STAGE_CHANGED:
        return f"{event.previous_stage} -> {event.stage}"
    if event.kind in {EventKind.ALIAS_SET, EventKind.ALIAS_REMOVED}:
        return f"{event.kind.value} @{event.alias}"
    return str(event.kind.value)
