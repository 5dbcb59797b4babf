"""A file large enough to be sent in chunks, and a store that does so."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path

from supabase_bridge.object_store import PutOptions
from supabase_bridge.object_store.supabase import SupabaseStore
from supabase_bridge.secret import Secret
from tests.conformance.conftest import BUCKET
from tests.simulators.storage import StorageSimulator

KEY = "m/20251031T093831Z/m.onnx"
THRESHOLD = 1_000_000
DATA = bytes(range(251)) * 53_000  # 13 MB: two chunks and a bit
SHA256 = hashlib.sha256(DATA).hexdigest()
OPTIONS = PutOptions(sha256=SHA256)
TUS = "upload/resumable"


def resumable_store(
    simulator: StorageSimulator, uploads: Path | None = None, *, key: str | None = None, timeout: float = 10.0
) -> SupabaseStore:
    """The adapter, sending in chunks whatever is above a megabyte; its pauses between tries take no time."""
    return SupabaseStore(
        url=simulator.url,
        key=Secret(key or simulator.service_key),
        bucket=BUCKET,
        timeout=timedelta(seconds=timeout),
        resumable_threshold_bytes=THRESHOLD,
        uploads=uploads,
        pause=lambda _seconds: None,
    )


def patches(simulator: StorageSimulator) -> int:
    """How many chunks were sent, or begun to be sent."""
    return simulator.count("PATCH", TUS)
