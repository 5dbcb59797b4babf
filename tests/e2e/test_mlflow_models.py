"""`mlflow models` on releases: what the manifest points at answers, with no MLflow server in reach."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import mlflow_command, run, serving, surroundings
from tests.support.released import Released
from tests.support.simulators.storage import StorageSimulator
from tests.support.two_releases import WIDTH

pytestmark = pytest.mark.exhaustive

REQUEST = {"inputs": {"user_features": [[0.5] * WIDTH] * 2, "item_features": [[0.25] * WIDTH] * 3}}
NO_SERVER = "http://127.0.0.1:9"
"""No server listens on port 9, so a request to the tracking server is refused."""

_LOAD = """
import sys, mlflow.onnx
print([output.name for output in mlflow.onnx.load_model(sys.argv[1]).graph.output])
"""


class Place:
    """Where one test runs commands, and on which store."""

    def __init__(self, directory: Path, released: Released, simulator: StorageSimulator | None) -> None:
        self.directory = directory
        self._released = released
        variables = {"SUPABASE_BRIDGE_HOME": str(released.home), "MLFLOW_TRACKING_URI": NO_SERVER}
        if simulator is not None:
            released.fill(simulator)
            variables |= {"SUPABASE_URL": simulator.url, "SUPABASE_SECRET_KEY": simulator.service_key}
        self.variables = variables

    def read_only(self, key: str) -> None:
        """From now on commands have a reader's key alone."""
        del self.variables["SUPABASE_SECRET_KEY"]
        self.variables["SUPABASE_PUBLISHABLE_KEY"] = key

    def environment(self, model: str) -> dict[str, str]:
        variables = dict(self.variables)
        if model.startswith("models:"):
            variables["MLFLOW_TRACKING_URI"] = self._released.database
            variables["MLFLOW_REGISTRY_URI"] = f"supabase+{self._released.database}"
        return surroundings(self.directory, **variables)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, released: Released) -> Place:
    """On the kind of store that the test's parameter names."""
    on_project = request.node.callspec.params.get("kind") == "project"
    return Place(tmp_path, released, request.getfixturevalue("simulator") if on_project else None)


def _predict(place: Place, model: str) -> object:
    """The answer of `mlflow models predict`, from file to file."""
    given, answer = place.directory / "input.json", place.directory / "output.json"
    given.write_text(json.dumps(REQUEST))
    command = mlflow_command(
        "models", "predict", "-m", model, "--env-manager", "local", "-i", str(given), "-o", str(answer)
    )
    run(command, cwd=place.directory, env=place.environment(model))
    return json.loads(answer.read_text())


def _serve(place: Place, model: str) -> object:
    """The answer of `mlflow models serve` to a request over HTTP."""
    command = mlflow_command("models", "serve", "-m", model, "--env-manager", "local", "--host", "127.0.0.1")
    with serving(command, cwd=place.directory, env=place.environment(model), health="/ping") as url:
        request = urllib.request.Request(
            f"{url}/invocations", json.dumps(REQUEST).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answered:
            return json.load(answered)


@pytest.mark.parametrize(
    ("ask", "spelling", "version", "kind"),
    [
        (_predict, "supabase://models/two_tower@latest", 1, "embedded"),
        (_serve, "supabase://models/two_tower@latest", 1, "project"),
        pytest.param(_predict, "supabase://models/two_tower@staging", 2, "project", marks=pytest.mark.exhaustive),
        pytest.param(_serve, "supabase://models/two_tower@staging", 2, "embedded", marks=pytest.mark.exhaustive),
        pytest.param(_predict, "supabase://models/two_tower/{run_2}", 2, "embedded", marks=pytest.mark.exhaustive),
        pytest.param(_serve, "supabase://models/two_tower/{run_1}", 1, "project", marks=pytest.mark.exhaustive),
        pytest.param(_predict, "models:/two_tower/Production", 1, "embedded", marks=pytest.mark.exhaustive),
        pytest.param(_serve, "models:/two_tower/Production", 1, "embedded", marks=pytest.mark.exhaustive),
    ],
)
def test_mlflow_models_answers_from_a_release(
    place: Place,
    released: Released,
    ask: Callable[[Place, str], object],
    spelling: str,
    version: int,
    kind: str,  # noqa: ARG001 (see `place`)
) -> None:
    names = {f"run_{number}": run_id for number, run_id in released.run_ids.items()}
    assert ask(place, spelling.format(**names)) == {
        "predictions": {"user_embedding": [[1.0] * WIDTH] * 2, "item_embedding": [[version + 0.25] * WIDTH] * 3}
    }


@pytest.mark.parametrize("kind", ["project"])
def test_a_readers_key_alone_loads_and_predicts_and_without_a_policy_the_answer_names_the_policy(
    place: Place,
    simulator: StorageSimulator,
    kind: str,  # noqa: ARG001 (see `place`)
) -> None:
    model = "supabase://models/two_tower@latest"
    place.read_only(simulator.anon_key)
    load = [sys.executable, "-c", _LOAD, model]
    with pytest.raises(AssertionError) as refused:
        run(load, cwd=place.directory, env=place.environment(model))
    assert "two_tower/latest/manifest.json cannot be read with the key in use: no policy" in str(refused.value)
    assert "no channel" not in str(refused.value)
    simulator.let_anon_read("models")
    run(load, cwd=place.directory, env=place.environment(model))
    answer = _predict(place, model)
    assert isinstance(answer, dict)
    assert set(answer["predictions"]) == {"user_embedding", "item_embedding"}


@pytest.mark.parametrize("kind", ["project"])
def test_a_second_process_loads_a_release_without_reading_a_file_over_the_network(
    place: Place,
    simulator: StorageSimulator,
    kind: str,  # noqa: ARG001 (see `place`)
) -> None:
    model = "supabase://models/two_tower@latest"
    command = [sys.executable, "-c", _LOAD, model]
    said = []
    bodies = []
    for _ in range(2):
        simulator.reset_calls()
        said.append(run(command, cwd=place.directory, env=place.environment(model)))
        read = [call.path for call in simulator.calls() if call.method == "GET" and call.status == 200]
        bodies.append([path.rsplit("/", 1)[1] for path in read])
    assert said[0] == said[1] == "['user_embedding', 'item_embedding']\n"
    assert {"MLmodel", "manifest.json", "requirements.txt"} <= set(bodies[0])
    assert set(bodies[1]) == {"manifest.json"}


@pytest.mark.parametrize("kind", ["project"])
@pytest.mark.parametrize(
    ("is_padded", "refusal"), [(True, "expected SHA-256"), (False, "expected [0-9]+ bytes, found 9")]
)
def test_what_the_simulator_serves_damaged_is_not_served_on(
    place: Place,
    released: Released,
    simulator: StorageSimulator,
    is_padded: bool,
    refusal: str,
    kind: str,  # noqa: ARG001 (see `place`)
) -> None:
    key = f"two_tower/{released.run_ids['1']}/requirements.txt"
    size_bytes = len(simulator.object_bytes("models", key)) if is_padded else 0
    simulator.put_object("models", key, b"evil==1.0".ljust(size_bytes))
    with pytest.raises(AssertionError, match=f"damaged: {refusal}"):
        run(
            [sys.executable, "-c", _LOAD, "supabase://models/two_tower@latest"],
            cwd=place.directory,
            env=place.environment("supabase:"),
        )
