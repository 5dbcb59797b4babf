"""Build every object of a process from the settings: stores, outbox, registry, processor, worker, reconciler."""

from __future__ import annotations

import importlib
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from urllib.parse import urlsplit

import mlflow.environment_variables

from supabase_bridge.announce.announcer import Announcer
from supabase_bridge.app.server import check_plugin
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.core.events import DEFAULT_WORKSPACE
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.follower.poller import RegistryPoller
from supabase_bridge.follower.snapshot import open_snapshot, watched_tables
from supabase_bridge.outbox.database import set_idle_transaction_timeout_of_all_engines
from supabase_bridge.outbox.queue import Outbox, open_outbox
from supabase_bridge.reconcile.reconciler import Reconciler
from supabase_bridge.registry.client import Registry
from supabase_bridge.registry.tables import RegistryTables, mlflow_tables
from supabase_bridge.releases.hints import HintSender
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore, Progress
from supabase_bridge.storage.factory import open_store
from supabase_bridge.trust.load import load_signing_policy
from supabase_bridge.trust.signer import SigningPolicy
from supabase_bridge.worker.context import Services
from supabase_bridge.worker.periodic import PeriodicTask
from supabase_bridge.worker.processor import Processor
from supabase_bridge.worker.worker import EventResult, Worker

_CLEANING_INTERVAL = timedelta(hours=1)
_CLEANING_PAUSE_SECONDS = 0.2
_ANNOUNCING_PAUSE = timedelta(seconds=1)  # after an error
_LONGEST_RECONCILE_PAUSE = timedelta(minutes=1)  # between two checks whether a pass is due
_RETRIES = 2
"""The default of MLflow's client retries for minutes and cannot be interrupted. The next poll is a retry too."""


class Stores:
    """The object stores of one process, one for each bucket, opened on first use. Thread-safe.

    Args:
        create: Create a bucket that is missing when its store is opened.
    """

    def __init__(self, settings: Settings, *, create: bool = True) -> None:
        self._settings = settings
        self._create = create
        self._open: dict[str, ObjectStore] = {}
        self._opening = threading.Lock()

    def __call__(self, bucket: str) -> ObjectStore:
        """Return the store of a bucket.

        Raises:
            SettingsError, ObjectStoreError: the bucket is not allowed, or cannot be created now.
        """
        with self._opening:
            if bucket not in self._open:
                store = open_store(self._settings, bucket)
                with ExitStack() as undo:
                    undo.callback(store.close)
                    if self._create:
                        store.ensure_bucket()
                    undo.pop_all()
                self._open[bucket] = store
            return self._open[bucket]

    def close(self) -> None:
        """Close the connections of every store."""
        with self._opening:
            for store in self._open.values():
                store.close()
            self._open.clear()


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Every object that a process works with.

    Attributes:
        tables: The registry's tables; None: MLflow's own tables in the outbox's database.
    """

    settings: Settings
    stores: Stores
    outbox: Outbox
    registry: Registry
    processor: Processor
    announcer: Announcer
    signing: SigningPolicy
    tables: RegistryTables | None = None

    @cached_property
    def poller(self) -> RegistryPoller:
        """The poller of a remote registry."""
        return RegistryPoller(self.registry, self.outbox, self.settings)

    def worker(self, on_handled: Callable[[EventResult], None] | None = None) -> Worker:
        """Make a worker with a unique name; it announces only where `announcer` is open.

        MLflow's client is made, too, so that the first event finds it.
        """
        self.registry.prepare()
        return Worker(
            name=f"{socket.gethostname()[:30]}/{os.getpid()}/{uuid.uuid4().hex[:8]}",
            settings=self.settings,
            outbox=self.outbox,
            processor=self.processor,
            on_handled=on_handled,
            periodic_tasks=tuple(self.periodic_tasks()),
        )

    def reconciler(self, open_store: Callable[[str], ObjectStore] | None = None) -> Reconciler:
        """Make a reconciler.

        Args:
            open_store: From a bucket's name to its store; by default `stores`, which create missing buckets.
        """
        engine = self.outbox.engine
        tables = self.tables or mlflow_tables(engine)
        return Reconciler(
            settings=self.settings,
            engine=engine,
            tables=replace(tables, workspaces=(DEFAULT_WORKSPACE, *self.settings.workspaces)),
            registry=self.registry,
            open_store=open_store or self.stores,
            signing=self.signing,
            changed=self._mark,
        )

    def _mark(self, workspace: str, paths: ChannelPaths) -> None:
        """Let the announcer look at a channel of a workspace."""
        self.announcer.mark(self.settings.bucket_of(workspace) or self.settings.bucket, paths)

    def periodic_tasks(self) -> Iterator[PeriodicTask]:
        """The background tasks of a worker; without the reconcile pass where its interval is 0."""
        yield PeriodicTask(name="remove finished events", every=_CLEANING_INTERVAL, act=self._remove_finished)
        for name, act in self.announcer.tasks():
            yield PeriodicTask(name=name, every=_ANNOUNCING_PAUSE, act=act, alone=False)
        if self.settings.embeddings_url is not None:
            yield PeriodicTask(name="drop embeddings", every=_CLEANING_INTERVAL, act=self._drop_embeddings)
        if interval := self.settings.reconcile_interval:
            reconciler = self.reconciler()

            def reconcile(stop: threading.Event) -> None:
                reconciler.run_if_due(stop)

            yield PeriodicTask(name="reconcile", every=min(interval, _LONGEST_RECONCILE_PAUSE), act=reconcile)

    def _drop_embeddings(self, _stop: threading.Event) -> None:
        """Drop the sets of embeddings whose release was deleted from one of this process's buckets."""
        # psycopg and pgvector are an extra of those who use embeddings.
        from supabase_bridge.app.embeddings import drop_gone
        from supabase_bridge.embeddings.sets import EmbeddingSets

        with EmbeddingSets.from_settings(self.settings) as sets:
            drop_gone(sets, [self.stores(bucket) for bucket in self.settings.release_buckets], signing=self.signing)

    def _remove_finished(self, stop: threading.Event) -> None:
        """Remove old finished events in batches, with a pause after each batch so that other writers can proceed."""
        last: int | None = 0
        while last is not None and not stop.wait(_CLEANING_PAUSE_SECONDS):
            last = self.outbox.remove_finished(older_than=self.settings.outbox_retention, after=last)
        if self.settings.announce:
            self.announcer.remove_finished()


def prepare_imports() -> None:
    """Import what MLflow imports when it opens its stores, which takes a second, so that the first event finds it."""
    for module in ("model_registry", "tracking"):
        importlib.import_module(f"mlflow.store.{module}.sqlalchemy_store")


@contextmanager
def open_runtime(
    settings: Settings, *, remote: str | None = None, announce: Callable[[int], Progress] | None = None
) -> Iterator[Runtime]:
    """Build a runtime for the length of a block.

    Args:
        remote: Address of an MLflow server whose registry is polled over REST; None: the registry is MLflow's database,
            and MLflow has the plugin. MLflow's own environment variables hold the server's credentials.
        announce: See `Mirror.run`.

    Raises:
        CommandError: MLflow lacks the plugin; see `check_plugin`.
        SettingsError, SigningError: see `load_signing_policy`.
        SettingsError, DatabaseError, RegistryUnavailableError: see `open_outbox`; for a remote see `open_snapshot`.
    """
    if remote is None:
        check_plugin(settings)
    else:
        settings = _settings_of_remote(settings, remote)
    with ExitStack() as stack:
        signing = load_signing_policy(settings)
        if remote is None:
            set_idle_transaction_timeout_of_all_engines()
            outbox = stack.enter_context(open_outbox(settings))
        else:
            outbox = stack.enter_context(open_snapshot(settings, remote))
        stores = stack.enter_context(closing(Stores(settings)))
        registry = Registry(
            tracking_uri=settings.tracking_uri or settings.database_url, registry_uri=remote or settings.registry_uri
        )
        announcer = stack.enter_context(closing(Announcer(settings, outbox, registry, stores, signing)))
        hints = stack.enter_context(closing(HintSender.of_settings(settings)))
        services = Services(
            settings=settings,
            registry=registry,
            outbox=outbox,
            open_store=stores,
            signing=signing,
            on_switch=(announcer.mark, hints.send),
        )
        processor = Processor(services, announce=announce)
        yield Runtime(
            settings=settings,
            stores=stores,
            outbox=outbox,
            registry=registry,
            processor=processor,
            announcer=announcer,
            signing=signing,
            tables=None if remote is None else watched_tables(),
        )


def _settings_of_remote(settings: Settings, remote: str) -> Settings:
    if urlsplit(remote).scheme not in {"http", "https"}:
        raise SettingsError("--tracking-uri", "expected the address of an MLflow server, http:// or https://")
    if not mlflow.environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.is_set():
        mlflow.environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(_RETRIES)
    return settings.with_changes(tracking_uri=remote)
