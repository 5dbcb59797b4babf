"""From the settings to the objects that do the work."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from supabase_bridge.config import Settings
from supabase_bridge.key_files import writer_seal
from supabase_bridge.object_store import ObjectStore, Progress
from supabase_bridge.object_store.opening import open_store
from supabase_bridge.outbox.opening import open_outbox
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.plugin_check import check_plugin
from supabase_bridge.processing import Processor
from supabase_bridge.registry import Registry
from supabase_bridge.signing import Seal
from supabase_bridge.worker import Handled, Worker


class Stores:
    """The object stores of one process: each bucket's opened, and created where it is missing, when first asked for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open: dict[str, ObjectStore] = {}

    def __call__(self, bucket: str) -> ObjectStore:
        """The store of a bucket.

        Raises:
            SettingsError: the settings do not allow it.
            ObjectStoreError: it does not exist and cannot be created now.
        """
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
        for store in self._open.values():
            store.close()
        self._open.clear()


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Everything a process works with."""

    settings: Settings
    stores: Stores
    outbox: Outbox
    registry: Registry
    processor: Processor
    seal: Seal

    def worker(self, on_handled: Callable[[Handled], None] | None = None) -> Worker:
        """A worker with a name of its own."""
        name = f"{socket.gethostname()[:30]}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        return Worker(
            name=name, settings=self.settings, outbox=self.outbox, processor=self.processor, on_handled=on_handled
        )


@contextmanager
def runtime(settings: Settings, *, announce: Callable[[int], Progress] | None = None) -> Iterator[Runtime]:
    """A runtime for the length of a block.

    Args:
        announce: See `Mirror.run`.

    Raises:
        PluginMissingError: see `check_plugin`.
        SettingsError, SigningExtraMissingError: see `writer_seal`.
        SettingsError, NotAnMlflowDatabaseError, RegistryUnavailableError: see `open_outbox`.
    """
    check_plugin(settings)
    seal = writer_seal(settings)
    stores = Stores(settings)
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
