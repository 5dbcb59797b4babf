"""A large file, and a store that sends it in chunks and saves the state of its upload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from supabase_bridge.storage.supabase.store import SupabaseStore
from tests.storage.large_files import DATA, resumable_store
from tests.support.simulators.storage import StorageSimulator
from tests.support.stores import ready


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    return tmp_path / "home" / "uploads"


@pytest.fixture
def store(simulator: StorageSimulator, uploads: Path) -> Iterator[SupabaseStore]:
    with ready(resumable_store(simulator, uploads), simulator) as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.onnx"
    path.write_bytes(DATA)
    return path
