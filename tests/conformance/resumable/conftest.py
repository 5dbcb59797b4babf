"""A large file, and a store that sends it in chunks and remembers how far it came."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from supabase_bridge.object_store.supabase import SupabaseStore
from tests.conformance.large_files import DATA, resumable_store
from tests.simulators.storage import StorageSimulator


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    return tmp_path / "home" / "uploads"


@pytest.fixture
def store(simulator: StorageSimulator, uploads: Path) -> Iterator[SupabaseStore]:
    opened = resumable_store(simulator, uploads)
    opened.ensure_bucket()
    simulator.reset_calls()
    yield opened
    opened.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.onnx"
    path.write_bytes(DATA)
    return path
