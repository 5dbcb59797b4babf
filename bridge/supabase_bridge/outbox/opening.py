"""From the settings to the outbox they name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from supabase_bridge.config import Settings
from supabase_bridge.errors import SettingsError
from supabase_bridge.outbox.pauses import LONGEST_PAUSE, limit_pauses
from supabase_bridge.outbox.queue import Outbox

_BUSY_TIMEOUT_SECONDS = 30


@contextmanager
def open_outbox(settings: Settings) -> Iterator[Outbox]:
    """The outbox of MLflow's database for the length of a block, its tables there.

    Raises:
        SettingsError: the database URL is malformed, or its driver is not installed.
        NotAnMlflowDatabaseError, OutboxNewerError, RegistryUnavailableError: see `Outbox.prepare`.
    """
    # One for each change in hand, one for each lease to renew now and then, one to listen.
    engine = connect(settings.database_url, connections=2 * settings.concurrency + 3)
    try:
        outbox = Outbox(engine)
        outbox.prepare()
        yield outbox
    finally:
        engine.dispose()


def connect(url: str, *, connections: int = 5, longest_pause: timedelta = LONGEST_PAUSE) -> Engine:
    """An engine as the outbox needs it: it waits where SQLite is busy, and reads what is committed by now.

    Args:
        url: MLflow's --backend-store-uri.
        connections: How many are kept open at most.
        longest_pause: See `limit_pauses`.

    Raises:
        SettingsError: see `open_outbox`.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return sa.create_engine(parsed, connect_args={"timeout": _BUSY_TIMEOUT_SECONDS}, pool_size=connections)
        # MySQL's default, REPEATABLE READ, locks gaps between rows: MLflow would wait for us before it may record.
        engine = sa.create_engine(parsed, isolation_level="READ COMMITTED", pool_pre_ping=True, pool_size=connections)
        limit_pauses(engine, longest_pause)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        problem = f"no database URL that SQLAlchemy can use here ({type(error).__name__}: {error})"
        raise SettingsError("SUPABASE_BRIDGE_DATABASE_URL", problem) from error
    except (ArgumentError, ValueError, TypeError) as error:
        # Their words quote parts of the URL, of a password with an '@' in it for one; so no cause is kept either.
        problem = f"no database URL that SQLAlchemy can use here ({type(error).__name__}); is its password encoded?"
        raise SettingsError("SUPABASE_BRIDGE_DATABASE_URL", problem) from None
    return engine
