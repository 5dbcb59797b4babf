"""An API that recommends with the tower and the items of one release, and changes the release while it answers.

    python examples/two_tower/api.py --port 8000
    curl 'http://127.0.0.1:8000/recommend/5?k=10'

A thread polls the manifest. It fetches, verifies and opens a new release while the old one answers. Then new requests
use the new one; a request that runs ends with the release that it began with.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import onnxruntime
import psycopg
import uvicorn
from fastapi import FastAPI, HTTPException, Query
from fastapi.requests import Request
from fastapi.responses import JSONResponse
from features import read_catalogue, read_ratings, read_vocabularies, user_features
from psycopg_pool import ConnectionPool
from scipy import sparse
from upsert_two_tower import database_url

from supabase_bridge import Resolver
from supabase_bridge.client.release import PulledRelease, Release
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.embeddings.errors import EmbeddingSetNotReadyError
from supabase_bridge.embeddings.sets import EmbeddingSets


@dataclass(frozen=True)
class Opened:
    """A release with its user tower in memory, and the vocabularies of the same release."""

    release: Release
    tower: onnxruntime.InferenceSession
    vocabularies: dict[str, dict[str, int]]

    @classmethod
    def of(cls, pulled: PulledRelease) -> Opened:
        path = pulled.files[str(pulled.release.user_onnx_name)]
        tower = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return cls(pulled.release, tower, read_vocabularies(pulled.directory / "features"))

    def embed(self, row: sparse.csr_matrix) -> list[float]:
        ((vector,),) = self.tower.run(["user_embedding"], {"user_features": row.toarray()})
        return vector.tolist()


def create(ml: Path, *, interval: timedelta = timedelta(seconds=30)) -> FastAPI:
    """Return the application; `ml` has the data, and the database if the environment names none."""
    catalogue, ratings = read_catalogue(ml / "data" / "raw"), read_ratings(ml / "data" / "raw")
    titles = dict(zip(catalogue.item.astype(str), catalogue.title))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        def swap(pulled: PulledRelease) -> None:
            app.state.opened = Opened.of(pulled)

        checked = {"kwargs": {"autocommit": True}, "check": ConnectionPool.check_connection, "timeout": 5}
        app.state.opened = None
        with (
            ConnectionPool(database_url(ml), open=True, **checked) as app.state.pool,
            Resolver.from_env() as resolver,
            resolver.watch("two_tower", swap, interval=interval, pull=True),
        ):
            yield

    app = FastAPI(title="two_tower", lifespan=lifespan)

    @app.exception_handler(BridgeError)
    @app.exception_handler(psycopg.OperationalError)
    def unavailable(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=503)

    def opened() -> Opened:
        if app.state.opened is None:
            raise HTTPException(503, "no release of two_tower is open yet")
        return app.state.opened

    @app.get("/health")
    def health() -> dict[str, object]:
        return {"run_id": opened().release.run_id}

    @app.get("/recommend/{user}")
    def recommend(user: int, k: int = Query(10, ge=1, le=100)) -> dict[str, object]:
        used = opened()  # for the whole request: the tower and the run_id are of one release
        rows = user_features([user], catalogue, ratings, used.vocabularies)
        seen = {str(item) for item in ratings[ratings.user == user].item}
        try:
            with app.state.pool.connection() as connection:
                vector, run_id = used.embed(rows), used.release.run_id
                found = EmbeddingSets(connection).match_items("two_tower", run_id, vector, k=k + len(seen))
        except EmbeddingSetNotReadyError:
            if opened() is used:
                raise
            return recommend(user, k)  # the items were dropped after a switch
        items = [{"id": one.id, "title": titles.get(one.id), "score": one.score} for one in found if one.id not in seen]
        return {"run_id": run_id, "items": items[:k]}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ml", type=Path, default=Path("ml"))
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    # Uvicorn sends itself the signal again; an exit, unlike a death, also stops the database of `database_url`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(create(given.ml), port=given.port)


if __name__ == "__main__":
    main()
