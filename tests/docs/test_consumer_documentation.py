"""What the README and docs/consumers.md tell a consumer to write does what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.support.commands import clean_environment
from tests.support.consumers import BUCKET, FIRST, Bucket
from tests.support.databases import DatabaseServer

ROOT = Path(__file__).parents[2]
CONSUMERS = (ROOT / "docs/consumers.md").read_text()
SUPABASE = f"""
    create schema storage;
    create role anon;
    create role authenticated;
    create table storage.buckets (id text primary key, public boolean default false);
    create table storage.objects (id serial primary key, bucket_id text, name text);
    create function storage.foldername(name text) returns text[] language sql immutable
        as $$ select (string_to_array(name, '/'))[1 : array_length(string_to_array(name, '/'), 1) - 1] $$;
    alter table storage.objects enable row level security;
    alter table storage.buckets enable row level security;
    grant usage on schema storage to anon, authenticated;
    grant all on all tables in schema storage to anon, authenticated;
    grant all on all sequences in schema storage to anon, authenticated;
    insert into storage.buckets (id) values ('{BUCKET}'), ('private');
    insert into storage.objects (bucket_id, name) values
        ('{BUCKET}', 'two_tower/latest/manifest.json'), ('{BUCKET}', 'reranker/latest/manifest.json'),
        ('{BUCKET}', '_tmp/unfinished'), ('private', 'two_tower/secret');
"""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("document", ["README.md", "docs/consumers.md"])
def test_the_documented_lines_read_a_release(tmp_path: Path, document: str) -> None:
    Bucket.of_directory(tmp_path / "mlruns" / "supabase" / BUCKET).promote(FIRST)
    code = next(block for block in blocks((ROOT / document).read_text(), "python") if "Resolver.from_env()" in block)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert FIRST in done.stdout
    (onnx,) = [Path(word) for word in done.stdout.split() if word.endswith(".onnx")]
    assert onnx.stat().st_size > 0


@pytest.fixture
def supabase(postgresql: DatabaseServer) -> Iterator[sa.Connection]:
    """A database with as much of Supabase's storage schema as its policies speak of."""
    engine = sa.create_engine(postgresql.create())
    with engine.connect() as connection:
        connection.execute(sa.text(SUPABASE))
        connection.commit()
        try:
            yield connection
        finally:
            # Roles belong to the server, not to this database.
            connection.rollback()
            connection.execute(sa.text("drop owned by anon, authenticated; drop role anon, authenticated"))
            connection.commit()
    engine.dispose()


def seen_by(connection: sa.Connection, role: str) -> set[str]:
    connection.execute(sa.text(f"set local role {role}"))
    found = set(connection.execute(sa.text("select name from storage.objects")).scalars())
    connection.rollback()
    return found


WRITES = (
    f"insert into storage.objects (bucket_id, name) values ('{BUCKET}', 'two_tower/x')",
    f"insert into storage.objects (bucket_id, name) values ('{BUCKET}', '_tmp/x')",
    "insert into storage.objects (bucket_id, name) values ('private', 'x')",
    f"insert into storage.objects (id, bucket_id) values (1, '{BUCKET}') on conflict (id) do update set name = 'x'",
    "insert into storage.objects (bucket_id, name) select 'private', name from storage.objects",
    "update storage.objects set name = 'two_tower/y'",
    "update storage.objects set bucket_id = 'private' where name = 'two_tower/latest/manifest.json'",
    "update storage.objects set name = name where name like '_tmp/%'",
    "delete from storage.objects",
    "delete from storage.objects where name = '_tmp/unfinished'",
    "select * from storage.objects for update",
    "insert into storage.buckets (id) values ('theirs')",
    "update storage.buckets set public = true",
    "delete from storage.buckets",
)


def everything(connection: sa.Connection) -> list[tuple[object, ...]]:
    """Return all rows, as the owner of the tables sees them."""
    tables = ("objects", "buckets")
    return [tuple(row) for name in tables for row in connection.execute(sa.text(f"table storage.{name} order by id"))]


def test_the_documented_policy_lets_consumers_read_releases_and_nobody_write(supabase: sa.Connection) -> None:
    policy, query, *_ = blocks(CONSUMERS, "sql")
    assert seen_by(supabase, "anon") == set()
    supabase.execute(sa.text(policy))
    supabase.commit()
    before = everything(supabase)
    for role in ("anon", "authenticated"):
        assert seen_by(supabase, role) == {"two_tower/latest/manifest.json", "reranker/latest/manifest.json"}
        for statement in WRITES:
            supabase.execute(sa.text(f"set local role {role}"))
            if statement.startswith("insert"):
                with pytest.raises(sa.exc.ProgrammingError, match="row-level security"):
                    supabase.execute(sa.text(statement))
                supabase.rollback()
            else:
                assert supabase.execute(sa.text(statement)).rowcount == 0, statement
                supabase.commit()
            assert everything(supabase) == before, statement
    assert [row.cmd for row in supabase.execute(sa.text(query))] == ["SELECT"]


def test_the_documented_policy_can_be_narrowed_to_one_model(supabase: sa.Connection) -> None:
    policy = blocks(CONSUMERS, "sql")[0]
    narrower = re.search(r"add `(and \(storage[^`]+)`", CONSUMERS)
    assert narrower is not None
    supabase.execute(sa.text(policy.rstrip().removesuffix(");") + f" {narrower[1]});"))
    supabase.commit()
    assert seen_by(supabase, "anon") == {"two_tower/latest/manifest.json"}


def test_the_documented_statement_makes_the_bucket_public(supabase: sa.Connection) -> None:
    supabase.execute(sa.text(blocks(CONSUMERS, "sql")[2]))
    public = supabase.execute(sa.text("select id from storage.buckets where public")).scalars().all()
    assert public == [BUCKET]
