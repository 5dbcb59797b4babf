"""Load one set: copy into tables of its own, index them, and attach them in one short transaction."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from pgvector import HalfVector
from pgvector.psycopg.halfvec import register_halfvec_info
from psycopg import sql
from psycopg.types import TypeInfo

from supabase_bridge.embeddings import schema
from supabase_bridge.embeddings.errors import (
    EmbeddingsDatabaseError,
    EmbeddingSetConflictError,
    EmbeddingsRefusedError,
)
from supabase_bridge.embeddings.rows import Embeddings
from supabase_bridge.embeddings.statements import remove_set, set_locked

logger = logging.getLogger(__name__)

_MEMORY_LIMIT = 2_000_000_000
_NODE_BYTES = 1_200
"""What pgvector's graph takes for one row besides its vector, with its default m = 16."""


class SetLoad:
    """One attempt to load the set of a release.

    Killed at any point, it leaves a set that is not ready, and the next attempt removes what is there and starts again.
    """

    def __init__(
        self, connection: psycopg.Connection[Any], model: str, run_id: str, *, onnx_sha256: str, bucket: str | None
    ) -> None:
        self._connection = connection
        self._model = model
        self._run_id = run_id
        self._onnx_sha256 = onnx_sha256
        self._bucket = bucket
        self._items_table, self._users_table = schema.set_tables(model, run_id)

    def run(self, items: Embeddings, users: Embeddings) -> None:
        """Load, index and attach the set, unless it is ready; see `EmbeddingSets.load`."""
        dimension, parents = self._model_tables()
        if not len(items.ids):
            raise EmbeddingsRefusedError(items.source, "there are no items; a set without items answers no query")
        for rows in (items, users):
            rows.check(dimension)
        with set_locked(self._connection, self._model, self._run_id), self._long_statements(dimension, items):
            if self._is_ready(items, users):
                return
            remove_set(self._connection, self._model, self._run_id)
            self._begin(parents, items, users)
            self._copy(self._items_table, items)
            self._copy(self._users_table, users)
            self._index_ids()
            self._index_vectors()
            self._attach(parents)
            facts = {"model": self._model, "run_id": self._run_id, "items": len(items.ids), "users": len(users.ids)}
            logger.info("a set of embeddings is ready", extra=facts)

    def _model_tables(self) -> tuple[int, tuple[str, str]]:
        query = sql.SQL("select dimension, items_table, users_table from {} where model = %s").format(schema.MODELS)
        try:
            row = self._connection.execute(query, (self._model,)).fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            row = None
        if row is None:
            raise EmbeddingsDatabaseError(
                f"has no tables for {self._model}; run `supabase-bridge embeddings init {self._model}`"
            )
        return int(row[0]), (str(row[1]), str(row[2]))

    def _is_ready(self, items: Embeddings, users: Embeddings) -> bool:
        """Whether the same set is ready; raises EmbeddingSetConflictError where another one is."""
        query = sql.SQL(
            "select onnx_sha256, item_count, user_count from {} where model = %s and run_id = %s and state = 'ready'"
        ).format(schema.SETS)
        row = self._connection.execute(query, (self._model, self._run_id)).fetchone()
        if row is None:
            return False
        digest, *counts = row
        given = [len(items.ids), len(users.ids)]
        difference = None
        if digest != self._onnx_sha256:
            difference = f"of another ONNX file ({digest[:12]}, not {self._onnx_sha256[:12]})"
        elif counts != given:
            difference = f"it has {counts[0]} items and {counts[1]} users, not {given[0]} and {given[1]}"
        if difference is not None:
            raise EmbeddingSetConflictError(self._model, self._run_id, difference)
        return True

    def _begin(self, parents: tuple[str, str], items: Embeddings, users: Embeddings) -> None:
        """Record that the set is being loaded, and make its two tables, which no reader sees yet."""
        with self._connection.transaction():
            tables = (self._items_table, self._users_table)
            insert = sql.SQL(
                "insert into {} (model, run_id, onnx_sha256, state, item_count, user_count, items_table, users_table, "
                "bucket, loaded_by) values (%s, %s, %s, 'loading', %s, %s, %s, %s, %s, %s)"
            ).format(schema.SETS)
            loaded_by = f"{socket.gethostname()[:60]}/{os.getpid()}"
            counts = (len(items.ids), len(users.ids))
            self._connection.execute(
                insert, (self._model, self._run_id, self._onnx_sha256, *counts, *tables, self._bucket, loaded_by)
            )
            for table, parent in zip(tables, parents, strict=True):
                # With this constraint, ATTACH need not read the rows.
                create = sql.SQL("create table {} (like {}, check (run_id = {}))").format(
                    schema.qualified(table), schema.qualified(parent), sql.Literal(self._run_id)
                )
                self._connection.execute(create)
                self._connection.execute(
                    sql.SQL("alter table {} enable row level security").format(schema.qualified(table))
                )

    def _copy(self, table: str, rows: Embeddings) -> None:
        """Copy all rows in one statement, in PostgreSQL's binary format."""
        info = TypeInfo.fetch(self._connection, sql.Identifier(schema.vector_schema(self._connection), "halfvec"))
        if info is None:
            raise EmbeddingsDatabaseError(f"has no type halfvec; run `supabase-bridge embeddings init {self._model}`")
        register_halfvec_info(self._connection, info)
        statement = sql.SQL("copy {} (run_id, id, embedding) from stdin (format binary)")
        with self._connection.cursor() as cursor:
            with cursor.copy(statement.format(schema.qualified(table))) as copy:
                copy.set_types(["text", "text", info.oid])
                for name, row in zip(rows.ids, rows.matrix, strict=True):
                    copy.write_row((self._run_id, name, HalfVector(row)))
            if cursor.rowcount != len(rows.ids):
                raise EmbeddingsDatabaseError(f"stored {cursor.rowcount} of {len(rows.ids)} rows of {rows.source}")

    def _index_ids(self) -> None:
        for table in (self._items_table, self._users_table):
            key = sql.SQL("alter table {} add primary key (run_id, id)").format(schema.qualified(table))
            self._connection.execute(key)

    def _index_vectors(self) -> None:
        """Index the items by HNSW for the inner product: embeddings have length 1, so that it orders as the cosine."""
        operators = sql.Identifier(schema.vector_schema(self._connection), "halfvec_ip_ops")
        index = sql.SQL("create index on {} using hnsw (embedding {})")
        self._connection.execute(index.format(schema.qualified(self._items_table), operators))

    def _attach(self, parents: tuple[str, str]) -> None:
        """Attach both tables and mark the set as ready, in one short transaction that no reader waits for."""
        with self._connection.transaction():
            for table, parent in zip((self._items_table, self._users_table), parents, strict=True):
                attach = sql.SQL("alter table {} attach partition {} for values in ({})").format(
                    schema.qualified(parent), schema.qualified(table), sql.Literal(self._run_id)
                )
                self._connection.execute(attach)
            ready = sql.SQL("update {} set state = 'ready', changed_at = now() where model = %s and run_id = %s")
            self._connection.execute(ready.format(schema.SETS), (self._model, self._run_id))

    @contextmanager
    def _long_statements(self, dimension: int, items: Embeddings) -> Iterator[None]:
        """Let statements take as long as they need, with memory for the whole graph; log the server's warnings."""
        needed = min(len(items.ids) * (2 * dimension + _NODE_BYTES), _MEMORY_LIMIT) // 1024
        own = self._connection.execute("select setting::bigint from pg_settings where name = 'maintenance_work_mem'")
        row = own.fetchone()
        changed = {
            "statement_timeout": "0",
            "maintenance_work_mem": str(max(needed, 0 if row is None else int(row[0]))),
            # The server ends the statement of a killed client, and with it the lock, within seconds.
            "client_connection_check_interval": "2s",
        }
        for name, value in changed.items():
            self._connection.execute("select set_config(%s, %s, false)", (name, value))
        self._connection.add_notice_handler(_log_notice)
        try:
            yield
        finally:
            self._connection.remove_notice_handler(_log_notice)
            if not self._connection.broken:
                for name in changed:
                    self._connection.execute(sql.SQL("reset {}").format(sql.Identifier(name)))


def _log_notice(notice: psycopg.errors.Diagnostic) -> None:
    """Log what the server remarks, such as a graph that no longer fits into maintenance_work_mem."""
    if notice.severity_nonlocalized in {"WARNING", "NOTICE"} and "does not exist, skipping" not in str(
        notice.message_primary
    ):
        facts = {"detail": notice.message_detail, "hint": notice.message_hint}
        logger.warning("the database: %s", notice.message_primary, extra=facts)
