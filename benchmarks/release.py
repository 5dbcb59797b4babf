"""A production release of random bytes, and the mirror's upload of it."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from benchmarks.target import random_file
from supabase_bridge.core.documents import ModelMeta
from supabase_bridge.core.layout import CLAIMS_PREFIX, META_NAME, ReleasePaths, RunId
from supabase_bridge.mirror.source_files import ModelFile, SourceFolder
from supabase_bridge.mirror.upload import put_all, record_of
from supabase_bridge.releases.claim import ReleaseClaim, read_claim
from supabase_bridge.storage.supabase.store import SupabaseStore

SIZES = {"m.onnx": 54_000_000, "m.pt": 54_000_000, "metrics.json": 900, "summary.md": 2_000, "model_meta.json": 1_500}
MODEL_FILES = ("m.onnx", "m.pt")
WARM_UP = 1


def release_files(directory: Path) -> Mapping[str, Path]:
    """Make the files of the release in a new directory; return them by name."""
    directory.mkdir()
    return {name: random_file(directory / name, size) for name, size in SIZES.items()}


def placed(store: SupabaseStore, root: Path, scratch: Path) -> Callable[[str], None]:
    """Hashes and uploads the release below a prefix as the mirror does, without its checks."""
    scratch.mkdir()
    source = SourceFolder(str(root), get_artifact_repository(str(root)), root)

    def run(prefix: str) -> None:
        model_key, run_id = prefix.strip("/").split("/")
        paths = ReleasePaths(model_key=model_key, run_id=RunId.parse(run_id))
        claimed = read_claim(store, paths)
        with ThreadPoolExecutor(len(MODEL_FILES)) as pool:
            taken = pool.map(lambda name: source.snapshot(name, scratch), MODEL_FILES)
            files: dict[str, ModelFile | bytes] = dict(zip(MODEL_FILES, taken, strict=True))
        for name in SIZES:
            if name not in {*MODEL_FILES, META_NAME}:
                files[name] = source.fetch(name, scratch).read_bytes()
        records = {name: record_of(file) for name, file in files.items()}
        draft = ModelMeta(model_name=model_key, run_id=run_id, files=records)
        claim = ReleaseClaim(store, paths, draft, attempt=uuid.uuid4().hex)
        with ThreadPoolExecutor(1) as pool:
            prepared = pool.submit(claim.prepare_verdict, draft)
            claim.take(lambda _: False, claimed=claimed)
            put_all(store, paths.prefix, files)
            prepared.result()
        claim.accept(draft)
        claim.commit()
        claim.forget()

    return run


def medians_ms(runs: Sequence[Callable[[str], None]], store: SupabaseStore, *, rounds: int) -> list[float]:
    """Return the median time of each kind; the order within a round changes from round to round."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(WARM_UP + rounds):
        turns = list(enumerate(runs))
        for index, run in turns if number % 2 else reversed(turns):
            prefix = f"{uuid.uuid4().hex}/20251031T093831Z/"
            start = time.perf_counter()
            run(prefix)
            times[index].append((time.perf_counter() - start) * 1000)
            store.delete([prefix + name for name in SIZES] + [f"{CLAIMS_PREFIX}{prefix}claim.json"])
    return [statistics.median(measured[WARM_UP:]) for measured in times]
