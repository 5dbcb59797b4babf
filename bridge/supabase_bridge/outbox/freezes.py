"""Freezes: while one is in force, no other version may be promoted into the channels of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from supabase_bridge.core.text import for_database, format_time
from supabase_bridge.outbox.database import DatabaseNow, database_errors, to_ms, to_time
from supabase_bridge.outbox.tables import FREEZES

_LIMITS = {"reason": 1_000, "frozen_by": 256}

_IN_FORCE = FREEZES.c.ended_ms.is_(None) & (FREEZES.c.until_ms.is_(None) | (FREEZES.c.until_ms > DatabaseNow()))

_OF_MODEL = (FREEZES.c.workspace == sa.bindparam("in_workspace")) & (FREEZES.c.model == sa.bindparam("of_model"))

# Statements are built once: SQLAlchemy takes longer to build one than a database to execute it.
_READ = sa.select(FREEZES).where(_OF_MODEL, _IN_FORCE).order_by(FREEZES.c.id)
_READ_ALL = (
    sa.select(FREEZES)
    .where(FREEZES.c.workspace == sa.bindparam("in_workspace"), _IN_FORCE)
    .order_by(FREEZES.c.model, FREEZES.c.id)
)


@dataclass(frozen=True, kw_only=True)
class Freeze:
    """A freeze in force.

    Attributes:
        channel: The frozen channel; None: every channel of the model.
        frozen_by: Who froze it: the user of the operating system.
        since: When.
        until: When it ends by itself; None: only `thaw` ends it.
    """

    model: str
    channel: str | None
    reason: str
    frozen_by: str
    since: datetime
    until: datetime | None

    def __str__(self) -> str:
        subject = self.model if self.channel is None else f"{self.model}@{self.channel}"
        end = "" if self.until is None else f" until {format_time(self.until)}"
        return f"{subject} is frozen{end} by {self.frozen_by}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class EndedFreeze(Freeze):
    """A freeze of any time.

    Attributes:
        ended_by: Who ended it by `thaw`, or replaced it; None: it is in force, or ended by itself.
        ended_at: When.
    """

    ended_by: str | None = None
    ended_at: datetime | None = None


def freezes_of(connection: Connection, workspace: str, model: str) -> Sequence[Freeze]:
    """Return the freezes of a model that are in force, by the database's clock; oldest first."""
    return _read(connection, _READ, workspace, model)


def _read(connection: Connection, query: sa.Select[Any], workspace: str, model: str) -> Sequence[Freeze]:
    return list(map(_freeze, connection.execute(query, {"in_workspace": workspace, "of_model": model})))


def freeze_at(engine: Engine, workspace: str, model: str, channel: str, moment: datetime) -> Freeze | None:
    """Return the oldest freeze of a channel that was in force at a time; None if there was none.

    Raises:
        RegistryUnavailableError: the database did not answer.
    """
    now_ms = to_ms(moment)
    in_force = (
        (FREEZES.c.frozen_ms <= now_ms)
        & (FREEZES.c.ended_ms.is_(None) | (FREEZES.c.ended_ms > now_ms))
        & (FREEZES.c.until_ms.is_(None) | (FREEZES.c.until_ms > now_ms))
    )
    query = sa.select(FREEZES).where(_OF_MODEL, in_force).order_by(FREEZES.c.id)
    with database_errors("read the freezes"), engine.connect() as connection:
        return covering(_read(connection, query, workspace, model), channel)


def all_freezes(engine: Engine, workspace: str, model: str) -> Sequence[EndedFreeze]:
    """Return every freeze of a model, also those that ended; oldest first.

    Raises:
        RegistryUnavailableError: the database did not answer.
    """
    query = sa.select(FREEZES).where(_OF_MODEL).order_by(FREEZES.c.id)
    with database_errors("read the freezes"), engine.connect() as connection:
        rows = connection.execute(query, {"in_workspace": workspace, "of_model": model}).all()
    return [
        EndedFreeze(
            **vars(_freeze(row)),
            ended_by=row.ended_by,
            ended_at=None if row.ended_ms is None else to_time(row.ended_ms),
        )
        for row in rows
    ]


def covering(freezes: Sequence[Freeze], channel: str) -> Freeze | None:
    """Return the oldest freeze that covers a channel; None if there is none."""
    return next((freeze for freeze in freezes if freeze.channel in (None, channel)), None)


def load_freezes(engine: Engine, workspace: str, model: str) -> Sequence[Freeze]:
    """Return the freezes of a model that are in force, in a transaction of its own.

    Raises:
        RegistryUnavailableError: the database did not answer.
    """
    with database_errors("read the freezes"), engine.connect() as connection:
        return freezes_of(connection, workspace, model)


def load_all_freezes(engine: Engine, workspace: str) -> Sequence[Freeze]:
    """Return the freezes of all models that are in force, in the order of the models; one query.

    Raises:
        RegistryUnavailableError: the database did not answer.
    """
    with database_errors("read the freezes"), engine.connect() as connection:
        return list(map(_freeze, connection.execute(_READ_ALL, {"in_workspace": workspace})))


def freeze(
    engine: Engine, workspace: str, model: str, channel: str | None, *, reason: str, by: str, until: datetime | None
) -> None:
    """Freeze a channel of a model, or all of them; a freeze of the same is replaced, and stays in the table as ended.

    Raises:
        RegistryUnavailableError: the database did not answer; nothing was changed.
    """
    texts = {"reason": reason, "frozen_by": by}
    with database_errors("record the freeze"), engine.begin() as connection:
        _end(connection, workspace, model, _is_channel(channel), by=by)
        connection.execute(
            FREEZES.insert().values(
                workspace=workspace,
                model=model,
                channel=channel,
                **{name: for_database(text, limit=_LIMITS[name]) for name, text in texts.items()},
                frozen_ms=DatabaseNow(),
                until_ms=None if until is None else to_ms(until),
            )
        )


def thaw(engine: Engine, workspace: str, model: str, channel: str | None, *, by: str) -> bool:
    """End the freeze of a channel of a model, or that of all its channels; return False if there is none in force.

    Raises:
        RegistryUnavailableError: the database did not answer; nothing was changed.
    """
    with database_errors("end the freeze"), engine.begin() as connection:
        return _end(connection, workspace, model, _is_channel(channel), by=by)


def rename(connection: Connection, workspace: str, *, old: str, new: str) -> None:
    """Let the freezes of a renamed model apply to its new name, in the caller's transaction."""
    of_model = (FREEZES.c.workspace == workspace) & (FREEZES.c.model == old)
    connection.execute(FREEZES.update().where(of_model).values(model=new))


def _freeze(row: Any) -> Freeze:
    return Freeze(
        model=row.model,
        channel=row.channel,
        reason=row.reason,
        frozen_by=row.frozen_by,
        since=to_time(row.frozen_ms),
        until=None if row.until_ms is None else to_time(row.until_ms),
    )


def _is_channel(channel: str | None) -> sa.ColumnElement[bool]:
    return FREEZES.c.channel.is_(None) if channel is None else FREEZES.c.channel == channel


def _end(connection: Connection, workspace: str, model: str, which: Any, *, by: str) -> bool:
    ended = {"ended_by": for_database(by, limit=_LIMITS["frozen_by"]), "ended_ms": DatabaseNow()}
    of_model = (FREEZES.c.workspace == workspace) & (FREEZES.c.model == model)
    return connection.execute(FREEZES.update().where(of_model, _IN_FORCE, which).values(ended)).rowcount > 0
