"""Measure `log_artifacts` of 200 files of 20 kB against MLflow's own local store through its HTTP proxy.

    python -m benchmarks.artifacts [--rounds 7] [--files 200] [--limit 1.0] [--proxied]

Two ways: straight to `supabase://`, several files at a time, and through an MLflow server's proxy with `supabase://`
behind it. MLflow's client gives a proxy one file after the other, so the second way adds a request to
Supabase for each file: it cannot be faster than the local one. The limit is for the direct way, with `--proxied`
for the other one. All take turns, so that other load on the machine affects them alike. SUPABASE_URL and
SUPABASE_SECRET_KEY name another server than the simulator. Exit code 1: the ratio of the medians is above the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from tests.support.processes import mlflow_command, serving, surroundings

BUCKET = "benchmark-artifacts"
FILE_BYTES = 20_000
WARM_UP = 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.artifacts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds of each (default: 7)")
    parser.add_argument("--files", type=int, default=200, help="files of 20 kB in a round (default: 200)")
    parser.add_argument("--limit", type=float, default=1.0, help="highest ratio that passes (default: 1.0)")
    parser.add_argument("--proxied", action="store_true", help="hold the proxied way against the limit")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = _files(directory / "source", options.files)
        project = stack.enter_context(_project())
        os.environ.update(project)
        local = stack.enter_context(_server(directory / "local", str(directory / "kept"), {}))
        ours = stack.enter_context(_server(directory / "ours", f"supabase://{BUCKET}/proxied", project))
        repositories = {
            "local store, proxied": get_artifact_repository("mlflow-artifacts:/bench", tracking_uri=local),
            "supabase://, proxied": get_artifact_repository("mlflow-artifacts:/bench", tracking_uri=ours),
            "supabase://, direct": get_artifact_repository(f"supabase://{BUCKET}/direct"),
        }
        seconds = _medians(list(repositories.values()), source, rounds=options.rounds)
    for name, median in zip(repositories, seconds, strict=True):
        print(f"{name}: {median:.2f} s, {median / options.files * 1000:.1f} ms a file, {median / seconds[0]:.2f} x")
    ratio = seconds[1 if options.proxied else 2] / seconds[0]
    print(f"log_artifacts of {options.files} files of 20 kB: ratio {ratio:.2f} (limit {options.limit:.2f})")
    return int(ratio > options.limit)


def _medians(repositories: Sequence[ArtifactRepository], source: Path, *, rounds: int) -> list[float]:
    """Return the median time of a round, by repository; the order changes from round to round."""
    times: list[list[float]] = [[] for _ in repositories]
    for number in range(WARM_UP + rounds):
        turns = list(enumerate(repositories))
        for index, repository in turns if number % 2 else reversed(turns):
            start = time.perf_counter()
            repository.log_artifacts(str(source), f"round{number}")
            times[index].append(time.perf_counter() - start)
    return [statistics.median(measured[WARM_UP:]) for measured in times]


def _files(directory: Path, count: int) -> Path:
    directory.mkdir()
    for number in range(count):
        (directory / f"{number:04}.bin").write_bytes(os.urandom(FILE_BYTES))
    return directory


@contextmanager
def _project() -> Iterator[Mapping[str, str]]:
    """Return the variables that name the project to measure against."""
    allowed = {"SUPABASE_BRIDGE_ARTIFACT_BUCKETS": BUCKET}
    if os.environ.get("SUPABASE_URL"):
        yield {**allowed, **{name: os.environ[name] for name in ("SUPABASE_URL", "SUPABASE_SECRET_KEY")}}
        return
    command = [sys.executable, "-m", "tests.support.simulators.storage"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        try:
            yield {**allowed, "SUPABASE_URL": said["url"], "SUPABASE_SECRET_KEY": said["service_key"]}
        finally:
            process.terminate()


@contextmanager
def _server(directory: Path, destination: str, variables: Mapping[str, str]) -> Iterator[str]:
    """Run an MLflow server that keeps artifacts at `destination`; yield its URL."""
    directory.mkdir()
    command = mlflow_command("server", "--artifacts-only", "--artifacts-destination", destination, "--workers", "1")
    with serving(command, cwd=directory, env=surroundings(directory, **variables)) as url:
        yield url


if __name__ == "__main__":
    raise SystemExit(main())
