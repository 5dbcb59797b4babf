"""The demonstration as a newcomer runs it: two trainings released, the first brought back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Said, execute, lines_matching
from tests.support.scene import supabase_environment
from tests.support.simulators.storage import StorageSimulator

pytestmark = pytest.mark.mlflow

README = Path(__file__).parents[2] / "README.md"
RUN_ID = r"[0-9]{8}T[0-9]{6}Z(?:-v[0-9]+)?"


def trained(said: Said) -> list[str]:
    """The run_ids of the versions that a demonstration mirrored, in order."""
    return re.findall(rf"^  mirrored as models/\w+/({RUN_ID})/ \(9 files, [0-9]+ kB\)$", said.out, re.MULTILINE)


def without_figures(transcript: str) -> str:
    """A transcript with what differs from run to run taken out; which run_id stands where stays."""
    for number, run_id in enumerate(dict.fromkeys(re.findall(RUN_ID, transcript)), start=1):
        transcript = transcript.replace(run_id, f"<run {number}>")
    return re.sub(r"[0-9]+(\.[0-9]+)? kB|0\.[0-9]{3}", "<figure>", transcript)


def printed_manifest(said: Said) -> dict[str, Any]:
    found = re.search(r"^\{$.*?^\}$", said.out, re.MULTILINE | re.DOTALL)
    assert found is not None
    manifest: dict[str, Any] = json.loads(found[0])
    return manifest


@pytest.mark.exhaustive
def test_the_demo_ends_with_version_1_current_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    said = execute("demo", "--home", home, directory=tmp_path)
    assert said.code == 0, said.err
    assert said.err.splitlines()[:2] == [
        f"store:    directory {home}/supabase/models (embedded, no SUPABASE_URL set)",
        f"database: sqlite:///{home}/mlflow.db",
    ]
    assert "Traceback" not in said.err
    steps = [line.removeprefix("demo:     ") for line in said.err.splitlines() if line.startswith("demo: ")]
    assert steps[:2] == ["loading MLflow", "epoch 1 of 4"]
    assert steps[-2:] == ["epoch 8 of 8", "logging the model to MLflow"]
    first, second = trained(said)
    told = [re.sub(r"0\.[0-9]{3}", "0.nnn", line) for line in said.out.splitlines()]
    story = [line for line in told if "mirrored as" not in line][:8]
    assert story == [
        "trained version 1: recall@20 0.nnn, auc 0.nnn",
        "moved version 1 to stage Production in MLflow",
        f"  latest/manifest.json: current {first}, previous nothing",
        "trained version 2: recall@20 0.nnn, auc 0.nnn",
        "gave version 2 the alias champion in MLflow",
        f"  latest/manifest.json: current {second}, previous {first}",
        f"rolled back to {first}: nothing was uploaded again",
        f"  latest/manifest.json: current {first}, previous {second}",
    ]
    manifest = json.loads((home / "supabase/models/two_tower/latest/manifest.json").read_bytes())
    assert printed_manifest(said) == manifest
    assert (manifest["current"]["run_id"], manifest["current"]["model_version"]) == (first, 1)
    assert [pointer["run_id"] for pointer in manifest["previous"]] == [second]
    for key in (manifest["current"]["onnx_path"], manifest["previous"][0]["onnx_path"]):
        assert (home / "supabase/models" / key).is_file()
    assert lines_matching(said.out, rf"^  supabase-bridge (status|server) --home {home}")

    shown = re.search(
        r"<!-- transcript: demo -->\n```\n\$ supabase-bridge demo\n(.*?)```", README.read_text(), re.DOTALL
    )
    assert shown is not None
    assert without_figures(said.out).startswith(without_figures(shown[1]))


@pytest.mark.exhaustive
def test_the_demo_may_be_run_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first, _ = trained(execute("demo", "--home", home, directory=tmp_path))
    again = execute("demo", "--home", home, directory=tmp_path)
    assert again.code == 0, again.err
    third, fourth = trained(again)
    manifest = printed_manifest(again)
    assert (manifest["current"]["run_id"], manifest["current"]["model_version"]) == (third, 3)
    assert [pointer["run_id"] for pointer in manifest["previous"]] == [fourth, first]


@pytest.mark.exhaustive
def test_the_demo_on_a_supabase_project_uses_a_model_of_its_own(tmp_path: Path, simulator: StorageSimulator) -> None:
    environment = supabase_environment(simulator)
    said = execute("demo", "--home", tmp_path / "home", directory=tmp_path, environment=environment)
    assert said.code == 0, said.err
    address = simulator.url.removeprefix("http://")
    assert said.err.splitlines()[0] == f"store:    Supabase {address} bucket models (a Supabase project)"
    assert {key.split("/")[0] for key in simulator.object_keys("models")} == {"two_tower_demo"}
    first, second = trained(said)
    manifest = json.loads(simulator.object_bytes("models", "two_tower_demo/latest/manifest.json"))
    assert printed_manifest(said) == manifest
    assert (manifest["current"]["run_id"], manifest["current"]["model_version"]) == (first, 1)
    assert [pointer["run_id"] for pointer in manifest["previous"]] == [second]
    assert not (tmp_path / "home" / "supabase").exists()
    assert simulator.service_key not in said.out + said.err
