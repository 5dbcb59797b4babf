"""A file that is sent in chunks, and a store that sends it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from supabase_bridge.storage.base import PutOptions
from supabase_bridge.storage.supabase.store import SupabaseStore
from tests.support.simulators.storage import StorageSimulator
from tests.support.stores import supabase_store

KEY = "m/20251031T093831Z/m.onnx"
THRESHOLD = 1_000_000
DATA = bytes(range(251)) * 53_000  # 13 MB: two chunks and a bit
SHA256 = hashlib.sha256(DATA).hexdigest()
OPTIONS = PutOptions(sha256=SHA256)
TUS = "upload/resumable"


def resumable_store(
    simulator: StorageSimulator, uploads: Path | None = None, *, key: str | None = None, timeout: float = 10.0
) -> SupabaseStore:
    """Return the adapter that sends files over a megabyte in chunks; its pauses take no time."""
    return supabase_store(simulator, key=key, timeout=timeout, resumable_threshold_bytes=THRESHOLD, uploads=uploads)


def patches(simulator: StorageSimulator) -> int:
    """Count the chunks whose upload began."""
    return simulator.count("PATCH", TUS)
