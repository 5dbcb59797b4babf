"""From the settings to the outbox they name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from supabase_bridge.config import Settings
from supabase_bridge.errors import SettingsError
from supabase_bridge.outbox.queue import Outbox

_BUSY_TIMEOUT_SECONDS = 30


@contextmanager
def open_outbox(settings: Settings) -> Iterator[Outbox]:
    """The outbox of MLflow's database for the length of a block, its tables there.

    Raises:
        SettingsError: the database URL is malformed, or its driver is not installed.
        NotAnMlflowDatabaseError, RegistryUnavailableError: see `Outbox.prepare`.
    """
    engine = _engine(settings.database_url)
    try:
        outbox = Outbox(engine)
        outbox.prepare()
        yield outbox
    finally:
        engine.dispose()


def _engine(url: str) -> Engine:
    try:
        parsed = sa.make_url(url)
        sqlite = parsed.get_backend_name() == "sqlite"
        arguments = {"timeout": _BUSY_TIMEOUT_SECONDS} if sqlite else {}
        return sa.create_engine(parsed, connect_args=arguments, pool_pre_ping=not sqlite)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        problem = f"no database URL that SQLAlchemy can use here ({type(error).__name__}: {error})"
        raise SettingsError("SUPABASE_BRIDGE_DATABASE_URL", problem) from error
    except (ArgumentError, ValueError, TypeError) as error:
        # Their words quote parts of the URL, of a password with an '@' in it for one; so no cause is kept either.
        problem = f"no database URL that SQLAlchemy can use here ({type(error).__name__}); is its password encoded?"
        raise SettingsError("SUPABASE_BRIDGE_DATABASE_URL", problem) from None
