"""A load that is killed at any step: readers see no part of the set, and the next load ends in the same state."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from supabase_bridge.embeddings.errors import EmbeddingSetNotReadyError
from supabase_bridge.embeddings.sets import EmbeddingSets
from tests.support.embedding_sets import MODEL, release, rows

QUERY = rows(1, seed=4).matrix[0].tolist()


@contextmanager
def loader(embeddings_url: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.embeddings.killed_loader", embeddings_url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


def ask(process: subprocess.Popen[str], step: int) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{step}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def state(embeddings_url: str) -> tuple[object, ...]:
    """The tables, their rows, indexes and partitions, and the record of the set without its time."""
    with psycopg.connect(embeddings_url) as connection:
        tables = connection.execute(
            "select relname, relkind, relispartition, relrowsecurity from pg_class c join pg_namespace n on "
            "n.oid = relnamespace where nspname = 'supabase_bridge' and relkind in ('r', 'p', 'i', 'I') order by 1"
        ).fetchall()
        counts = [
            connection.execute(f"select count(*) from supabase_bridge.two_tower_{kind}".encode()).fetchone()
            for kind in ("items", "users")
        ]
        record = connection.execute(
            "select model, run_id, onnx_sha256, state, item_count, user_count from supabase_bridge.embedding_sets"
        ).fetchall()
    return tables, counts, record


def check_steps(sets: EmbeddingSets, embeddings_url: str, first: int, stride: int) -> int:
    """Kill a load at each of some steps and load again; returns how many loads were killed."""
    items, users = rows(200), rows(20, prefix="user")
    sets.load(release(1), items=items, users=users)
    whole, answer = state(embeddings_url), sets.match_items(MODEL, release(1).run_id, QUERY, 5)
    killed, step = 0, first
    with loader(embeddings_url) as process:
        while sets.drop(MODEL, release(1).run_id) and ask(process, step) == "killed":
            found = sets.find(MODEL, release(1).run_id)
            if found is not None and found.ready:
                assert state(embeddings_url) == whole
            else:
                with pytest.raises(EmbeddingSetNotReadyError):
                    sets.match_items(MODEL, release(1).run_id, QUERY, 5)
            sets.load(release(1), items=items, users=users)
            assert state(embeddings_url) == whole
            assert sets.match_items(MODEL, release(1).run_id, QUERY, 5) == answer
            killed, step = killed + 1, step + stride
        assert state(embeddings_url) == whole
        assert process.stdin is not None
        process.stdin.close()
    return killed


@pytest.mark.exhaustive
def test_a_killed_load_leaves_nothing_that_the_next_one_does_not_mend(sets: EmbeddingSets, embeddings_url: str) -> None:
    assert check_steps(sets, embeddings_url, first=10, stride=14) >= 4


@pytest.mark.exhaustive
def test_a_load_may_be_killed_at_every_step(sets: EmbeddingSets, embeddings_url: str) -> None:
    assert check_steps(sets, embeddings_url, first=0, stride=1) >= 50


def test_a_killed_drop_is_finished_by_the_next_load(sets: EmbeddingSets, embeddings_url: str) -> None:
    sets.load(release(1), items=rows(5))
    whole = state(embeddings_url)
    with psycopg.connect(embeddings_url) as connection:
        connection.execute("update supabase_bridge.embedding_sets set state = 'dropping'")
    assert sets.load(release(1), items=rows(5)).ready
    assert state(embeddings_url) == whole
