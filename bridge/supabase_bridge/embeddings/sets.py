"""`EmbeddingSets`: the sets of embeddings in one database: make the tables, load, list, search and drop."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import class_row

from supabase_bridge.client.release import Release
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.embeddings import schema
from supabase_bridge.embeddings.errors import EmbeddingsDatabaseError, EmbeddingSetNotReadyError
from supabase_bridge.embeddings.load import SetLoad
from supabase_bridge.embeddings.rows import Embeddings
from supabase_bridge.embeddings.statements import database_errors, remove_set, set_locked
from supabase_bridge.settings.model import Settings

_VARIABLE = "SUPABASE_BRIDGE_EMBEDDINGS_URL"
_FORM = "expected postgresql://user:password@host:5432/database"
_TRANSACTION_PORT = "6543"
_CONNECT_SECONDS = 20
_NOT_READY = "PT404"
_LISTED = sql.SQL(
    "select model, run_id, onnx_sha256, state, item_count, user_count, bucket, loaded_by, changed_at from {} "
    "where %s::text is null or model = %s order by model, run_id"
).format(schema.SETS)


@dataclass(frozen=True, kw_only=True)
class EmbeddingSet:
    """The embeddings of one release, as the database describes them.

    Attributes:
        state: `ready`, or `loading` and `dropping` while a process works on it, or after that process was killed.
        bucket: The bucket of the release, as `Resolver.name` has it; None: the loader did not name it.
        loaded_by: The host and process that loaded it.
    """

    model: str
    run_id: str
    onnx_sha256: str
    state: str
    item_count: int
    user_count: int
    bucket: str | None
    loaded_by: str
    changed_at: datetime

    @property
    def ready(self) -> bool:
        """Return whether the set is complete, so that queries answer."""
        return self.state == "ready"


@dataclass(frozen=True, kw_only=True)
class Match:
    """An item, and the inner product of its embedding and the query."""

    id: str
    score: float


class EmbeddingSets:
    """The sets in one database, through one connection; for one thread at a time. A context manager that closes itself.

    Args:
        connection: In autocommit mode, direct or through a pooler in session mode.

    Raises (every method):
        EmbeddingsUnavailableError: the database did not answer.
        EmbeddingsDatabaseError: it refused a statement.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> EmbeddingSets:
        """Connect to the database that the environment names.

        Raises:
            SettingsError: see `from_settings`.
        """
        return cls.from_settings(Settings.load(environ=environ, reading=True))

    @classmethod
    def from_settings(cls, settings: Settings) -> EmbeddingSets:
        """Connect to the database of the settings.

        Raises:
            SettingsError: no database is named, the URL is malformed, or leads to a pooler in transaction mode.
        """
        if settings.embeddings_url is None:
            raise SettingsError(_VARIABLE, f"missing; {_FORM}")
        url = settings.embeddings_url.get_secret_value()
        try:
            port = conninfo_to_dict(url).get("port")
        except psycopg.Error:
            raise SettingsError(_VARIABLE, _FORM) from None
        if not url.startswith(("postgresql://", "postgres://")) or not str(port or 0).isdigit():
            raise SettingsError(_VARIABLE, _FORM)
        if str(port) == _TRANSACTION_PORT:
            problem = f"port {_TRANSACTION_PORT} is the pooler's transaction mode, which has no session locks; use 5432"
            raise SettingsError(_VARIABLE, problem)
        with database_errors():
            connection = psycopg.connect(url, autocommit=True, connect_timeout=_CONNECT_SECONDS)
        return cls(connection)

    def init(self, model: str, *, dimension: int) -> None:
        """Make the schema, its functions and a model's tables; see `schema.create`.

        Raises:
            EmbeddingsDatabaseError: pgvector is missing or too old, or the model has tables of another width.
        """
        if not 1 <= dimension <= schema.DIMENSION_LIMIT:
            raise SettingsError("dimension", f"{dimension} is not from 1 to {schema.DIMENSION_LIMIT}")
        with database_errors():
            schema.create(self._connection, model, dimension)

    def load(
        self, release: Release, *, items: Embeddings, users: Embeddings | None = None, bucket: str | None = None
    ) -> EmbeddingSet:
        """Make the set of a release complete, and return it. Idempotent; a set that is ready already stays.

        Readers see all of it or nothing. An attempt that was killed is removed by the next one. Of two processes that
        load the same release, one loads and the other waits for it.

        Args:
            bucket: The name of the release's bucket (`Resolver.name`). A worker of that bucket then drops the set after
                the release was deleted.

        Raises:
            EmbeddingsRefusedError: the embeddings are malformed; nothing was written.
            EmbeddingSetConflictError: a complete set of another ONNX file, or with other numbers of rows, is there.
            EmbeddingsDatabaseError: `init` was not called for the model.
        """
        digest = release.files[release.onnx_name].sha256
        load = SetLoad(self._connection, release.model, release.run_id, onnx_sha256=digest, bucket=bucket)
        with database_errors():
            load.run(items, users or Embeddings.none())
        found = self.find(release.model, release.run_id)
        if found is None or not found.ready:
            raise EmbeddingSetNotReadyError(release.model, release.run_id)
        return found

    def find(self, model: str, run_id: str) -> EmbeddingSet | None:
        """Return the set of a release, ready or not; None if there is none."""
        return next((found for found in self.list(model) if found.run_id == run_id), None)

    def list(self, model: str | None = None) -> list[EmbeddingSet]:
        """Return all sets, or those of one model, in the order of model and run_id."""
        with database_errors(), self._connection.cursor(row_factory=class_row(EmbeddingSet)) as cursor:
            try:
                return cursor.execute(_LISTED, (model, model)).fetchall()
            except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                return []

    def drop(self, model: str, run_id: str) -> bool:
        """Drop the set of a release. The caller has checked that no manifest names the release.

        From the beginning of the call queries fail, so that no reader takes a dropped set for an empty answer.

        Returns:
            False if there was no set.

        Raises:
            EmbeddingsUnavailableError: readers use the table for minutes; the call may be repeated.
        """
        with database_errors(), set_locked(self._connection, model, run_id):
            return self.find(model, run_id) is not None and remove_set(self._connection, model, run_id)

    def match_items(self, model: str, run_id: str, query: Sequence[float], k: int = 20) -> Sequence[Match]:
        """Return the `k` items with the largest inner products, the best first.

        Args:
            run_id: The release of the tower that made the query: take both from one manifest.

        Raises:
            EmbeddingSetNotReadyError: the release has no complete set.
        """
        vector = "[" + ",".join(str(float(value)) for value in query) + "]"
        statement = "select id, score from supabase_bridge.match_items(%s, %s, %s, %s)"
        with database_errors(), _function_errors(model, run_id):
            rows = self._connection.execute(statement, (model, run_id, vector, k)).fetchall()
        return [Match(id=name, score=score) for name, score in rows]

    def user_embedding(self, model: str, run_id: str, user: str) -> Sequence[float] | None:
        """Return the stored embedding of a user; None for a user that the set does not have.

        Raises:
            EmbeddingSetNotReadyError: the release has no complete set.
        """
        statement = "select supabase_bridge.user_embedding(%s, %s, %s)::text"
        with database_errors(), _function_errors(model, run_id):
            row = self._connection.execute(statement, (model, run_id, user)).fetchone()
        found: Sequence[float] | None = None if row is None or row[0] is None else json.loads(row[0])
        return found

    def sample_users(self, model: str, run_ids: Sequence[str], *, limit: int) -> Sequence[str]:
        """Return users that the sets of all these releases have: always the same ones, in no order of their ids.

        Raises:
            EmbeddingSetNotReadyError: one of the releases has no complete set.
        """
        for run_id in run_ids:
            if (found := self.find(model, run_id)) is None or not found.ready:
                raise EmbeddingSetNotReadyError(model, run_id)
        first, *others = [schema.qualified(schema.set_tables(model, run_id)[1]) for run_id in dict.fromkeys(run_ids)]
        also = [sql.SQL("id in (select id from {})").format(table) for table in others]
        query = sql.SQL("select id from {} where {} order by md5(id), id limit %s").format(
            first, sql.SQL(" and ").join([sql.SQL("true"), *also])
        )
        with database_errors():
            return [name for (name,) in self._connection.execute(query, (limit,))]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> EmbeddingSets:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _function_errors(model: str, run_id: str) -> Iterator[None]:
    """Raise what the functions of the schema raise as errors of the bridge."""
    try:
        yield
    except psycopg.DatabaseError as error:
        if error.sqlstate == _NOT_READY:
            raise EmbeddingSetNotReadyError(model, run_id) from None
        if isinstance(error, psycopg.errors.UndefinedFunction | psycopg.errors.InvalidSchemaName):
            problem = f"lacks the functions of the schema; run `supabase-bridge embeddings init {model}`"
            raise EmbeddingsDatabaseError(problem) from None
        raise
