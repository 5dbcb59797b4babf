"""Stands in for PostgREST: one function call, insert or select on a real PostgreSQL under the role of the key.

PostgREST itself is a program that no package registry has. Source of the SQL, of the statuses and of the errors: its
modules Query.PreQuery, Query.QueryBuilder (callPlanToQuery, mutatePlanToQuery) and Error (mapSQLtoHTTP).
"""

from __future__ import annotations

import json
from typing import Any

import psycopg
from psycopg import sql

from tests.support.simulators.http_request import Request
from tests.support.simulators.http_response import Response, json_response
from tests.support.simulators.storage_tokens import Role, role_of

_LOGIN = "authenticator"
_ROLES = {Role.SERVICE: "service_role", Role.ANON: "anon", Role.MISSING: "anon"}
_BODY_LIMIT_BYTES = 1_000_000

_PROJECT = """
do $$ begin
    create role anon nologin noinherit;
    create role authenticated nologin noinherit;
    create role service_role nologin noinherit bypassrls;
    create role authenticator login noinherit;
    grant anon, authenticated, service_role to authenticator;
exception when duplicate_object then null;
end $$;
create schema if not exists extensions;
grant usage on schema extensions to anon, authenticated, service_role;
"""
"""The roles of a Supabase project, which belong to the server, and its schema of extensions, which a database has."""

_FUNCTION = """
select proretset, proargnames[1:pronargs],
    array(select format_type(kind, null) from unnest(proargtypes) with ordinality as one(kind, place) order by place)
from pg_proc join pg_namespace n on n.oid = pronamespace where nspname = %s and proname = %s
"""


class Postgrest:
    """The function calls of a project's data API; `handle` is for `StorageSimulator.serve_rest`. Thread-safe.

    Args:
        url: The database, as psycopg names it, with a superuser. It gets the roles and schemas of a Supabase project.
        schemas: The exposed schemas; the first one is the default.
    """

    def __init__(self, url: str, *, schemas: tuple[str, ...] = ("public", "supabase_bridge")) -> None:
        self.schemas = schemas
        self._url = psycopg.conninfo.make_conninfo(url, user=_LOGIN)
        with psycopg.connect(url) as connection:
            connection.execute(_PROJECT)

    def handle(self, request: Request) -> Response:
        """Answer `POST /rest/v1/rpc/<function>`, and for a table or view `POST` of one row, and any other method."""
        role = _ROLES.get(role_of(request.header("authorization")))
        if role is None:
            return _error(401, "PGRST301", "No suitable key or wrong key type")
        schema = request.header("content-profile") or self.schemas[0]
        if schema not in self.schemas:
            exposed = ", ".join(self.schemas)
            return _error(406, "PGRST106", f"Invalid schema: {schema}", hint=f"Only these are exposed: {exposed}")
        name, given = request.raw_path.split("/")[-1], request.body.read_all(_BODY_LIMIT_BYTES)
        try:
            with psycopg.connect(self._url) as connection:
                if "/rpc/" in request.raw_path:
                    return self._call(connection, role, schema, name, given.decode())
                self._set_role(connection, role, schema)
                table = sql.Identifier(schema, name)
                if request.method == "POST":
                    return _insert(connection, table, json.loads(given))
                return _change_or_select(connection, table, request)
        except psycopg.Error as error:
            diagnosis = error.diag
            status = _status(diagnosis.sqlstate or "", role)
            return _error(status, diagnosis.sqlstate, diagnosis.message_primary, hint=diagnosis.message_hint)

    def _call(self, connection: psycopg.Connection[Any], role: str, schema: str, name: str, given: str) -> Response:
        found = connection.execute(_FUNCTION, (schema, name)).fetchone()
        if found is None or set(json.loads(given)) != set(found[1]):
            return _error(404, "PGRST202", f"Could not find the function {schema}.{name} in the schema cache")
        returns_rows, names, kinds = found
        self._set_role(connection, role, schema)
        columns = [
            sql.SQL("{} {}").format(sql.Identifier(one), sql.SQL(kind)) for one, kind in zip(names, kinds, strict=True)
        ]
        passed = [sql.SQL("{} := body.{}").format(sql.Identifier(one), sql.Identifier(one)) for one in names]
        query = sql.SQL("select {result} from json_to_record(%s) as body({columns}), lateral {function}({passed}) call")
        result = sql.SQL("coalesce(json_agg(call), '[]')" if returns_rows else "to_json(call)")
        function = sql.Identifier(schema, name)
        parts = {"columns": sql.SQL(", ").join(columns), "passed": sql.SQL(", ").join(passed)}
        row = connection.execute(query.format(result=result, function=function, **parts), (given,)).fetchone()
        assert row is not None
        return json_response(row[0])

    def _set_role(self, connection: psycopg.Connection[Any], role: str, schema: str) -> None:
        path = ", ".join(sql.Identifier(one).as_string(connection) for one in (schema, "public", "extensions"))
        connection.execute("select set_config('search_path', %s, true), set_config('role', %s, true)", (path, role))


def _insert(connection: psycopg.Connection[Any], table: sql.Identifier, row: dict[str, Any]) -> Response:
    """Insert a row, with `return=minimal`."""
    columns = sql.SQL(", ").join(map(sql.Identifier, row))
    query = sql.SQL("insert into {} ({}) select {} from json_populate_record(null::{}, %s) returning 1")
    connection.execute(query.format(table, columns, columns, table), (json.dumps(row),))
    return Response(status=201)


def _change_or_select(connection: psycopg.Connection[Any], table: sql.Identifier, request: Request) -> Response:
    """Answer the rows that equal the `eq.` filters, the newest first; PATCH and DELETE change them all."""
    given = {name: value for name, value in request.query.items() if value.startswith("eq.")}
    equal = [sql.SQL("{} = %s").format(sql.Identifier(name)) for name in given]
    where = sql.SQL(" and ").join([sql.SQL("true"), *equal])
    values = [value.removeprefix("eq.") for value in given.values()]
    if request.method == "PATCH":
        connection.execute(sql.SQL("update {} set consumer = 'x' where {}").format(table, where), values)
        return Response(status=204)
    if request.method == "DELETE":
        connection.execute(sql.SQL("delete from {} where {}").format(table, where), values)
        return Response(status=204)
    order = sql.Identifier(request.query["order"].removesuffix(".desc"))
    found = sql.SQL("select * from {} where {} order by {} desc limit {}")
    query = sql.SQL("select coalesce(json_agg(found), '[]') from ({}) found").format(
        found.format(table, where, order, int(request.query["limit"]))
    )
    row = connection.execute(query, values).fetchone()
    assert row is not None
    return json_response(row[0])


def _status(sqlstate: str, role: str) -> int:
    if sqlstate.startswith("PT"):
        return int(sqlstate[2:])
    return {"42501": 401 if role == "anon" else 403, "42883": 404, "42P01": 404, "57014": 500}.get(sqlstate, 400)


def _error(status: int, code: str | None, message: str | None, *, hint: str | None = None) -> Response:
    return json_response({"code": code, "details": None, "hint": hint, "message": message}, status=status)
