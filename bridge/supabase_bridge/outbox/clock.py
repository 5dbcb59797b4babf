"""The database's own time, in SQL: the one clock that all servers and workers of a registry share."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


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
