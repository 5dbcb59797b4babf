"""The database behind the outbox: engine, clock, idle-in-transaction timeout, and errors by meaning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.sql.functions import FunctionElement

from supabase_bridge.core.errors import SettingsError
from supabase_bridge.core.text import time_from_ms
from supabase_bridge.outbox.errors import ContentionError, RegistryUnavailableError
from supabase_bridge.settings.addresses import check_database_url

IDLE_TRANSACTION_TIMEOUT = timedelta(seconds=30)

_BUSY_TIMEOUT_SECONDS = 30

_DEADLOCK = {"40P01", "40001", "1213"}
"""Deadlock and serialization failure: SQLSTATE on PostgreSQL, error number on MySQL."""


def connect(
    url: str, *, connections: int = 5, idle_transaction_timeout: timedelta = IDLE_TRANSACTION_TIMEOUT
) -> Engine:
    """Create an engine for the outbox: it waits while SQLite is busy, and reads committed rows.

    Args:
        url: MLflow's --backend-store-uri.
        connections: Size of the connection pool.
        idle_transaction_timeout: Maximum time between two statements of a transaction, in whole seconds. PostgreSQL and
            MariaDB then abort the transaction, so that a worker that was stopped in the middle of it blocks no other.

    Raises:
        SettingsError: the URL is malformed, or its driver is not installed.
    """
    check_database_url(url)
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return sa.create_engine(parsed, connect_args={"timeout": _BUSY_TIMEOUT_SECONDS}, pool_size=connections)
        # MySQL's default, REPEATABLE READ, locks gaps between rows and so would block MLflow's inserts.
        # A pooler in transaction mode (pgbouncer, Supabase's port 6543) has no prepared statements.
        unprepared = {"prepare_threshold": None} if parsed.get_dialect().driver == "psycopg" else {}
        engine = sa.create_engine(
            parsed, isolation_level="READ COMMITTED", pool_pre_ping=True, pool_size=connections, connect_args=unprepared
        )
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        problem = f"SQLAlchemy cannot use this database URL here ({type(error).__name__}: {error})"
        raise SettingsError("SUPABASE_BRIDGE_DATABASE_URL", problem) from error
    except (ArgumentError, ValueError, TypeError) as error:
        # Their messages quote parts of the URL, for example of a password that contains '@'; so no cause is kept.
        problem = f"SQLAlchemy cannot use this database URL here ({type(error).__name__}); is its password encoded?"
        raise SettingsError("SUPABASE_BRIDGE_DATABASE_URL", problem) from None

    @sa.event.listens_for(engine, "connect")
    def _set(driver: Any, record: Any) -> None:
        _set_timeout(driver, record.info, engine.dialect.name, idle_transaction_timeout)

    return engine


@contextmanager
def database_errors(operation: str) -> Iterator[None]:
    """Translate SQLAlchemy's errors within a block.

    Args:
        operation: What failed, for the message: "MLflow could not `operation`".

    Raises:
        ContentionError: a unique index refused a row, or the database resolved a deadlock; another transaction won.
        RegistryUnavailableError: any other error of the database or its driver.
    """
    try:
        yield
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        codes = {getattr(cause, "sqlstate", None), getattr(cause, "pgcode", None), *map(str, cause.args[:1])}
        contended = isinstance(error, IntegrityError) or not codes.isdisjoint(_DEADLOCK)
        kind = ContentionError if contended else RegistryUnavailableError
        raise kind(operation, str(cause).strip().split("\n")[0][:300]) from error


class DatabaseNow(FunctionElement[int]):
    """The database's clock in milliseconds since 1970, UTC; constant within a statement.

    For PostgreSQL, MySQL, MariaDB and SQLite; independent of the session's time zone.
    """

    type = sa.BigInteger()
    name = "database_time"
    inherit_cache = True


_MYSQL_NOW = "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(3)) DIV 1000)"

_NOW = {
    "postgresql": "CAST(EXTRACT(EPOCH FROM statement_timestamp()) * 1000 AS BIGINT)",
    "mysql": _MYSQL_NOW,
    "mariadb": _MYSQL_NOW,
    "sqlite": "CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)",
}


@compiles(DatabaseNow, "postgresql", "mysql", "mariadb", "sqlite")
def _compile(_element: DatabaseNow, compiler: SQLCompiler, **_options: Any) -> str:
    return _NOW[compiler.dialect.name]


def now_sql(now: datetime | None) -> ColumnElement[int]:
    """Return a time as SQL, in milliseconds since 1970; None means the database's clock."""
    return DatabaseNow() if now is None else sa.literal(to_ms(now), sa.BigInteger)


def database_now(engine: Engine) -> datetime:
    """Return the time of the database's clock, UTC."""
    with engine.connect() as connection:
        return to_time(connection.execute(sa.select(DatabaseNow())).scalar_one())


def to_ms(time: datetime) -> int:
    """Convert a time to milliseconds since 1970, UTC."""
    return round(time.timestamp() * 1_000)


def to_time(milliseconds: int) -> datetime:
    """Convert milliseconds since 1970 to a time, UTC; a number that is no time becomes the beginning of 1970."""
    return time_from_ms(milliseconds) or datetime.fromtimestamp(0, tz=timezone.utc)


def milliseconds(span: timedelta) -> int:
    """Convert a duration to whole milliseconds."""
    return round(span / timedelta(milliseconds=1))


# MySQL has no such timeout and reads MariaDB's part of this statement as a comment.
_MYSQL_TIMEOUT = "SET @supabase_bridge = 1 /*M!100301 , SESSION idle_transaction_timeout = {seconds} */"

_SET_TIMEOUT = {
    "postgresql": "SET idle_in_transaction_session_timeout = '{seconds}s'",
    "mysql": _MYSQL_TIMEOUT,
    "mariadb": _MYSQL_TIMEOUT,
}

_HAS_TIMEOUT = "supabase_bridge.idle_transaction_timeout"


def set_idle_transaction_timeout_of_all_engines() -> None:
    """Set the timeout on every engine of this process: MLflow has engines of its own for runs and tags."""
    sa.event.listen(Engine, "engine_connect", _set_where_missing)


def _set_where_missing(connection: Connection) -> None:
    if _HAS_TIMEOUT not in connection.info:
        _set_timeout(connection.connection, connection.info, connection.dialect.name, IDLE_TRANSACTION_TIMEOUT)


def _set_timeout(driver: Any, info: dict[Any, Any], database: str, timeout: timedelta) -> None:
    info[_HAS_TIMEOUT] = True
    if database in _SET_TIMEOUT:
        cursor = driver.cursor()
        cursor.execute(_SET_TIMEOUT[database].format(seconds=round(timeout.total_seconds())))
        cursor.close()
        # PostgreSQL reverts a setting when its transaction is rolled back.
        driver.commit()
