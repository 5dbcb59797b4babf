"""Who takes part in a soak: clients that promote, and workers that are killed."""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.commands import EXECUTABLE
from tests.support.scene import tiny_onnx
from tests.support.simulators.storage import (
    Action,
    CutAfterHandling,
    CutBeforeHandling,
    CutResponseAfter,
    Delay,
    Fault,
    Respond,
)

BUCKET = "models"
ALIAS = "champion"
"""Moves the channel of the same name."""
FIRST_END = 1_761_903_512_000
_LIMIT_SECONDS = 120
_PAUSE_SECONDS = 5.0
"""Between two rollbacks; a command takes seconds of the processor by itself."""


def faults(part: float) -> list[Fault]:
    """Everything that goes wrong, each as often as the others, together for this part of the requests."""
    actions: list[Action] = [
        Respond(500),
        Respond(503),
        Delay(0.5),
        CutBeforeHandling(),
        CutAfterHandling(),
        CutResponseAfter(10),
    ]
    return [Fault(action=action, probability=part / len(actions)) for action in actions]


class Clients:
    """People and jobs that promote through MLflow's REST interface, each call on any of the servers.

    Attributes:
        blocked: The number of each model's version that no worker can read; it is promoted like the others.
        promoted: How many promotions were answered with a success.
    """

    def __init__(self, urls: Sequence[str], *, models: int, versions: int) -> None:
        self._urls = urls
        self.blocked = versions + 1
        self._versions = versions
        self._random = random.Random(1)
        self.models = [f"model_{number}" for number in range(models)]
        self.promoted = 0

    def register(self) -> None:
        """Log a training for every version, and register it."""
        for model in self.models:
            self._post("registered-models/create", name=model)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._register_versions, self.models))

    def promote(self, count: int, *, at_once: int, pause: float) -> None:
        """Promote versions at random, by stage or by alias, until so many promotions were answered with a success."""
        left = threading.Semaphore(count)
        done: list[int] = []

        def work(_: int) -> None:
            waiting = threading.Event()
            while left.acquire(blocking=False):
                move = self._random.choice((self.promote_version, self.promote_version, self.set_alias))
                try:
                    move(self._random.choice(self.models), self._random.randint(1, self.blocked))
                except urllib.error.HTTPError as error:
                    # Two that change the same versions or alias at the same moment: the database refuses one of them.
                    answer = error.read()
                    assert error.code >= 500 or b"UniqueViolation" in answer, answer  # noqa: PT017 - no raised assertion
                    left.release()
                else:
                    done.append(1)
                waiting.wait(pause * self._random.random())

        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(work, range(at_once)))
        self.promoted = len(done)

    def promote_version(self, model: str, version: int) -> None:
        """Move a version to Production, and archive the others there."""
        self._post(
            "model-versions/transition-stage",
            name=model,
            version=str(version),
            stage="Production",
            archive_existing_versions=True,
        )

    def set_alias(self, model: str, version: int) -> None:
        """Give the alias to a version."""
        self._post("registered-models/alias", name=model, alias=ALIAS, version=str(version))

    def stages(self, model: str) -> dict[int, str]:
        """Every version's stage."""
        numbers = range(1, self.blocked + 1)
        return {number: self._version(model, number)["current_stage"] for number in numbers}

    def aliases(self, model: str) -> dict[int, list[str]]:
        """Every version's aliases."""
        return {number: self._version(model, number).get("aliases", []) for number in range(1, self.blocked + 1)}

    def _version(self, model: str, number: int) -> Any:
        return self._call("GET", f"mlflow/model-versions/get?name={model}&version={number}")["model_version"]

    def _register_versions(self, model: str) -> None:
        for number in range(1, self._versions + 1):
            end = FIRST_END + 60_000 * number
            run = self._post("runs/create", experiment_id="0", start_time=end - 1_000)["run"]["info"]
            root = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
            onnx = tiny_onnx(float(number))
            self._call("PUT", f"mlflow-artifacts/artifacts/{root}/model/model.onnx", onnx)
            self._post("runs/update", run_id=run["run_id"], status="FINISHED", end_time=end)
            source = f"{run['artifact_uri']}/model"
            self._post("model-versions/create", name=model, source=source, run_id=run["run_id"])

    def _post(self, call: str, **body: object) -> Any:
        return self._call("POST", f"mlflow/{call}", json.dumps(body).encode())

    def _call(self, method: str, path: str, body: bytes | None = None) -> Any:
        headers = {"Content-Type": "application/json" if method == "POST" else "application/octet-stream"}
        url = f"{self._random.choice(self._urls)}/api/2.0/{path}"
        request = urllib.request.Request(url, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=_LIMIT_SECONDS) as answer:
            return json.loads(answer.read() or b"{}")


class Rollbacks:
    """An operator who rolls channels back, one after the other, while all others work.

    Attributes:
        done: How many succeeded. One that meets a failing storage, or a channel without an earlier release, does not.
    """

    def __init__(self, models: Sequence[str], home: Path, environment: Mapping[str, str], directory: Path) -> None:
        self._models = models
        self._home, self._environment, self._directory = home, environment, directory
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._unexpected: list[str] = []
        self.done = 0

    def __enter__(self) -> Rollbacks:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def stop(self) -> None:
        """Let the operator end the last command; every command that failed must have said why."""
        self._stop.set()
        self._thread.join()
        assert self._unexpected == [], self._unexpected

    def _run(self) -> None:
        targets = itertools.cycle([(model, channel) for model in self._models for channel in ("latest", ALIAS)])
        while not self._stop.wait(_PAUSE_SECONDS):
            model, channel = next(targets)
            command = [str(EXECUTABLE), "rollback", model, "--channel", channel, "--home", str(self._home)]
            ended = subprocess.run(
                command, cwd=self._directory, env=self._environment, capture_output=True, text=True, check=False
            )
            self.done += ended.returncode == 0
            if ended.returncode and ("Traceback" in ended.stderr or "Error: " not in ended.stderr):
                self._unexpected.append(ended.stderr)


class Workers:
    """Worker processes; one that is killed is started again."""

    def __init__(self, count: int, home: Path, environment: Mapping[str, str], directory: Path) -> None:
        self._home, self._environment, self._directory = home, environment, directory
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []
        self.killed = 0

    def __enter__(self) -> Workers:
        self._processes = [self._start() for _ in range(self._count)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    @contextmanager
    def killed_every(self, seconds: float, times: int) -> Iterator[threading.Event]:
        """Kill one after the other by SIGKILL, so many in all, until the event is set."""
        stop = threading.Event()

        def kill() -> None:
            number = 0
            while self.killed < times and not stop.wait(seconds):
                number = (number + 1) % self._count
                self._processes[number].kill()
                self._processes[number].wait()
                self._processes[number] = self._start()
                self.killed += 1

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            yield stop
        finally:
            stop.set()
            killer.join()

    def stop(self) -> None:
        """Let every worker end by itself."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            process.wait(_LIMIT_SECONDS)

    def _start(self) -> subprocess.Popen[bytes]:
        with (self._directory / "workers.log").open("ab") as log:
            command = [str(EXECUTABLE), "worker", "--home", str(self._home)]
            return subprocess.Popen(command, cwd=self._directory, env=self._environment, stdout=log, stderr=log)
