"""From the settings to a worker for a remote registry, whose outbox is in a database of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import mlflow.environment_variables
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from supabase_bridge.config import Settings
from supabase_bridge.errors import RegistryUnavailableError, SettingsError
from supabase_bridge.key_files import writer_seal
from supabase_bridge.object_store import Progress
from supabase_bridge.outbox import duties
from supabase_bridge.outbox.opening import connect
from supabase_bridge.outbox.queue import Outbox
from supabase_bridge.outbox.schema import ensure_schema
from supabase_bridge.processing import Processor
from supabase_bridge.registry import Registry
from supabase_bridge.registry_watch import RegistryWatch
from supabase_bridge.runtime import Runtime, Stores
from supabase_bridge.watched_tables import watched_tables

_VARIABLE = "SUPABASE_BRIDGE_WATCH_DATABASE_URL"
_ADDRESS = "watched address"
_RETRIES = 2
"""MLflow's client would try for minutes, and could not be stopped meanwhile; the next poll is a retry too."""


@dataclass(frozen=True, kw_only=True)
class Watching:
    """What follows a remote registry: the poll, and the runtime of the ordinary worker."""

    watch: RegistryWatch
    runtime: Runtime


@contextmanager
def watching(
    settings: Settings, tracking_uri: str, *, announce: Callable[[int], Progress] | None = None
) -> Iterator[Watching]:
    """What follows the registry of an MLflow server for the length of a block.

    Args:
        tracking_uri: The server's address; MLflow's own environment variables say how to log in there.
        announce: See `Mirror.run`.

    Raises:
        SettingsError, SigningExtraMissingError: see `writer_seal`.
        SettingsError: the address is none, the database is MLflow's own, or it follows another server.
        RegistryUnavailableError: the database did not answer.
    """
    if urlsplit(tracking_uri).scheme not in {"http", "https"}:
        raise SettingsError("--tracking-uri", "expected the address of an MLflow server, http:// or https://")
    settings = replace(settings, tracking_uri=tracking_uri)
    if not mlflow.environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.is_set():
        mlflow.environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(_RETRIES)
    seal = writer_seal(settings)
    engine = connect(settings.watch_database_url, connections=2 * settings.concurrency + 3)
    stores = Stores(settings)
    try:
        _prepare(engine, tracking_uri)
        outbox = Outbox(engine)
        registry = Registry(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        processor = Processor(
            settings=settings, registry=registry, outbox=outbox, open_store=stores, announce=announce, seal=seal
        )
        runtime = Runtime(
            settings=settings,
            stores=stores,
            outbox=outbox,
            registry=registry,
            processor=processor,
            seal=seal,
            tables=lambda _: watched_tables(),
        )
        yield Watching(watch=RegistryWatch(registry, outbox, settings), runtime=runtime)
    finally:
        stores.close()
        engine.dispose()


def _prepare(engine: Engine, tracking_uri: str) -> None:
    """Make the tables, and see to it that they follow one server only: two would delete each other's models."""
    parts = urlsplit(tracking_uri)
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"[:500]
    try:
        if engine.dialect.name == "sqlite" and engine.url.database:
            Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        if sa.inspect(engine).has_table("registered_models"):
            raise SettingsError(_VARIABLE, "that is MLflow's own database; name an empty one")
        ensure_schema(engine)
        followed = duties.place(engine, _ADDRESS)
        if followed not in {"", address}:
            raise SettingsError(_VARIABLE, f"it follows {followed} already; name another database for {address}")
        duties.set_place(engine, _ADDRESS, address)
    except SQLAlchemyError as error:
        raise RegistryUnavailableError("open its database", str(error).split("\n")[0][:300]) from error
