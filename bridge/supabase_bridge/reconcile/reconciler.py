"""One reconcile pass over a registry: missing events, channels, releases, and the remains of uploads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.core.events import DEFAULT_WORKSPACE, EventState, NewEvent
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.outbox import periodic
from supabase_bridge.outbox.database import database_errors, database_now
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.reconcile.channels import (
    is_unchanged,
    promote_again,
    restore,
    used_channels,
)
from supabase_bridge.reconcile.cleanup import (
    clean_up_temporary_objects,
    clean_up_upload_states,
)
from supabase_bridge.reconcile.findings import Finding, FindingKind, Remedy, blocked_event, dead_letter, missing_event
from supabase_bridge.reconcile.release_check import PassOptions, ReleaseCheck, Scope
from supabase_bridge.registry.client import Registry
from supabase_bridge.registry.diff import enqueue_missing_events, find_missing_events
from supabase_bridge.registry.promotion_gate import PromotionGate
from supabase_bridge.registry.tables import RegistryTables, bytewise
from supabase_bridge.releases.heads import HeadState
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore
from supabase_bridge.storage.errors import BucketNotFoundError
from supabase_bridge.trust.signer import NO_SIGNING, SigningPolicy

logger = logging.getLogger(__name__)

_OBJECTS_A_PASS = 1_000
"""Maximum number of objects that an incremental pass lists, except for those of its last model."""

_MODELS_A_PASS = 100

_HEADS_KEPT = 2_000
"""Maximum number of channels of which a pass keeps what it has read; each takes a few kilobytes."""


@dataclass(frozen=True, kw_only=True)
class Reconciler:
    """Finds and repairs differences that no event announced. Idempotent; safe beside workers and other passes.

    Attributes:
        registry: Holds the release criteria, and gets the verdicts as tags.
        open_store: From a bucket's name to its object store.
        signing: Whose log entries are trusted; by default signatures are off.
        seen: Digests of manifests that agreed with their logs; see `is_unchanged`.
        changed: Called with the workspace and the channel of a manifest, or log, that was not seen before.
    """

    settings: Settings
    engine: Engine
    tables: RegistryTables
    registry: Registry
    open_store: Callable[[str], ObjectStore]
    signing: SigningPolicy = NO_SIGNING
    seen: MutableMapping[str, str] = field(default_factory=dict)
    changed: Callable[[str, ChannelPaths], None] = lambda _workspace, _paths: None

    def run(
        self, *, now: datetime, scope: Scope, model: str | None = None, dry_run: bool = False, sweep: bool = False
    ) -> Iterator[Finding]:
        """Do one pass; yield each finding after its repair.

        Args:
            now: The time by the database's clock; the age of temporary objects is measured against it.
            model: Limit the pass to this registered model.
            dry_run: Write nothing; yield the findings with the remedies that a pass would apply.
            sweep: Delete old incomplete releases that belong to no version; otherwise report them.

        Raises:
            ObjectStoreError, RegistryUnavailableError: the pass ended early. Its repairs hold; the next pass does the
                rest.
        """
        with database_errors("compare it with the outbox"):
            yield from self._run(now, scope, model, dry_run=dry_run, sweep=sweep)

    def run_if_due(self, stop: threading.Event, *, now: datetime | None = None) -> bool:
        """Do an incremental pass if one is due in the cluster; returns whether this process did it.

        Args:
            stop: When it is set, the pass ends after the current finding. The next pass does the rest.
            now: The time, instead of the database's clock. A worker whose own clock is ahead would delay the passes of
                all workers and delete temporary keys of running uploads.

        Raises:
            RegistryUnavailableError, ObjectStoreError: the pass ended early; the next one does the rest.
        """
        interval = self.settings.reconcile_interval
        with database_errors("see what is due"):
            due = periodic.acquire_run(self.engine, periodic.RECONCILE, interval=interval, now=now)
            moment = now or database_now(self.engine)
        for found in self.run(now=moment, scope=Scope.INCREMENTAL) if due else ():
            facts = {"subject": found.subject, "detail": found.detail, "remedy": found.remedy.value}
            logger.warning("reconcile: %s", found.kind.value, extra=facts)
            if stop.is_set():
                break
        return due

    def _run(self, now: datetime, scope: Scope, model: str | None, *, dry_run: bool, sweep: bool) -> Iterator[Finding]:
        gate = PromotionGate(
            settings=self.settings,
            registry=self.registry,
            outbox=Outbox(self.engine),
            dry_run=dry_run,
            read_tags=self.tables.model_tags,
        )
        yield from self._missing_events(gate, model, dry_run=dry_run)
        before = now - self.settings.temporary_keys_age
        options = PassOptions(scope=scope, before=before, dry_run=dry_run, sweep=sweep)
        for workspace in (DEFAULT_WORKSPACE, *self.settings.workspaces):
            store = self.open_store(self.settings.bucket_of(workspace) or self.settings.bucket)
            try:
                reported: set[tuple[FindingKind, str, str]] = set()
                heads: dict[str, HeadState] = {}
                for found in self._channels(store, workspace, model, gate, heads, dry_run=dry_run):
                    reported.add((found.kind, found.subject, found.detail))
                    yield found
                check = ReleaseCheck(
                    engine=self.engine,
                    tables=self.tables,
                    store=store,
                    workspace=workspace,
                    options=options,
                    signing=self.signing,
                    seen=self.seen,
                    heads=heads,
                    changed=self.changed,
                )
                for found in self._releases(check, model):
                    if (found.kind, found.subject, found.detail) not in reported:
                        yield found
                if model is None:
                    yield from clean_up_temporary_objects(store, before=before, dry_run=dry_run)
            except BucketNotFoundError as error:
                yield Finding(kind=FindingKind.UNCHECKED, subject=store.name, detail=str(error), remedy=Remedy.REPORTED)
        if scope is not Scope.INCREMENTAL:
            yield from map(dead_letter, Outbox(self.engine).events(states=(EventState.DEAD,), model=model))
        if model is None:
            yield from clean_up_upload_states(self.settings.home, before=before, dry_run=dry_run)

    def _missing_events(self, gate: PromotionGate, model: str | None, *, dry_run: bool) -> Iterator[Finding]:
        found = self._recordable(gate, model) if dry_run else None
        for event in found or enqueue_missing_events(self.engine, self.tables, model=model, gate=gate):
            yield missing_event(event)
        for event, reason in gate.blocked.items():
            yield blocked_event(event, reason)

    def _recordable(self, gate: PromotionGate, model: str | None) -> Iterator[NewEvent]:
        """Yield the events that a pass without `dry_run` would enqueue."""
        for item in find_missing_events(self.engine, self.tables, model=model):
            gate.judge([item.event])
            if gate.admits(item.event):
                yield item.event

    def _channels(
        self,
        store: ObjectStore,
        workspace: str,
        model: str | None,
        gate: PromotionGate,
        heads: dict[str, HeadState],
        *,
        dry_run: bool,
    ) -> Iterator[Finding]:
        """Compare the channels that tags name with their logs; `heads` gets what was read of those that agree."""
        for used in used_channels(self.engine, self.tables, workspace=workspace, model=model):
            if isinstance(used, Finding):
                yield used
                continue
            if is_unchanged(store, used.paths, self.seen):
                continue
            if not dry_run:
                self.changed(workspace, used.paths)
            found = restore(store, used.paths, self.seen, signing=self.signing, dry_run=dry_run)
            if isinstance(found, Finding):
                yield found
            elif found.head is None:
                yield promote_again(self.engine, used, self.settings, gate, dry_run=dry_run)
            elif len(heads) < _HEADS_KEPT:
                heads[used.paths.manifest] = found

    def _releases(self, check: ReleaseCheck, model: str | None) -> Iterator[Finding]:
        if model is not None:
            for key in self._keys(check.workspace, after="", model=model):
                yield from check.of_model(key, model)
        elif check.options.scope is Scope.INCREMENTAL:
            yield from self._next_models(check, check.workspace, dry_run=check.options.dry_run)
        else:
            yield from check.of_all()

    def _next_models(self, check: ReleaseCheck, workspace: str, *, dry_run: bool) -> Iterator[Finding]:
        """Compare the folders of the next models, and store where the next pass continues."""
        task = f"folders {workspace}"
        reached = "" if dry_run else periodic.cursor(self.engine, task)
        for key in self._keys(workspace, after=reached, model=None):
            yield from check.of_model(key, None)
            reached = key
            if check.listed >= _OBJECTS_A_PASS:
                break
        else:
            reached = ""
        if not dry_run:
            periodic.set_cursor(self.engine, task, reached)

    def _keys(self, workspace: str, *, after: str, model: str | None) -> list[str]:
        """The folders of the next models, in the order of their bytes."""
        claims = self.tables.claims
        key = bytewise(claims.c.key, self.engine.dialect.name)
        query = sa.select(key.label("key")).distinct().where(claims.c.workspace == workspace, key > after)
        if model is not None:
            query = query.where(claims.c.model == model)
        with self.engine.connect() as connection:
            return [str(row.key) for row in connection.execute(query.order_by(sa.text("1")).limit(_MODELS_A_PASS))]
