"""Sets of embeddings in PostgreSQL: complete or not there, found by run_id, dropped without an empty answer."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psycopg
import pytest

from supabase_bridge.core.errors import SettingsError
from supabase_bridge.embeddings.errors import (
    EmbeddingsDatabaseError,
    EmbeddingSetConflictError,
    EmbeddingSetNotReadyError,
    EmbeddingsRefusedError,
    EmbeddingsUnavailableError,
)
from supabase_bridge.embeddings.rows import Embeddings
from supabase_bridge.embeddings.sets import EmbeddingSets
from supabase_bridge.settings.model import Settings
from tests.support.embedding_sets import MODEL, WIDTH, Connect, release, rows


def tables(embeddings_url: str) -> list[str]:
    with psycopg.connect(embeddings_url) as connection:
        query = "select relname from pg_class c join pg_namespace n on n.oid = relnamespace where nspname = %s "
        query += "and relkind in ('r', 'p') order by 1"
        return [name for (name,) in connection.execute(query.encode(), ("supabase_bridge",))]


def test_a_loaded_set_answers_as_an_exact_search_does(sets: EmbeddingSets) -> None:
    items, users = rows(300), rows(3, seed=1, prefix="user")
    found = sets.load(release(1), items=items, users=users)
    assert (found.state, found.item_count, found.user_count) == ("ready", 300, 3)
    query = users.matrix[0]
    scores = items.matrix.astype(np.float16).astype(np.float64) @ query.astype(np.float16).astype(np.float64)
    best = np.argsort(-scores)[:10]
    matches = sets.match_items(MODEL, found.run_id, query.tolist(), 10)
    assert [match.id for match in matches] == [f"item-{number}" for number in best]
    assert [match.score for match in matches] == pytest.approx(scores[best], abs=1e-3)


def test_a_query_may_ask_for_more_items_than_hnsw_visits_by_default(sets: EmbeddingSets, embeddings_url: str) -> None:
    found = sets.load(release(1), items=rows(500))
    with psycopg.connect(embeddings_url) as connection:
        # The planner prefers to scan a small table.
        connection.execute("set enable_seqscan = off")
        query = "select count(*) from supabase_bridge.match_items(%s, %s, %s, 200)"
        vector = str(rows(1, seed=9).matrix[0].tolist())
        assert connection.execute(query, (MODEL, found.run_id, vector)).fetchone() == (200,)


def test_the_embedding_of_a_user_is_found_by_id(sets: EmbeddingSets, embeddings_url: str) -> None:
    users = rows(3, prefix="user")
    found = sets.load(release(1), items=rows(3), users=users)
    with psycopg.connect(embeddings_url) as connection:
        query = "select supabase_bridge.user_embedding(%s, %s, %s)::text"
        row = connection.execute(query, (MODEL, found.run_id, "user-2")).fetchone()
        assert row is not None
        assert np.array(row[0].strip("[]").split(","), dtype=float) == pytest.approx(users.matrix[2], abs=1e-3)
        assert connection.execute(query, (MODEL, found.run_id, "user-9")).fetchone() == (None,)


def test_each_release_answers_with_its_own_items(sets: EmbeddingSets) -> None:
    for number in (1, 2):
        sets.load(release(number), items=rows(20, seed=number, prefix=f"r{number}"))
    query = rows(1, seed=5).matrix[0].tolist()
    for number in (1, 2):
        matches = sets.match_items(MODEL, release(number).run_id, query)
        assert {match.id.partition("-")[0] for match in matches} == {f"r{number}"}
        assert len(matches) == 20


@pytest.mark.parametrize("state", ["never loaded", "loading", "dropping", "dropped"])
def test_a_query_about_a_set_that_is_not_ready_is_an_error(
    sets: EmbeddingSets, embeddings_url: str, state: str
) -> None:
    if state != "never loaded":
        sets.load(release(1), items=rows(5))
        if state == "dropped":
            assert sets.drop(MODEL, release(1).run_id)
        else:
            with psycopg.connect(embeddings_url) as connection:
                connection.execute("update supabase_bridge.embedding_sets set state = %s", (state,))
    with pytest.raises(EmbeddingSetNotReadyError, match="has no complete set of embeddings"):
        sets.match_items(MODEL, release(1).run_id, [1.0] + [0.0] * (WIDTH - 1))
    with (
        psycopg.connect(embeddings_url) as connection,
        pytest.raises(psycopg.DatabaseError, match=r"the embeddings of two_tower/.* are not ready") as raised,
    ):
        connection.execute("select supabase_bridge.user_embedding(%s, %s, 'x')", (MODEL, release(1).run_id))
    assert raised.value.sqlstate == "PT404"


def test_a_set_is_loaded_once(sets: EmbeddingSets) -> None:
    first = sets.load(release(1), items=rows(5))
    assert sets.load(release(1), items=rows(5)) == first


def test_a_complete_set_of_another_onnx_file_stays(sets: EmbeddingSets) -> None:
    first = sets.load(release(1), items=rows(5))
    with pytest.raises(EmbeddingSetConflictError, match="of another ONNX file"):
        sets.load(release(1, onnx=b"other"), items=rows(5))
    with pytest.raises(EmbeddingSetConflictError, match="it has 5 items and 0 users, not 6 and 0"):
        sets.load(release(1), items=rows(6))
    assert sets.list() == [first]


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        (rows(5, width=WIDTH + 1), r"expected rows of 8 numbers, found an array of \(5, 9\)"),
        (replace(rows(5), matrix=rows(5).matrix * 2), "has length 2, not 1"),
        (replace(rows(5), matrix=rows(5).matrix * np.inf), "has length inf, not 1"),
        (replace(rows(5), ids=["a"] * 5), "an id is there twice"),
        (replace(rows(5), ids=["a", "b"]), "2 ids for 5 rows"),
        (replace(rows(2), ids=["a", "\0"]), "is no id"),
        (Embeddings.none(), "there are no items"),
    ],
)
def test_malformed_embeddings_are_refused(sets: EmbeddingSets, items: Embeddings, reason: str) -> None:
    with pytest.raises(EmbeddingsRefusedError, match=reason):
        sets.load(release(1), items=items)
    assert sets.list() == []


def test_a_dropped_set_leaves_nothing_and_can_be_loaded_again(sets: EmbeddingSets, embeddings_url: str) -> None:
    before = tables(embeddings_url)
    sets.load(release(1), items=rows(5), users=rows(5, prefix="user"))
    assert len(tables(embeddings_url)) == len(before) + 2
    assert sets.drop(MODEL, release(1).run_id)
    assert not sets.drop(MODEL, release(1).run_id)
    assert (tables(embeddings_url), sets.list()) == (before, [])
    assert sets.load(release(1), items=rows(5)).ready


def test_a_set_is_loaded_while_readers_use_the_tables_of_its_model(sets: EmbeddingSets, embeddings_url: str) -> None:
    sets.load(release(1), items=rows(5))
    with psycopg.connect(embeddings_url) as reader:
        reader.execute("select * from supabase_bridge.two_tower_items")
        assert sets.load(release(2), items=rows(5)).ready


def test_two_processes_load_a_release_once(sets: EmbeddingSets, connect_sets: Connect) -> None:
    found: list[object] = []

    def load(own: EmbeddingSets) -> None:
        found.append(own.load(release(1), items=rows(200)))

    loaders = [threading.Thread(target=load, args=(connect_sets(),)) for _ in range(2)]
    for loader in loaders:
        loader.start()
    for loader in loaders:
        loader.join()
    assert found == [sets.find(MODEL, release(1).run_id)] * 2


def test_init_may_run_again_and_refuses_another_width(sets: EmbeddingSets) -> None:
    sets.init(MODEL, dimension=WIDTH)
    with pytest.raises(EmbeddingsDatabaseError, match="has tables of two_tower with 8 dimensions, not 9"):
        sets.init(MODEL, dimension=WIDTH + 1)
    with pytest.raises(SettingsError, match="4001 is not from 1 to 4000"):
        sets.init("other", dimension=4001)


@pytest.mark.parametrize("model", ["Ranker v2", "set_x_items", "x" * 120, "embedding_sets"])
def test_a_model_may_have_any_name(sets: EmbeddingSets, model: str) -> None:
    sets.init(model, dimension=WIDTH)
    record = next(iter(release(1).files.values()))
    named = replace(release(1), model=model, files={f"{model}_{release(1).run_id}.onnx": record})
    assert sets.load(named, items=rows(5)).ready
    assert len(sets.match_items(model, named.run_id, rows(1).matrix[0].tolist(), 3)) == 3


def test_what_init_did_not_make_is_named(connect_sets: Connect) -> None:
    sets = connect_sets()
    with pytest.raises(EmbeddingsDatabaseError, match="supabase-bridge embeddings init two_tower"):
        sets.load(release(1), items=rows(5))
    with pytest.raises(EmbeddingsDatabaseError, match="supabase-bridge embeddings init two_tower"):
        sets.match_items(MODEL, release(1).run_id, [1.0] * WIDTH)
    assert sets.list() == []


def test_only_the_functions_that_an_operator_grants_can_be_called(sets: EmbeddingSets, embeddings_url: str) -> None:
    sets.load(release(1), items=rows(5), users=rows(1, prefix="user"))
    call = (
        "select count(*) from supabase_bridge.match_items(%s, %s, %s, 3)",
        (MODEL, release(1).run_id, str([1.0] + [0.0] * (WIDTH - 1))),
    )
    with psycopg.connect(embeddings_url, autocommit=True) as connection:
        connection.execute("drop role if exists reader")
        connection.execute("create role reader")
        connection.execute("set role reader")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(*call)
        connection.execute("reset role")
        connection.execute("grant usage on schema supabase_bridge to reader")
        connection.execute("set role reader")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(*call)
        connection.execute("reset role")
        function = "supabase_bridge.match_items(text, text, halfvec, integer)"
        connection.execute(f"grant execute on function {function} to reader".encode())
        # A later mistake: whoever may select from the tables sees no row without a policy.
        connection.execute("grant select on all tables in schema supabase_bridge to reader")
        connection.execute("set role reader")
        assert connection.execute(*call).fetchone() == (3,)
        for table in tables(embeddings_url):
            assert connection.execute(f'select count(*) from supabase_bridge."{table}"'.encode()).fetchone() == (0,)
        connection.execute("reset role")
        connection.execute("drop owned by reader")
        connection.execute("drop role reader")


def test_the_search_parameter_of_a_session_stays(sets: EmbeddingSets, embeddings_url: str) -> None:
    sets.load(release(1), items=rows(5))
    with psycopg.connect(embeddings_url) as connection:
        connection.execute("set hnsw.ef_search = 77")
        query = str([1.0] + [0.0] * (WIDTH - 1))
        connection.execute(
            "select * from supabase_bridge.match_items(%s, %s, %s, 300)", (MODEL, release(1).run_id, query)
        )
        assert connection.execute("show hnsw.ef_search").fetchone() == ("77",)


def test_the_database_is_named_by_a_variable_only(tmp_path: Path) -> None:
    variable = "SUPABASE_BRIDGE_EMBEDDINGS_URL"
    for url, problem in (
        (None, "missing; expected postgresql://"),
        ("mysql://x", "expected postgresql://"),
        ("postgresql://u:hunter2@h:x/y", "expected postgresql://"),
        ("postgresql://u:hunter2@h:6543/y", "port 6543 is the pooler's transaction mode"),
    ):
        environ = {} if url is None else {variable: url}
        settings = Settings.load(home=tmp_path, environ=environ, reading=True)
        with pytest.raises(SettingsError, match=problem) as raised:
            EmbeddingSets.from_settings(settings)
        assert "hunter2" not in str(raised.value) + repr(settings)
    (tmp_path / "supabase-bridge.toml").write_text('embeddings_url = "postgresql://h/x"\n')
    with pytest.raises(SettingsError, match=f"a secret must not be in a file; set {variable}"):
        Settings.load(home=tmp_path, environ={}, reading=True)


def test_a_database_that_does_not_answer_is_an_outage(tmp_path: Path) -> None:
    url = "postgresql://u:hunter2@127.0.0.1:1/x"
    settings = Settings.load(home=tmp_path, environ={"SUPABASE_BRIDGE_EMBEDDINGS_URL": url}, reading=True)
    with pytest.raises(EmbeddingsUnavailableError) as raised:
        EmbeddingSets.from_settings(settings)
    assert raised.value.retryable
    assert "hunter2" not in str(raised.value)


def test_embeddings_are_read_from_npz_and_parquet_files(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    wanted = rows(4)
    np.savez(tmp_path / "items.npz", ids=np.array(wanted.ids), embeddings=wanted.matrix)
    np.savez(tmp_path / "numbers.npz", ids=np.arange(4), embeddings=wanted.matrix)
    table = pyarrow.table({"id": wanted.ids, "embedding": [row.tolist() for row in wanted.matrix]})
    parquet.write_table(table, tmp_path / "items.parquet")
    for name, ids in (("items.npz", wanted.ids), ("numbers.npz", list("0123")), ("items.parquet", wanted.ids)):
        read = Embeddings.read(tmp_path / name)
        assert read.ids == ids
        assert np.allclose(read.matrix, wanted.matrix)
    np.savez(tmp_path / "wrong.npz", embedding=wanted.matrix)
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    (tmp_path / "broken.parquet").write_bytes(b"no table")
    (tmp_path / "items.csv").write_bytes(b"id,embedding\n")
    for name in ("wrong.npz", "broken.npz", "broken.parquet", "items.csv"):
        with pytest.raises(EmbeddingsRefusedError, match="expected"):
            Embeddings.read(tmp_path / name)
