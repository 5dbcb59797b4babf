"""The schema `supabase_bridge`: tables and functions of the embeddings, and the names of each set's tables."""

from __future__ import annotations

import hashlib
import re
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from supabase_bridge.embeddings.errors import EmbeddingsDatabaseError

SCHEMA = "supabase_bridge"
SETS = sql.Identifier(SCHEMA, "embedding_sets")
MODELS = sql.Identifier(SCHEMA, "embedding_models")

DIMENSION_LIMIT = 4_000
"""The largest width that pgvector indexes with HNSW for `halfvec`."""

_OLDEST = (0, 7)
"""pgvector's first version with `halfvec`."""

_INSTALL = "install the extension `vector` (on Supabase: Database, Extensions)"
_UPDATE = "update the extension (`alter extension vector update`; on Supabase upgrade the project's PostgreSQL)"

_LOCK = "select pg_advisory_xact_lock(hashtextextended('supabase_bridge embeddings schema', 0))"

_TABLES: LiteralString = """
create schema if not exists supabase_bridge;
revoke all on schema supabase_bridge from public;
create table if not exists supabase_bridge.embedding_models (
    model text primary key,
    dimension integer not null,
    items_table text not null unique,
    users_table text not null unique);
create table if not exists supabase_bridge.embedding_sets (
    model text not null references supabase_bridge.embedding_models,
    run_id text not null,
    onnx_sha256 text not null,
    state text not null check (state in ('loading', 'ready', 'dropping')),
    item_count bigint not null,
    user_count bigint not null,
    items_table text not null unique,
    users_table text not null unique,
    bucket text,
    loaded_by text not null,
    changed_at timestamptz not null default now(),
    primary key (model, run_id));
alter table supabase_bridge.embedding_models enable row level security;
alter table supabase_bridge.embedding_sets enable row level security;
"""

_FUNCTIONS: LiteralString = """
create or replace function supabase_bridge.ready_embedding_set(model text, run_id text)
returns supabase_bridge.embedding_sets language plpgsql stable set search_path = '' as $body$
declare found_set supabase_bridge.embedding_sets;
begin
    select * into found_set from supabase_bridge.embedding_sets as s
        where s.model = ready_embedding_set.model and s.run_id = ready_embedding_set.run_id and s.state = 'ready';
    if found_set.run_id is null then
        raise exception 'the embeddings of %/% are not ready', model, run_id using
            errcode = 'PT404', hint = 'Resolve the manifest again: the release may have been replaced.';
    end if;
    return found_set;
end $body$;

create or replace function supabase_bridge.match_items(model text, run_id text, query {vectors}.halfvec, k integer)
returns table (id text, score double precision) language plpgsql stable security definer
set search_path = '' set hnsw.ef_search = 100 as $body$
declare found_set supabase_bridge.embedding_sets;
begin
    if k is null or k not between 1 and 1000 or query is null then
        raise exception 'match_items needs a query, and k from 1 to 1000' using errcode = 'PT400';
    end if;
    found_set := supabase_bridge.ready_embedding_set(model, run_id);
    perform pg_catalog.set_config('hnsw.ef_search', least(greatest(10 * k, 100), 1000)::text, true);
    return query execute pg_catalog.format(
        'select id, (embedding operator({vectors}.<#>) $1) * -1 from supabase_bridge.%I '
        'order by embedding operator({vectors}.<#>) $1 limit $2', found_set.items_table) using query, k;
exception when undefined_table then
    raise exception 'the embeddings of %/% are not ready', model, run_id using errcode = 'PT404';
end $body$;

create or replace function supabase_bridge.user_embedding(model text, run_id text, id text)
returns {vectors}.halfvec language plpgsql stable security definer set search_path = '' as $body$
declare found_set supabase_bridge.embedding_sets; found_embedding {vectors}.halfvec;
begin
    found_set := supabase_bridge.ready_embedding_set(model, run_id);
    execute pg_catalog.format('select embedding from supabase_bridge.%I as u where u.run_id = $1 and u.id = $2',
        found_set.users_table) into found_embedding using run_id, id;
    return found_embedding;
exception when undefined_table then
    raise exception 'the embeddings of %/% are not ready', model, run_id using errcode = 'PT404';
end $body$;

revoke all on function supabase_bridge.ready_embedding_set(text, text) from public;
revoke all on function supabase_bridge.match_items(text, text, {vectors}.halfvec, integer) from public;
revoke all on function supabase_bridge.user_embedding(text, text, text) from public;
"""

_PARENT: LiteralString = """
create table {table} (
    run_id text not null, id text not null, embedding {vectors}.halfvec({dimension}) not null,
    primary key (run_id, id)) partition by list (run_id);
alter table {table} enable row level security;
"""


def create(connection: psycopg.Connection[Any], model: str, dimension: int) -> None:
    """Create the schema, the functions and a model's tables. Idempotent; several processes may do it at once.

    Raises:
        EmbeddingsDatabaseError: pgvector is missing or too old, or the model has tables of another width.
    """
    _install_vector(connection)
    vectors = sql.Identifier(vector_schema(connection))
    with connection.transaction():
        connection.execute(_LOCK)
        connection.execute(_TABLES)
        # The library must be loaded before a function may set a parameter of it.
        connection.execute(sql.SQL("select '[1]'::{}.halfvec").format(vectors))
        connection.execute(sql.SQL(_FUNCTIONS).format(vectors=vectors))
        found = model_dimension(connection, model)
        if found is not None and found != dimension:
            raise EmbeddingsDatabaseError(f"has tables of {model} with {found} dimensions, not {dimension}")
        if found is None:
            items, users = f"{_readable(model)}_items", f"{_readable(model)}_users"
            for table in (items, users):
                parts = {"table": qualified(table), "vectors": vectors, "dimension": sql.Literal(dimension)}
                connection.execute(sql.SQL(_PARENT).format(**parts))
            insert = sql.SQL("insert into {} values (%s, %s, %s, %s)").format(MODELS)
            connection.execute(insert, (model, dimension, items, users))


def model_dimension(connection: psycopg.Connection[Any], model: str) -> int | None:
    """Return the width of a model's embeddings; None where `create` was not called for the model."""
    row = connection.execute(sql.SQL("select dimension from {} where model = %s").format(MODELS), (model,)).fetchone()
    return None if row is None else int(row[0])


def set_tables(model: str, run_id: str) -> tuple[str, str]:
    """Return the names of a set's tables of items and users: a digest, because a name has 63 bytes at most."""
    digest = hashlib.sha256(f"{model}/{run_id}".encode()).hexdigest()[:32]
    return f"set_{digest}_items", f"set_{digest}_users"


def qualified(table: str) -> sql.Identifier:
    """Return a table's quoted name with its schema."""
    return sql.Identifier(SCHEMA, table)


def _readable(model: str) -> str:
    """The beginning of the names of a model's tables: the model's folder, or a digest where SQL would quote that."""
    if re.fullmatch(r"[a-z][a-z0-9_]{0,49}", model) and not model.startswith(("set_", "embedding_", "model_")):
        return model
    return f"model_{hashlib.sha256(model.encode()).hexdigest()[:32]}"


def vector_schema(connection: psycopg.Connection[Any]) -> str:
    """Return the schema in which the extension pgvector is.

    Raises:
        EmbeddingsDatabaseError: it is not installed, or too old for `halfvec`.
    """
    query = (
        "select n.nspname, e.extversion from pg_extension e join pg_namespace n on n.oid = e.extnamespace "
        "where e.extname = 'vector'"
    )
    row = connection.execute(query).fetchone()
    if row is None:
        raise EmbeddingsDatabaseError(f"has no pgvector: {_INSTALL}")
    name, version = row
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _OLDEST:
        needed = ".".join(map(str, _OLDEST))
        raise EmbeddingsDatabaseError(f"has pgvector {version}, and halfvec needs {needed} or later: {_UPDATE}")
    return str(name)


def _install_vector(connection: psycopg.Connection[Any]) -> None:
    """Install pgvector where it is missing: on Supabase into the schema of the extensions."""
    on_supabase = connection.execute("select 1 from pg_namespace where nspname = 'extensions'").fetchone()
    schema = sql.Identifier("extensions" if on_supabase else "public")
    try:
        connection.execute(sql.SQL("create extension if not exists vector with schema {}").format(schema))
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile, psycopg.errors.InsufficientPrivilege):
        raise EmbeddingsDatabaseError(f"has no pgvector: {_INSTALL}") from None
