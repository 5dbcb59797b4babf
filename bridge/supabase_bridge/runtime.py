"""From the settings to the objects that do the work."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

from sqlalchemy.engine import Engine

from supabase_bridge.chores import Chore
from supabase_bridge.config import Settings
from supabase_bridge.key_files import writer_seal
from supabase_bridge.object_store import ObjectStore, Progress
from supabase_bridge.object_store.opening import open_store
from supabase_bridge.outbox.events import DEFAULT_WORKSPACE
from supabase_bridge.outbox.opening import open_outbox
from supabase_bridge.outbox.pauses import limit_pauses_of_all_engines
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.plugin_check import check_plugin
from supabase_bridge.processing import Processor
from supabase_bridge.reconcile import Reconciler
from supabase_bridge.reconcile_periodic import reconcile_chores
from supabase_bridge.registry import Registry
from supabase_bridge.registry_tables import RegistryTables, mlflow_tables
from supabase_bridge.signing import Seal
from supabase_bridge.worker import Handled, Worker

_CLEANING_INTERVAL = timedelta(hours=1)
_CLEANING_PAUSE_SECONDS = 0.2


class Stores:
    """The object stores of one process: each bucket's opened, and created where it is missing, when first asked for.

    Thread-safe, as the stores are.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open: dict[str, ObjectStore] = {}
        self._opening = threading.Lock()

    def __call__(self, bucket: str) -> ObjectStore:
        """The store of a bucket.

        Raises:
            SettingsError: the settings do not allow it.
            ObjectStoreError: it does not exist and cannot be created now.
        """
        with self._opening:
            if bucket not in self._open:
                store = open_store(self._settings, bucket)
                with ExitStack() as undo:
                    undo.callback(store.close)
                    store.ensure_bucket()
                    undo.pop_all()
                self._open[bucket] = store
            return self._open[bucket]

    def close(self) -> None:
        """Give back every store's connections."""
        with self._opening:
            for store in self._open.values():
                store.close()
            self._open.clear()


@contextmanager
def existing_stores(settings: Settings) -> Iterator[Callable[[str], ObjectStore]]:
    """The object stores of one process for the length of a block, none of them created where it is missing."""
    with ExitStack() as opened:

        def open_existing(bucket: str) -> ObjectStore:
            store = open_store(settings, bucket)
            opened.callback(store.close)
            return store

        yield open_existing


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Everything a process works with."""

    settings: Settings
    stores: Stores
    outbox: Outbox
    registry: Registry
    processor: Processor
    seal: Seal
    tables: Callable[[Engine], RegistryTables] = mlflow_tables

    def worker(self, on_handled: Callable[[Handled], None] | None = None) -> Worker:
        """A worker with a name of its own."""
        return Worker(
            name=f"{socket.gethostname()[:30]}/{os.getpid()}/{uuid.uuid4().hex[:8]}",
            settings=self.settings,
            outbox=self.outbox,
            processor=self.processor,
            on_handled=on_handled,
            chores=(
                Chore(name="remove finished events", every=_CLEANING_INTERVAL, act=self._remove_finished),
                *reconcile_chores(self.reconciler(self.stores)),
            ),
        )

    def reconciler(self, open_store: Callable[[str], ObjectStore]) -> Reconciler:
        """What looks for what no event said.

        Args:
            open_store: `stores`; or, where nothing may be written, what does not create a bucket either.
        """
        engine = self.outbox.engine
        tables = replace(self.tables(engine), workspaces=(DEFAULT_WORKSPACE, *self.settings.workspaces))
        return Reconciler(
            settings=self.settings,
            engine=engine,
            tables=tables,
            registry=self.registry,
            open_store=open_store,
            seal=self.seal,
        )

    def _remove_finished(self, stop: threading.Event) -> None:
        """Remove what was finished long ago, in batches, each followed by a pause for whoever else writes."""
        last: int | None = 0
        while last is not None and not stop.wait(_CLEANING_PAUSE_SECONDS):
            last = self.outbox.remove_finished(older_than=self.settings.outbox_retention, after=last)


@contextmanager
def runtime(settings: Settings, *, announce: Callable[[int], Progress] | None = None) -> Iterator[Runtime]:
    """A runtime for the length of a block.

    Args:
        announce: See `Mirror.run`.

    Raises:
        PluginMissingError: see `check_plugin`.
        SettingsError, SigningExtraMissingError: see `writer_seal`.
        SettingsError, NotAnMlflowDatabaseError, OutboxNewerError, RegistryUnavailableError: see `open_outbox`.
    """
    check_plugin(settings)
    seal = writer_seal(settings)
    stores = Stores(settings)
    limit_pauses_of_all_engines()
    with open_outbox(settings) as outbox:
        registry = Registry(
            tracking_uri=settings.tracking_uri or settings.database_url, registry_uri=settings.registry_uri
        )
        processor = Processor(
            settings=settings, registry=registry, outbox=outbox, open_store=stores, announce=announce, seal=seal
        )
        try:
            yield Runtime(
                settings=settings, stores=stores, outbox=outbox, registry=registry, processor=processor, seal=seal
            )
        finally:
            stores.close()
