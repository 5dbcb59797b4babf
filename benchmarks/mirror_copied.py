"""Measure a mirror within the project: a version of 54 + 54 MB against the server's own copies, run one by one.

    python -m benchmarks.mirror_copied [--rounds 5] [--size 54000000] [--limit 1.2]

The version's files were logged through `supabase://`, so they are in the same project as the releases, and their
digests are authenticated. The mirror is whole, from the registry to a verified release. The two ways take turns. Exit
code 1: the ratio of the medians is above the limit. SUPABASE_URL and SUPABASE_SECRET_KEY name another server than the
simulator.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from benchmarks.target import BUCKET, Target, target
from supabase_bridge.app.runtime import Stores
from supabase_bridge.mirror.checks.sandbox import Checks
from supabase_bridge.mirror.job import Mirror
from supabase_bridge.mirror.source_files import ModelFile
from supabase_bridge.mirror.sources import Sources
from supabase_bridge.registry.client import RegisteredVersion, Registry
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore
from tests.support.project_artifacts import large_onnx, torch_archive
from tests.support.scene import MLMODEL, MODEL, registry_client

ARTIFACTS = "benchmark-artifacts"
ROW_BYTES = 512 * 4
WARM_UP = 1
_CHECKS_MS: list[float] = []


class TimedChecks(Checks):
    """The worker's checks; it records their time."""

    def state_dict(self, file: ModelFile) -> None:
        start = time.perf_counter()
        super().state_dict(file)
        _CHECKS_MS.append((time.perf_counter() - start) * 1000)

    def onnx(self, *arguments: Any, **more: Any) -> tuple[str, ...]:
        start = time.perf_counter()
        notes = super().onnx(*arguments, **more)
        # The state_dict of the same version has been checked already.
        _CHECKS_MS[-1] += (time.perf_counter() - start) * 1000
        return notes

    def median_ms(self) -> float:
        return statistics.median(_CHECKS_MS)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mirror_copied", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="mirrors of each kind (default: 5)")
    parser.add_argument("--size", type=int, default=54_000_000, help="bytes of each file (default: 54000000)")
    parser.add_argument("--limit", type=float, default=1.2, help="highest ratio that passes (default: 1.2)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory, target() as place:
        # MLflow's artifact repositories read the environment.
        os.environ.update(SUPABASE_URL=place.url, SUPABASE_SECRET_KEY=place.key.get_secret_value())
        os.environ.update(SUPABASE_BRIDGE_HOME=directory, SUPABASE_BRIDGE_ARTIFACT_BUCKETS=ARTIFACTS)
        os.environ.setdefault("SUPABASE_BRIDGE_DIGEST_KEY", uuid.uuid4().hex)
        settings = Settings.load(bucket=BUCKET)
        with closing(Stores(settings)) as stores:
            registry = Registry(tracking_uri=settings.database_url, registry_uri=settings.registry_uri)
            version = _log(registry, settings, Path(directory, "training"), options.size)
            checks = TimedChecks(**vars(Checks.of(settings)))
            sources, store = Sources(registry, settings, open_store=stores), stores(BUCKET)
            mirror = Mirror(registry, sources, store, baseline_channel="latest", checks=checks)
            artifacts = stores(ARTIFACTS)
            keys = [info.key for info in artifacts.list("") if info.key.endswith((".onnx", ".pt"))]
            with place.bare() as client:
                ways = [lambda key: mirror.run(version, model_key=key), lambda key: _copy(client, place, keys, key)]
                ours_ms, server_ms = _medians_ms(ways, store, rounds=options.rounds)
            artifacts.delete([info.key for info in artifacts.list("")])
    ratio = ours_ms / server_ms
    size = f"{options.size / 1e6:.0f}"
    print(
        f"mirror of {size} + {size} MB in {place}: {ours_ms:.0f} ms, the server's own copies one by one "
        f"{server_ms:.0f} ms, ratio {ratio:.2f} (limit {options.limit:.2f}); checks {checks.median_ms():.0f} ms"
    )
    return int(ratio > options.limit)


def _copy(client: httpx.Client, place: Target, keys: Sequence[str], prefix: str) -> None:
    for number, key in enumerate(keys):
        body = {
            "bucketId": ARTIFACTS,
            "sourceKey": key,
            "destinationBucket": BUCKET,
            "destinationKey": f"{prefix}/{number}",
        }
        client.post(f"{place.url}/storage/v1/object/copy", json=body).raise_for_status()


def _log(registry: Registry, settings: Settings, directory: Path, size_bytes: int) -> RegisteredVersion:
    """Log a training to the project and register it."""
    client = registry_client(settings)
    experiment = client.create_experiment("trainings", artifact_location=f"supabase://{ARTIFACTS}/{uuid.uuid4().hex}")
    run = client.create_run(experiment)
    (directory / "model").mkdir(parents=True)
    (directory / "model" / "MLmodel").write_bytes(MLMODEL)
    (directory / "model" / "model.onnx").write_bytes(large_onnx(1, rows=size_bytes // ROW_BYTES))
    (directory / "two_tower_latest.pt").write_bytes(torch_archive(os.urandom(size_bytes)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client.log_artifacts(run.info.run_id, str(directory))
    client.set_terminated(run.info.run_id)
    client.create_registered_model(MODEL)
    client.create_model_version(MODEL, f"{run.info.artifact_uri}/model", run.info.run_id)
    return registry.version(MODEL, 1)


def _medians_ms(ways: Sequence[Callable[[str], object]], store: ObjectStore, *, rounds: int) -> list[float]:
    """Return the median time of each kind; the order within a round changes from round to round."""
    times: list[list[float]] = [[] for _ in ways]
    for number in range(WARM_UP + rounds):
        turns = list(enumerate(ways))
        for index, way in turns if number % 2 else reversed(turns):
            key = f"benchmark-{uuid.uuid4().hex}"
            start = time.perf_counter()
            way(key)
            times[index].append((time.perf_counter() - start) * 1000)
            store.delete([info.key for info in store.list(f"{key}/")])
    return [statistics.median(measured[WARM_UP:]) for measured in times]


if __name__ == "__main__":
    # Otherwise each process of the checks imports this file and MLflow, which the bridge's command avoids.
    __spec__ = __file__ = None  # type: ignore[assignment]  # multiprocessing reads both
    raise SystemExit(main())
