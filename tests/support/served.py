"""A real `supabase-bridge server` in front of a simulated Supabase project, with trainings logged to it."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from multiprocessing import get_context
from pathlib import Path

from supabase_bridge.core.documents import Manifest
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId
from tests.support.machine import free_port
from tests.support.simulators.storage import StorageSimulator

BUCKET = "models"
_START_SECONDS = 180.0
_STOP_SECONDS = 60.0
_LOOK_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running server.

    Attributes:
        url: MLflow's address.
        simulator: The Supabase project that it mirrors to.
        directory: For files of the trainings.
    """

    url: str
    simulator: StorageSimulator
    directory: Path

    def train(self, model: str, *, versions: int) -> list[ReleasePaths]:
        """Log trainings over HTTP that end a minute apart; return their complete releases by version."""
        first = datetime(2025, 10, 31, 9, 38, 31, tzinfo=timezone.utc)
        ends = [first + timedelta(minutes=number) for number in range(versions)]
        # A process of its own: MLflow's client keeps its settings in the process and its environment.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            done = pool.submit(_log_trainings, self.url, model, ends, self.directory)
            assert done.result(timeout=_START_SECONDS) == [str(number + 1) for number in range(versions)]
        releases = [ReleasePaths(model_key=model, run_id=RunId.at(end)) for end in ends]
        wanted = {release.meta for release in releases}
        until(lambda: wanted <= set(self.simulator.object_keys(BUCKET)), f"{model} to be mirrored", limit_seconds=60)
        return releases

    def latest(self, model: str) -> Manifest | None:
        """Return the manifest of a model; None: there is none yet."""
        try:
            key = ChannelPaths(model_key=model, channel="latest").manifest
            return Manifest.parse(self.simulator.object_bytes(BUCKET, key))
        except KeyError:
            return None


def until(reached: Callable[[], bool], what: str, *, limit_seconds: float) -> float:
    """Wait for a state; return the time at which it was seen, by the monotonic clock.

    Raises:
        AssertionError: the time is over.
    """
    deadline = time.monotonic() + limit_seconds
    pause = threading.Event()
    while not reached():
        assert time.monotonic() < deadline, f"waited {limit_seconds:.0f} seconds for {what}"
        pause.wait(_LOOK_SECONDS)
    return time.monotonic()


@contextmanager
def serve(
    home: Path, simulator: StorageSimulator, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """Run a server on a free port; make its home if it is missing.

    Args:
        options: Further options of `mlflow server`.
        environment: Further variables.
    """
    home.mkdir(parents=True, exist_ok=True)
    said = home / "server.log"
    port = free_port()
    script = Path(sysconfig.get_path("scripts")) / "supabase-bridge"
    command = [str(script), "server", "--home", str(home), "--port", str(port), *(["--", *options] if options else [])]
    # To a file, since nobody would read a pipe; cwd, since MLflow makes ./mlruns wherever it is.
    with said.open("wb") as output:
        environ = {**_environment(home, simulator), **(environment or {})}
        process = subprocess.Popen(
            command, cwd=home, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(process, url, said)
        yield Served(url=url, simulator=simulator, directory=home)
    finally:
        # The command stops what it started; to kill it would leave the server and the worker behind.
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        finally:
            process.kill()


def _environment(home: Path, simulator: StorageSimulator) -> dict[str, str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "SUPABASE_", "PYTEST_"))
    }
    return environment | {
        "HOME": str(home),
        "SUPABASE_URL": simulator.url,
        "SUPABASE_SECRET_KEY": simulator.service_key,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str, said: Path) -> None:
    def answers() -> bool:
        assert process.poll() is None, f"the server ended:\n{said.read_text()}"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return True
        except OSError:
            return False

    until(answers, "the server to answer", limit_seconds=_START_SECONDS)


def _log_trainings(url: str, model: str, ends: Sequence[datetime], directory: Path) -> list[str]:
    """Log and register one small model for each end of a training; return the numbers of the versions."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ["MLFLOW_TRACKING_URI"] = url
    # MLflow takes seconds to import, and here it is to find the variable.
    import numpy as np

    from supabase_bridge.demo.model import Hyperparameters, evaluate, generate_interactions, train
    from supabase_bridge.demo.training import log_training

    interactions = generate_interactions(
        np.random.default_rng(1), users=20, items=40, tag_vocab_size=9, performer_vocab_size=4
    )
    hyperparameters = Hyperparameters(
        embedding_dim=4, hidden_dim=6, epochs=1, learning_rate=0.01, batch_size=16, use_price_feature=False, seed=7
    )
    trained = train(interactions, hyperparameters)
    return [
        log_training(
            trained,
            evaluate(trained, interactions),
            hyperparameters,
            interactions=interactions,
            trained_at=end,
            directory=directory,
            registered_model_name=model,
            experiment="demo",
        )
        for end in ends
    ]
