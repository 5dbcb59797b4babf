"""How long a transaction may stand still: of a process stopped in its middle the database takes back the locks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

LONGEST_PAUSE = timedelta(seconds=30)

# MySQL has no such limit, and reads what MariaDB takes for SQL as a comment.
_ON_MARIADB = "SET @supabase_bridge = 1 /*M!100301 , SESSION idle_transaction_timeout = {seconds} */"
_STATEMENTS = {
    "postgresql": "SET idle_in_transaction_session_timeout = '{seconds}s'",
    "mysql": _ON_MARIADB,
    "mariadb": _ON_MARIADB,
}
_LIMITED = "supabase_bridge.pauses"


def limit_pauses(engine: Engine, longest: timedelta) -> None:
    """Let PostgreSQL and MariaDB end a transaction of this engine, and its connection, once it has stood still so long.

    Args:
        longest: Between two statements, in whole seconds.
    """

    @sa.event.listens_for(engine, "connect")
    def _limit(driver: Any, record: Any) -> None:
        _tell(driver, engine.dialect.name, longest)
        record.info[_LIMITED] = True


def limit_pauses_of_all_engines() -> None:
    """The same for every engine of this process: a worker's MLflow has some of its own, for runs and for tags."""
    sa.event.listen(Engine, "engine_connect", _limit_where_nobody_has)


def _limit_where_nobody_has(connection: Connection) -> None:
    if _LIMITED not in connection.info:
        _tell(connection.connection, connection.dialect.name, LONGEST_PAUSE)
        connection.info[_LIMITED] = True


def _tell(driver: Any, database: str, longest: timedelta) -> None:
    statement = _STATEMENTS.get(database)
    if statement is None:
        return
    cursor = driver.cursor()
    cursor.execute(statement.format(seconds=round(longest.total_seconds())))
    cursor.close()
    # PostgreSQL takes back what a transaction has set that is rolled back.
    driver.commit()
