"""The functions as the official clients of PostgREST call them, with the rights that docs/embeddings.md grants."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgrest import APIError, SyncPostgrestClient

from supabase_bridge.embeddings.sets import EmbeddingSets
from tests.support.edge_function import run_snippet
from tests.support.embedding_sets import MODEL, WIDTH, Connect, release, rows
from tests.support.simulators.postgrest import Postgrest
from tests.support.simulators.storage import StorageSimulator

DOCUMENT = (Path(__file__).parents[2] / "docs/embeddings.md").read_text()
QUERY = rows(1, seed=7).matrix[0].tolist()


def documented(language: str, containing: str) -> str:
    """Return the block of docs/embeddings.md in this language with this text."""
    found: str
    (found,) = [one for one in re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL) if containing in one]
    return found


@pytest.fixture
def project(embeddings_url: str) -> Iterator[StorageSimulator]:
    """A project whose data API runs the functions of the test's database."""
    with StorageSimulator() as simulator:
        simulator.serve_rest(Postgrest(embeddings_url).handle)
        yield simulator


@pytest.fixture
def loaded(project: StorageSimulator, connect_sets: Connect) -> EmbeddingSets:
    """One set, in a database with the schemas and roles of the project."""
    assert project.url
    sets = connect_sets()
    sets.init(MODEL, dimension=WIDTH)
    sets.load(release(1), items=rows(30), users=rows(2, prefix="user", seed=1))
    return sets


def client(project: StorageSimulator, key: str) -> SyncPostgrestClient:
    headers = {"apikey": key, "Authorization": f"Bearer {key}"}
    return SyncPostgrestClient(f"{project.url}/rest/v1", schema="supabase_bridge", headers=headers)


def match(project: StorageSimulator, key: str, **other: Any) -> Any:
    given = {"model": MODEL, "run_id": release(1).run_id, "query": QUERY, "k": 5, **other}
    with client(project, key) as asking:
        return asking.rpc("match_items", given).execute().data


def grant(embeddings_url: str, statements: str) -> None:
    with psycopg.connect(embeddings_url) as connection:
        connection.execute(statements.encode())


def test_the_documented_grants_let_a_secret_key_ask_and_no_other_key(
    project: StorageSimulator, loaded: EmbeddingSets, embeddings_url: str
) -> None:
    with pytest.raises(APIError, match="permission denied for schema supabase_bridge"):
        match(project, project.service_key)
    grant(embeddings_url, documented("sql", "grant execute"))
    found = match(project, project.service_key)
    assert found == [
        {"id": one.id, "score": pytest.approx(one.score)}
        for one in loaded.match_items(MODEL, release(1).run_id, QUERY, 5)
    ]
    user = {"model": MODEL, "run_id": release(1).run_id, "id": "user-1"}
    with client(project, project.service_key) as asking:
        text = str(asking.rpc("user_embedding", user).execute().data)
    assert [float(one) for one in text.strip("[]").split(",")] == pytest.approx(
        rows(2, prefix="user", seed=1).matrix[1], abs=1e-3
    )
    with pytest.raises(APIError) as refused:
        match(project, project.anon_key)
    assert refused.value.code == "42501"
    assert [call.status for call in project.calls()] == [403, 200, 200, 401]


def test_anon_may_rank_items_where_an_operator_grants_it_and_still_sees_no_user_and_no_table(
    project: StorageSimulator, loaded: EmbeddingSets, embeddings_url: str
) -> None:
    assert loaded.list()
    statements = documented("sql", "grant execute").splitlines()
    widened = [re.sub(r"to service_role;.*", "to anon;", one) for one in statements if "user_embedding" not in one]
    grant(embeddings_url, "\n".join(widened))
    assert len(match(project, project.anon_key)) == 5
    with client(project, project.anon_key) as asking:
        for function in ("user_embedding", "ready_embedding_set"):
            given = {"model": MODEL, "run_id": release(1).run_id, "id": "user-1"}
            if function == "ready_embedding_set":
                del given["id"]
            with pytest.raises(APIError, match=f"permission denied for function {function}"):
                asking.rpc(function, given).execute()


def test_a_set_that_is_not_ready_and_a_schema_that_is_not_exposed_are_errors_of_their_own(
    project: StorageSimulator, loaded: EmbeddingSets, embeddings_url: str
) -> None:
    grant(embeddings_url, documented("sql", "grant execute"))
    loaded.drop(MODEL, release(1).run_id)
    with pytest.raises(APIError, match="are not ready") as raised:
        match(project, project.service_key)
    assert (raised.value.code, "Resolve the manifest again" in str(raised.value.hint)) == ("PT404", True)
    with pytest.raises(APIError, match="match_items needs a query, and k from 1 to 1000"):
        match(project, project.service_key, k=0)
    project.serve_rest(Postgrest(embeddings_url, schemas=("public",)).handle)
    with pytest.raises(APIError) as hidden:
        match(project, project.service_key)
    assert hidden.value.code == "PGRST106"
    assert [call.status for call in project.calls()] == [404, 400, 406]


def test_the_documented_lines_ask_with_supabases_own_javascript_client(
    project: StorageSimulator, loaded: EmbeddingSets, embeddings_url: str
) -> None:
    grant(embeddings_url, documented("sql", "grant execute"))
    manifest = {"current": {"run_id": release(1).run_id}}
    said = run_snippet(
        documented("js", "match_items"),
        "data",
        url=project.url,
        key=project.service_key,
        manifest=manifest,
        vector=QUERY,
    )
    expected = loaded.match_items(MODEL, release(1).run_id, QUERY, 20)
    assert [one["id"] for one in said] == [one.id for one in expected]
