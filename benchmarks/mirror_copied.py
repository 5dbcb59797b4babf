"""What copying within the project saves: the mirror of a 54 + 54 MB version, against downloading and uploading it.

    python -m benchmarks.mirror_copied [--rounds 5] [--size 54000000] [--limit 5.0]

The version's files were logged through `supabase://`, so they lie in a bucket of artifacts of the project that the
releases go to. Both ways are the whole mirror, from the registry to a verified release; one of them is told nothing of
the bucket. They take turns. Exit code 1: the median of the copying one is less than the limit times faster.
SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY name another server than the simulator.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import uuid
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from benchmarks.target import BUCKET, target
from supabase_bridge.checks import Checks
from supabase_bridge.config import Settings
from supabase_bridge.documents import ModelMeta
from supabase_bridge.mirror import Mirror
from supabase_bridge.model_file import ModelFile
from supabase_bridge.object_store import ObjectStore
from supabase_bridge.registry import RegisteredVersion, Registry
from supabase_bridge.runtime import Stores
from supabase_bridge.source import Sources
from tests.project_artifacts import large_onnx, torch_archive
from tests.registry_fixtures import MLMODEL, MODEL, registry_client

ARTIFACTS = "benchmark-artifacts"
ROW_BYTES = 512 * 4
WARM_UP = 1
_CHECKS_MS: list[float] = []


class TimedChecks(Checks):
    """The worker's checks, with a note of how long they take."""

    def run(self, onnx: ModelFile, state_dict: ModelFile | None, meta: ModelMeta) -> None:
        start = time.perf_counter()
        super().run(onnx, state_dict, meta)
        _CHECKS_MS.append((time.perf_counter() - start) * 1000)

    def median_ms(self) -> float:
        return statistics.median(_CHECKS_MS)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mirror_copied", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="mirrors of each kind (default: 5)")
    parser.add_argument("--size", type=int, default=54_000_000, help="bytes of each file (default: 54000000)")
    parser.add_argument("--limit", type=float, default=5.0, help="lowest ratio that passes (default: 5)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory, target() as place:
        # MLflow's artifact repositories read the environment.
        os.environ.update(SUPABASE_URL=place.url, SUPABASE_SERVICE_ROLE_KEY=place.key.reveal())
        os.environ.update(SUPABASE_BRIDGE_HOME=directory, SUPABASE_BRIDGE_ARTIFACT_BUCKETS=ARTIFACTS)
        settings = Settings.load(bucket=BUCKET)
        with closing(Stores(settings)) as stores:
            registry = Registry(tracking_uri=settings.database_url, registry_uri=settings.registry_uri)
            version = _log(registry, settings, Path(directory, "training"), options.size)
            sources = {
                "copied": Sources(registry, settings, open_store=stores),
                "downloaded and uploaded": Sources(registry, settings),
            }
            checks = TimedChecks(**vars(Checks.of(settings)))
            mirrors = [
                Mirror(registry, source, stores(BUCKET), baseline_channel="latest", checks=checks)
                for source in sources.values()
            ]
            copied_ms, carried_ms = _medians_ms(mirrors, version, stores(BUCKET), rounds=options.rounds)
            stores(ARTIFACTS).delete([info.key for info in stores(ARTIFACTS).list("")])
    ratio = carried_ms / copied_ms
    print(
        f"mirror of {options.size / 1e6:.0f} + {options.size / 1e6:.0f} MB in {place}: copied {copied_ms:.0f} ms, "
        f"downloaded and uploaded {carried_ms:.0f} ms, {ratio:.1f} x faster (limit {options.limit:.1f}); "
        f"of either, the checks took {checks.median_ms():.0f} ms"
    )
    return int(ratio < options.limit)


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


def _medians_ms(
    mirrors: Sequence[Mirror], version: RegisteredVersion, store: ObjectStore, *, rounds: int
) -> list[float]:
    """The median time of each kind; the order within a round changes from round to round."""
    times: list[list[float]] = [[] for _ in mirrors]
    for number in range(WARM_UP + rounds):
        turns = list(enumerate(mirrors))
        for index, mirror in turns if number % 2 else reversed(turns):
            key = f"benchmark-{uuid.uuid4().hex}"
            start = time.perf_counter()
            mirror.run(version, model_key=key)
            times[index].append((time.perf_counter() - start) * 1000)
            store.delete([info.key for info in store.list(f"{key}/")])
    return [statistics.median(measured[WARM_UP:]) for measured in times]


if __name__ == "__main__":
    # Each process of the checks would import this file anew, and MLflow with it; the bridge's command spares them that.
    __spec__ = __file__ = None  # type: ignore[assignment]  # what multiprocessing looks for
    raise SystemExit(main())
