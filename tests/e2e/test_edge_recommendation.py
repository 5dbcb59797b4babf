"""The example `recommend.ts`: the tower of the manifest's release asks the items of the same release, in Deno."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psycopg
import pytest

from supabase_bridge.client.release import Release
from supabase_bridge.core.layout import ReleasePaths, RunId
from supabase_bridge.embeddings.sets import EmbeddingSets
from tests.support.consumers import BUCKET, FIRST, LATEST, MODEL, SECOND, Bucket, new_signer, record
from tests.support.edge_function import EdgeFunction, pem, serving
from tests.support.embedding_sets import WIDTH, rows
from tests.support.simulators.http_request import Request
from tests.support.simulators.http_response import Response
from tests.support.simulators.postgrest import Postgrest
from tests.support.simulators.storage import Outage, StorageSimulator
from tests.support.two_tower import Scripts, raw_data, user_tower

GRANTS = """
grant usage on schema supabase_bridge to service_role;
grant execute on function supabase_bridge.match_items(text, text, extensions.halfvec, integer) to service_role;
"""
WRONG_BODIES: list[object] = [
    None,
    [],
    {"k": 5},
    {"history": {}},
    {"history": [None]},
    {"history": [{"item": 5, "rating": 1, "tags": []}]},
    {"history": [{"item": "5", "rating": 6, "tags": []}]},
    {"history": [], "k": 0},
]
SEEDS = {FIRST: 1, SECOND: 2}


class Project:
    """A project with both services, and what the example's training knows of a user."""

    def __init__(self, simulator: StorageSimulator, url: str, features: Any, raw: Path) -> None:
        self.simulator, self.url = simulator, url
        self.signer = new_signer()
        self.bucket = Bucket.of_simulator(simulator, signer=self.signer)
        self.rest = Postgrest(url)
        simulator.serve_rest(self.rest.handle)
        self.connection = psycopg.connect(url, autocommit=True)
        self.sets = EmbeddingSets(self.connection)
        self.sets.init(MODEL, dimension=WIDTH)
        catalogue, ratings = features.read_catalogue(raw), features.read_ratings(raw)
        vocabularies = features.make_vocabularies(catalogue)
        features.write_features(raw / "features", vocabularies)
        self.files = {f"features/{path.name}": path.read_bytes() for path in (raw / "features").iterdir()}
        self.row = features.user_features([1], catalogue, ratings, vocabularies).toarray()
        tags = dict(zip(catalogue.item, catalogue.tags, strict=True))
        mine = ratings[ratings.user == 1]
        self.history = [
            {"item": str(item), "rating": int(rating), "tags": [*tags[item], "in no vocabulary"]}
            for item, rating in zip(mine["item"], mine.rating, strict=True)
        ]

    def load(self, run_id: str) -> None:
        """Load a release's items: those of the catalogue, and some of its own."""
        seed = SEEDS[run_id]
        items = rows(30, seed=seed)
        items = type(items)(ids=[*map(str, range(1, 11)), *(f"{run_id}-{n}" for n in range(20))], matrix=items.matrix)
        paths = ReleasePaths(model_key=MODEL, run_id=RunId.parse(run_id))
        files = {paths.onnx_name: record(b"whole")}
        self.sets.load(Release(model=MODEL, run_id=run_id, files=files, signed=False), items=items)

    def promote(self, run_id: str, *, towers: bool = True) -> None:
        """Make a release current, with its user tower and the example's features."""
        tower = {f"{MODEL}_{run_id}.user.onnx": user_tower(SEEDS[run_id])} if towers else {}
        self.bucket.promote(run_id, onnx=b"whole", more={**tower, **self.files})

    def expected(self, run_id: str, k: int) -> list[tuple[str, float]]:
        """What Python recommends: the example's features, the release's tower, the release's items."""
        session = onnxruntime.InferenceSession(user_tower(SEEDS[run_id]), providers=["CPUExecutionProvider"])
        (vector,) = session.run(["user_embedding"], {"user_features": self.row.astype(np.float32)})[0]
        seen = {one["item"] for one in self.history}
        found = self.sets.match_items(MODEL, run_id, vector.tolist(), k + len(seen))
        return [(one.id, one.score) for one in found if one.id not in seen][:k]

    def environment(self) -> dict[str, str]:
        return {
            "SUPABASE_URL": self.simulator.url,
            "SUPABASE_PUBLISHABLE_KEYS": json.dumps({"default": self.simulator.anon_key}),
            "SUPABASE_SECRET_KEYS": json.dumps({"default": self.simulator.service_key}),
            "MODEL_TRUSTED_KEY": pem(self.signer),
            "MODEL_MAX_AGE_SECONDS": str(10**10),
        }


@pytest.fixture
def project(embeddings_url: str, scripts: Scripts, tmp_path: Path) -> Iterator[Project]:
    with StorageSimulator() as simulator, ExitStack() as stack:
        made = Project(simulator, embeddings_url, scripts("features"), raw_data(tmp_path))
        stack.enter_context(made.sets)
        yield made


def recommend(project: Project, function: EdgeFunction, k: int = 5) -> tuple[str, list[tuple[str, Any]]]:
    status, said = function.ask({"history": project.history, "k": k})
    assert status == 200, said
    return said["run_id"], [(one["id"], pytest.approx(one["score"], abs=2e-3)) for one in said["items"]]


def refused(function: EdgeFunction, body: object) -> tuple[int, str, str]:
    status, said = function.ask(body)
    return status, said["error"], said["message"]


def test_the_function_recommends_with_the_tower_and_the_items_of_one_release_and_says_why_it_cannot(
    project: Project, tmp_path: Path
) -> None:
    body = {"history": project.history, "k": 5}
    project.promote(FIRST, towers=False)
    with serving("recommend.ts", tmp_path, project.environment()) as function:
        assert refused(function, body)[:2] == (503, "absent")  # no policy lets the publishable key read
        project.simulator.let_anon_read(BUCKET)
        message = f'{MODEL}/{FIRST} has no user tower; log the model with towers=["user"]'
        assert refused(function, body) == (503, "no-tower", message)
        project.promote(FIRST)
        status, code, message = refused(function, body)
        assert (status, code, "see docs/embeddings.md" in message) == (500, "not-granted", True)
        project.connection.execute(GRANTS)
        message = f"the items of {MODEL}/{FIRST} are not loaded; run `supabase-bridge embeddings load {MODEL}/{FIRST}`"
        assert refused(function, body) == (503, "not-ready", message)
        project.load(FIRST)
        assert recommend(project, function) == (FIRST, project.expected(FIRST, 5))
        assert function.ask({"history": []})[0] == 200
        for wrong in WRONG_BODIES:
            assert refused(function, wrong)[:2] == (400, "request")
        project.simulator.reset_calls()
        assert recommend(project, function, 3) == (FIRST, project.expected(FIRST, 3))
        assert [(call.method, call.status) for call in project.simulator.calls()] == [("GET", 304), ("POST", 200)]
        project.load(SECOND)
        expected = {run_id: project.expected(run_id, 5) for run_id in (FIRST, SECOND)}
        with ThreadPoolExecutor(4) as callers:
            asked = [callers.submit(recommend, project, function) for _ in range(40)]
            asked[10].result()
            project.promote(SECOND)
            answers = [one.result() for one in asked]
        assert [one for one in answers if one[1] != expected[one[0]]] == []
        assert {answers[0][0], recommend(project, function)[0]} == {FIRST, SECOND}
        project.simulator.suffer(Outage.DATABASE_TIMEOUT)
        assert recommend(project, function) == (SECOND, project.expected(SECOND, 5))


def test_a_switch_between_resolve_and_query_gives_the_old_release_whole_or_where_its_items_are_gone_the_new_one(
    project: Project, tmp_path: Path
) -> None:
    for run_id in (FIRST, SECOND):
        project.load(run_id)
    project.connection.execute(GRANTS)
    project.promote(FIRST)
    project.simulator.let_anon_read(BUCKET)
    manifest = project.simulator.object_bytes(BUCKET, LATEST.manifest)

    old, new = project.expected(FIRST, 5), project.expected(SECOND, 5)
    for dropped, wanted in ((False, (FIRST, old)), (True, (SECOND, new))):
        project.simulator.put_object(BUCKET, LATEST.manifest, manifest)
        (home := tmp_path / str(dropped)).mkdir()
        others: list[object] = []
        with serving("recommend.ts", home, project.environment()) as function:

            def switch_first(request: Request) -> Response:
                project.simulator.serve_rest(project.rest.handle)
                project.promote(SECOND)
                others.append(recommend(project, function))  # noqa: B023 - another request, which opens the new release
                if dropped:  # noqa: B023
                    project.sets.drop(MODEL, FIRST)
                return project.rest.handle(request)

            project.simulator.serve_rest(switch_first)
            assert recommend(project, function) == wanted
            assert others == [(SECOND, new)]
