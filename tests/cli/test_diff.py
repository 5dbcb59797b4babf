"""`diff`: what changed between two releases, named by version, channel or run_id."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.commands import Said, invoke
from tests.support.consumers import BUCKET, FIRST, MODEL, SECOND, Bucket
from tests.support.scene import FIRST_TRAINING, Scene
from tests.support.simulators.storage import StorageSimulator


@pytest.fixture
def embedded(tmp_path: Path) -> Bucket:
    """Two releases: SECOND is current, FIRST was."""
    bucket = Bucket.of_directory(tmp_path / "home" / "supabase" / BUCKET)
    bucket.promote(FIRST)
    bucket.promote(SECOND, onnx=b"another")
    return bucket


def diff(home: Path, *arguments: object) -> Said:
    return invoke("diff", MODEL, *arguments, "--home", home)


def test_a_version_is_compared_with_a_channel_from_training_to_the_graph(directory_scene: Scene) -> None:
    scene = directory_scene
    scene.promote(scene.train(params={"lr": "0.1"}, metrics={"recall_at_20": 0.25}, tags={"mlflow.user": "ann"}))
    scene.work()
    later = FIRST_TRAINING + timedelta(days=1)
    scene.train(params={"lr": "0.2"}, metrics={"recall_at_20": 0.31}, tags={"mlflow.user": "bob"}, ended_at=later)
    scene.work()
    said = diff(scene.settings.home, "latest", 2)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    for line in (
        "  version: 1 -> 2",
        "  trained by: ann -> bob",
        "  channel: latest -> none",
        "  recall@20 0.25 -> 0.31 (+0.06)",
        "parameters",
        "  lr: 0.1 -> 0.2",
    ):
        assert line in lines
    found = json.loads(diff(scene.settings.home, 1, 2, "--json").out)
    assert found["changes"]["parameters"] == [{"name": "lr", "before": "0.1", "after": "0.2"}]
    assert (found["notes"], "inputs" in found["changes"]) == ([], False)
    assert found["before"]["current_since"] is not None
    missing = diff(scene.settings.home, 1, 3)
    assert (missing.code, "version 3" in missing.error) == (1, True)


@pytest.mark.usefixtures("embedded")
def test_two_releases_are_compared_without_mlflow_by_run_id_and_channel(tmp_path: Path) -> None:
    said = diff(tmp_path / "home", FIRST, "latest", "--markdown")
    assert said.code == 0, said.err
    assert said.out.startswith(f"## two_tower: `{FIRST}` → `{SECOND}`\n")
    assert "| current since | `2025-11-01T02:40:10Z` | `2025-11-01T02:40:10Z` |" in said.out
    assert "| `two_tower_RUN_ID.onnx` | `1200 bytes (sha256 " in said.out
    assert not (tmp_path / "home" / "mlflow.db").exists()


def test_the_publishable_key_suffices_to_compare(tmp_path: Path) -> None:
    with StorageSimulator() as simulator:
        bucket = Bucket.of_simulator(simulator)
        bucket.promote(FIRST)
        bucket.promote(SECOND, channel="staging")
        simulator.let_anon_read(BUCKET)
        environment = {"SUPABASE_URL": simulator.url, "SUPABASE_PUBLISHABLE_KEY": simulator.anon_key}
        said = invoke("diff", MODEL, "latest", "staging", "--home", tmp_path, environment=environment)
    assert said.code == 0, said.err
    assert f"two_tower: {FIRST} -> {SECOND}" in said.out


@pytest.mark.usefixtures("embedded")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("latest", "staging"), 1, "two_tower has no channel 'staging'"),
        (("latest", "20200101T000000Z"), 1, "20200101T000000Z"),
        (("latest", "../x"), 2, "../x"),
        (("latest", "latest", "--json", "--markdown"), 2, "choose one"),
    ],
)
def test_a_release_that_is_not_there_or_not_named_is_an_error_in_words(
    tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    found = diff(tmp_path / "home", *arguments)
    assert found.code == code
    assert said in found.err


def test_a_release_whose_documents_are_not_as_recorded_is_not_compared(embedded: Bucket, tmp_path: Path) -> None:
    embedded.put(f"{MODEL}/{SECOND}/metrics.json", b'{"run_id": "x"}')
    found = diff(tmp_path / "home", FIRST, "latest")
    assert (found.code, "metrics.json" in found.error) == (1, True)
