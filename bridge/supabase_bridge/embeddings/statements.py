"""What loading and dropping a set share: the lock of a set, the removal of its tables, the database's errors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import sql

from supabase_bridge.embeddings import schema
from supabase_bridge.embeddings.errors import EmbeddingsDatabaseError, EmbeddingsUnavailableError

_LOCK_LIMIT = timedelta(hours=2)
_LOCK_PAUSE_SECONDS = 0.2
_DROP_ATTEMPTS = 30
"""How often a drop waits two seconds for readers of the model's tables; a waiting drop stops new readers meanwhile."""


@contextmanager
def database_errors() -> Iterator[None]:
    """Raise psycopg's errors of the block as errors of the bridge; their messages hold no password."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise EmbeddingsUnavailableError(_first_line(error)) from error
    except psycopg.Error as error:
        raise EmbeddingsDatabaseError(f"refused a statement: {_first_line(error)}") from error


@contextmanager
def set_locked(connection: psycopg.Connection[Any], model: str, run_id: str) -> Iterator[None]:
    """Hold the lock of one set during the block. It ends with the connection, so a killed process holds none.

    Raises:
        EmbeddingsUnavailableError: another process held the lock for two hours.
    """
    name = f"supabase_bridge embeddings {model}/{run_id}"
    deadline = time.monotonic() + _LOCK_LIMIT.total_seconds()
    # Without a wait inside a statement: its transaction would keep vacuum from removing dead rows.
    while not _scalar(connection, "select pg_try_advisory_lock(hashtextextended(%s, 0))", name):
        if time.monotonic() > deadline:
            raise EmbeddingsUnavailableError(f"another process has worked on {model}/{run_id} for two hours")
        time.sleep(_LOCK_PAUSE_SECONDS)
    try:
        yield
    finally:
        with suppress(psycopg.Error):
            connection.execute("select pg_advisory_unlock(hashtextextended(%s, 0))", (name,))


def remove_set(connection: psycopg.Connection[Any], model: str, run_id: str) -> bool:
    """Drop the tables and the record of a set; idempotent. The caller holds the set's lock.

    Raises:
        EmbeddingsUnavailableError: readers use the model's tables for a minute; the set is not ready any more.
    """
    marked = sql.SQL("update {} set state = 'dropping', changed_at = now() where model = %s and run_id = %s")
    connection.execute(marked.format(schema.SETS), (model, run_id))
    for _ in range(_DROP_ATTEMPTS):
        with suppress(psycopg.errors.LockNotAvailable), connection.transaction():
            connection.execute("set local lock_timeout = '2s'")
            for table in schema.set_tables(model, run_id):
                connection.execute(sql.SQL("drop table if exists {}").format(schema.qualified(table)))
            deleted = sql.SQL("delete from {} where model = %s and run_id = %s").format(schema.SETS)
            connection.execute(deleted, (model, run_id))
            return True
    raise EmbeddingsUnavailableError(f"readers use the tables of {model} all the time, so {run_id} is not dropped yet")


def _scalar(connection: psycopg.Connection[Any], query: str, *values: object) -> Any:
    row = connection.execute(query.encode(), values).fetchone()
    return None if row is None else row[0]


def _first_line(error: psycopg.Error) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
