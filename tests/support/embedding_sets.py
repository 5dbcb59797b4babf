"""An empty database with pgvector for each test, and embeddings to load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import psycopg
import pytest

from supabase_bridge.client.release import Release
from supabase_bridge.core.documents import FileRecord
from supabase_bridge.core.layout import ReleasePaths
from supabase_bridge.embeddings.rows import Embeddings
from supabase_bridge.embeddings.sets import EmbeddingSets
from tests.support.databases import DatabaseServer
from tests.support.small_releases import run_id

MODEL = "two_tower"
WIDTH = 8

Connect: TypeAlias = "Callable[[], EmbeddingSets]"


def rows(count: int, *, seed: int = 0, prefix: str = "item", width: int = WIDTH) -> Embeddings:
    """Random embeddings of length 1."""
    matrix = np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return Embeddings(ids=[f"{prefix}-{number}" for number in range(count)], matrix=matrix)


def release(number: int, *, onnx: bytes = b"onnx") -> Release:
    """A release with one file, its ONNX model."""
    paths = ReleasePaths(model_key=MODEL, run_id=run_id(number))
    files = MappingProxyType({paths.onnx_name: FileRecord.of(onnx)})
    return Release(model=MODEL, run_id=str(paths.run_id), files=files, signed=False)


@pytest.fixture
def embeddings_url(pgvector: DatabaseServer) -> str:
    """A database of this test, as psycopg names it."""
    return pgvector.create().replace("postgresql+psycopg://", "postgresql://")


@pytest.fixture
def connect_sets(embeddings_url: str) -> Iterator[Connect]:
    """Further connections to the test's database; they are closed at its end."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(EmbeddingSets(psycopg.connect(embeddings_url, autocommit=True)))


@pytest.fixture
def sets(connect_sets: Connect) -> EmbeddingSets:
    """The test's sets, with the tables of one model."""
    made = connect_sets()
    made.init(MODEL, dimension=WIDTH)
    return made
