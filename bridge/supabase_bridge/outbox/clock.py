"""The database's own time, in SQL: the one clock that all servers and workers of a registry share."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.sql.functions import FunctionElement

from supabase_bridge.outbox.rows import to_ms, to_time


class DatabaseTime(FunctionElement[int]):
    """Milliseconds since 1970, UTC, by the clock of the database's machine; the same throughout a statement.

    PostgreSQL, MySQL, MariaDB and SQLite, whatever the session's time zone.
    """

    type = sa.BigInteger()
    name = "database_time"
    inherit_cache = True


_MYSQL = "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(3)) DIV 1000)"
_SQL = {
    "postgresql": "CAST(EXTRACT(EPOCH FROM statement_timestamp()) * 1000 AS BIGINT)",
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "sqlite": "CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)",
}


@compiles(DatabaseTime, "postgresql", "mysql", "mariadb", "sqlite")
def _compile(_element: DatabaseTime, compiler: SQLCompiler, **_options: Any) -> str:
    return _SQL[compiler.dialect.name]


def moment(now: datetime | None) -> ColumnElement[int]:
    """A time in SQL, in milliseconds since 1970; None: the database's own, as the statement finds it."""
    return DatabaseTime() if now is None else sa.literal(to_ms(now), sa.BigInteger)


def database_now(engine: Engine) -> datetime:
    """The time by the database's clock, UTC."""
    with engine.connect() as connection:
        return to_time(connection.execute(sa.select(DatabaseTime())).scalar_one())
