"""A production release of random bytes, and the mirror's way of placing it."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from benchmarks.target import random_file
from supabase_bridge.documents import FileRecord
from supabase_bridge.object_store import JSON_TYPE
from supabase_bridge.object_store.supabase import SupabaseStore
from supabase_bridge.placing import place_all, place_document, place_file
from supabase_bridge.source_folder import SourceFolder

SIZES = {"m.onnx": 54_000_000, "m.pt": 54_000_000, "metrics.json": 900, "summary.md": 2_000, "model_meta.json": 1_500}
MODEL_FILES = ("m.onnx", "m.pt")
WARM_UP = 1


def release_files(directory: Path) -> Mapping[str, Path]:
    """The release's files by name, made in a new directory."""
    directory.mkdir()
    return {name: random_file(directory / name, size) for name, size in SIZES.items()}


def placed(store: SupabaseStore, root: Path, scratch: Path) -> Callable[[str], None]:
    """Takes and places the release below a prefix as the mirror does."""
    scratch.mkdir()
    source = SourceFolder(str(root), get_artifact_repository(str(root)), root)

    def run(prefix: str) -> None:
        *payload, commit_record = SIZES

        def place(name: str) -> FileRecord:
            if name in MODEL_FILES:
                return place_file(store, prefix + name, taken[name], None)
            data = source.fetch(name, scratch).read_bytes()
            return place_document(store, prefix + name, data, content_type=JSON_TYPE, same=lambda _: False)

        with ThreadPoolExecutor(len(MODEL_FILES)) as pool:
            taken = dict(zip(MODEL_FILES, pool.map(lambda name: source.take(name, scratch), MODEL_FILES), strict=True))
        place_all({name: partial(place, name) for name in payload})
        place(commit_record)

    return run


def medians_ms(runs: Sequence[Callable[[str], None]], store: SupabaseStore, *, rounds: int) -> list[float]:
    """The median time of each kind; the order within a round changes from round to round."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(WARM_UP + rounds):
        turns = list(enumerate(runs))
        for index, run in turns if number % 2 else reversed(turns):
            prefix = f"{uuid.uuid4().hex}/"
            start = time.perf_counter()
            run(prefix)
            times[index].append((time.perf_counter() - start) * 1000)
            store.delete([prefix + name for name in SIZES])
    return [statistics.median(measured[WARM_UP:]) for measured in times]
