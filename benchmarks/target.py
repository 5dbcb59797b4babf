"""The storage that a benchmark measures: the project of SUPABASE_URL, or the simulator in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
from pydantic import SecretStr

from supabase_bridge.settings.model import RESUMABLE_THRESHOLD_BYTES
from supabase_bridge.storage.supabase.store import SupabaseStore

BUCKET = "benchmarks"
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A Supabase project, and whether it is the simulator."""

    url: str
    key: SecretStr
    simulated: bool

    def store(self, *, threshold_bytes: int = RESUMABLE_THRESHOLD_BYTES, uploads: Path | None = None) -> SupabaseStore:
        """Return our store of the project; its bucket exists."""
        store = SupabaseStore(
            url=self.url,
            key=self.key,
            bucket=BUCKET,
            timeout=timedelta(seconds=60),
            resumable_threshold_bytes=threshold_bytes,
            uploads=uploads,
        )
        store.ensure_bucket()
        return store

    def bare(self) -> httpx.Client:
        """Return a bare client with one connection, for paths below the bucket."""
        key = self.key.get_secret_value()
        return httpx.Client(
            base_url=f"{self.url}/storage/v1/object/{BUCKET}/",
            headers={"authorization": f"Bearer {key}", "apikey": key},
            timeout=60,
        )

    def __str__(self) -> str:
        return "the simulator" if self.simulated else self.url


@contextmanager
def target() -> Iterator[Target]:
    """Yield the project of the environment (SUPABASE_URL, SUPABASE_SECRET_KEY), or a simulator for this block.

    The simulator's moves, copies and uploads take what a real server's take.
    """
    if url := os.environ.get("SUPABASE_URL"):
        yield Target(url=url.rstrip("/"), key=SecretStr(os.environ["SUPABASE_SECRET_KEY"]), simulated=False)
        return
    with simulator("-m", "tests.support.simulators.storage", "--real-costs") as simulated:
        yield simulated


@contextmanager
def simulator(*command: str) -> Iterator[Target]:
    """Yield the simulator that a Python command starts; its first line has the URL, and it ends with its input."""
    with subprocess.Popen(
        [sys.executable, *command], cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        try:
            yield Target(url=told["url"], key=SecretStr(told["service_key"]), simulated=True)
        finally:
            process.stdin.close()
            process.wait(timeout=30)


def random_file(path: Path, size_bytes: int) -> Path:
    """Write a file that cannot be compressed."""
    with path.open("wb") as file:
        for start in range(0, size_bytes, 1024 * 1024):
            file.write(os.urandom(min(1024 * 1024, size_bytes - start)))
    return path
