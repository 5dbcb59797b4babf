"""The API of the two-tower example: releases change under requests, and no answer mixes two of them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
import uvicorn

from supabase_bridge.client.release import Release
from supabase_bridge.core.layout import ReleasePaths
from supabase_bridge.embeddings.rows import Embeddings
from supabase_bridge.embeddings.sets import EmbeddingSets
from tests.support.consumers import MODEL, Bucket, record
from tests.support.embedding_sets import rows
from tests.support.served import until
from tests.support.small_releases import run_id
from tests.support.two_tower import Scripts, raw_data, user_tower

LIMIT_SECONDS = 30
USERS = (1, 2, 99)


@dataclass
class Reader(threading.Thread):
    """Asks for one user's items again and again; notes what came of it."""

    user: int
    expected: dict[str, dict[int, Any]]
    stop: threading.Event
    url: str = ""
    seen: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    mixed: list[Any] = field(default_factory=list)

    __hash__ = threading.Thread.__hash__

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def wait_for_two_more(self) -> None:
        """Wait for two answers; the second one was asked for after this call."""
        count = len(self.seen)
        until(lambda: len(self.seen) > count + 1, "two answers", limit_seconds=LIMIT_SECONDS)

    def run(self) -> None:
        with httpx.Client(timeout=LIMIT_SECONDS) as client:
            while not self.stop.wait(0.01):
                try:
                    answer = client.get(f"{self.url}/recommend/{self.user}?k=3")
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                    continue
                if answer.status_code != 200:
                    self.failed.append(answer.text)
                    continue
                body = answer.json()
                self.seen.append(body["run_id"])
                found = [(one["id"], one["score"]) for one in body["items"]]
                if found != self.expected[body["run_id"]][self.user]:
                    self.mixed.append(body)


class Example:
    """The example's data, and releases that the API may be asked to serve."""

    def __init__(self, features: Any, directory: Path, sets: EmbeddingSets) -> None:
        self.sets = sets
        self.raw = raw_data(directory)
        self.bucket = Bucket.of_directory(directory / "home" / "supabase" / "models")
        catalogue, ratings = features.read_catalogue(self.raw), features.read_ratings(self.raw)
        vocabularies = features.make_vocabularies(catalogue)
        features.write_features(self.raw / "features", vocabularies)
        self.files = {f"features/{path.name}": path.read_bytes() for path in (self.raw / "features").iterdir()}
        self.rows = features.user_features(list(USERS), catalogue, ratings, vocabularies).toarray()
        self.rated = {user: {str(item) for item in ratings[ratings.user == user]["item"]} for user in USERS}
        self.expected: dict[str, dict[int, Any]] = {}

    def load(self, number: int) -> None:
        """Load the items of a release; all releases have the same items, with embeddings of their own."""
        paths = ReleasePaths(model_key=MODEL, run_id=run_id(number))
        files = MappingProxyType({paths.onnx_name: record(b"whole")})
        release = Release(model=MODEL, run_id=str(paths.run_id), files=files, signed=False)
        items = Embeddings(ids=[str(film) for film in range(1, 11)], matrix=rows(10, seed=number).matrix)
        self.sets.load(release, items=items)
        session = onnxruntime.InferenceSession(user_tower(number), providers=["CPUExecutionProvider"])
        (vectors,) = session.run(["user_embedding"], {"user_features": self.rows.astype(np.float32)})
        answers = {}
        for user, vector in zip(USERS, vectors, strict=True):
            matches = self.sets.match_items(MODEL, release.run_id, vector.tolist(), 10)
            best = [match for match in matches if match.id not in self.rated[user]][:3]
            answers[user] = [(match.id, pytest.approx(match.score, abs=1e-3)) for match in best]
        self.expected[release.run_id] = answers

    def promote(self, number: int) -> None:
        name = f"{MODEL}_{run_id(number)}.user.onnx"
        self.bucket.promote(str(run_id(number)), onnx=b"whole", more={name: user_tower(number), **self.files})


@pytest.fixture
def example(
    scripts: Scripts, sets: EmbeddingSets, embeddings_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Example:
    monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SUPABASE_BRIDGE_EMBEDDINGS_URL", embeddings_url)
    monkeypatch.setenv("SUPABASE_BRIDGE_CACHE", str(tmp_path / "cache"))
    return Example(scripts("features"), tmp_path, sets)


@contextmanager
def serving(application: Any) -> Iterator[str]:
    """Run an application on a free port; yield its URL."""
    server = uvicorn.Server(uvicorn.Config(application, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            until(lambda: server.started, "the API to start", limit_seconds=LIMIT_SECONDS)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(LIMIT_SECONDS)


def wait_until_served(url: str, number: int) -> None:
    wanted = {"run_id": str(run_id(number))}
    until(lambda: httpx.get(f"{url}/health").json() == wanted, str(wanted), limit_seconds=LIMIT_SECONDS)


@contextmanager
def all_requests_waiting(pool: Any) -> Iterator[None]:
    """Take all connections, so that a request of each reader stands between its tower and its query."""
    with ExitStack() as held:
        for _ in range(pool.max_size):
            held.enter_context(pool.connection())
        enough = len(USERS)
        until(lambda: pool.get_stats()["requests_waiting"] == enough, "requests", limit_seconds=LIMIT_SECONDS)
        yield


def test_before_the_first_release_the_api_says_that_there_is_none(
    example: Example, scripts: Scripts, tmp_path: Path
) -> None:
    assert example.expected == {}
    with serving(scripts("api").create(tmp_path / "ml")) as url:
        for path in ("health", "recommend/1"):
            answer = httpx.get(f"{url}/{path}")
            assert (answer.status_code, answer.json()["detail"]) == (503, "no release of two_tower is open yet")
        assert httpx.get(f"{url}/recommend/1?k=0").status_code == 422


@pytest.mark.exhaustive
@pytest.mark.parametrize("numbers", [[1, 2, 1], [1, 2, 3, 2, 4, 5, 4, 6, 7]], ids=len)
def test_releases_change_under_requests_and_no_answer_fails_or_mixes_two(
    example: Example, scripts: Scripts, tmp_path: Path, numbers: Sequence[int]
) -> None:
    stop = threading.Event()
    readers = [Reader(user, example.expected, stop) for user in USERS]
    example.load(numbers[0])
    example.promote(numbers[0])
    application = scripts("api").create(tmp_path / "ml", interval=timedelta(seconds=1))
    with serving(application) as url:
        wait_until_served(url, numbers[0])
        for reader in readers:
            reader.url = url
            reader.start()
        for place in range(1, len(numbers)):
            example.load(numbers[place])
            with all_requests_waiting(application.state.pool) if place % 2 == 0 else nullcontext():
                before = [len(reader.seen) for reader in readers]
                example.promote(numbers[place])
                wait_until_served(url, numbers[place])
            for reader, count in zip(readers, before, strict=True):
                reader.wait_for_two_more()
                assert reader.seen[-1] == str(run_id(numbers[place]))
                if place % 2 == 0:
                    assert reader.seen[count] == str(run_id(numbers[place - 1]))
            kept = {str(run_id(number)) for number in numbers[place - 1 :]}
            for found in example.sets.list(MODEL):
                if found.run_id not in kept:
                    example.sets.drop(MODEL, found.run_id)
        stop.set()
        for reader in readers:
            reader.join(LIMIT_SECONDS)
    assert [(reader.failed, reader.mixed) for reader in readers] == [([], [])] * 3
    assert all(set(reader.seen) == set(example.expected) for reader in readers)
