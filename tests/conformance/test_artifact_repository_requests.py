"""What logging an artifact asks of a Supabase project, and what it leaves there for who makes a release of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from supabase_bridge.config import Settings
from supabase_bridge.object_store.digest import digests_of
from supabase_bridge.object_store.opening import open_store
from tests.simulators.faults import CorruptRequest, Fault
from tests.simulators.storage import StorageSimulator

BUCKET = "artifacts"
LARGE = bytes(range(256)) * 2_000


@pytest.fixture
def repository(simulator: StorageSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A repository that has been written to, so that its bucket is known to be there."""
    monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SUPABASE_BRIDGE_ARTIFACT_BUCKETS", BUCKET)
    monkeypatch.setenv("SUPABASE_URL", simulator.url)
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", simulator.service_key)
    made = get_artifact_repository(f"supabase://{BUCKET}/root")
    (tmp_path / "first").touch()
    made.log_artifact(str(tmp_path / "first"))
    simulator.reset_calls()
    return made


def test_a_small_artifact_costs_one_request(simulator: StorageSimulator, repository: Any, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(bytes(20_000))
    repository.log_artifact(str(tmp_path / "small"))
    assert [call.method for call in simulator.calls()] == ["POST"]


@pytest.mark.parametrize("size", [0, 20_000, len(LARGE)])
@pytest.mark.parametrize("streamed", [False, True])
def test_an_artifact_is_recorded_with_its_digest_sealed(
    repository: Any, tmp_path: Path, size: int, streamed: bool
) -> None:
    if streamed:
        repository.log_artifact_from_stream(io.BytesIO(LARGE[:size]), "artifact")
    else:
        (tmp_path / "artifact").write_bytes(LARGE[:size])
        repository.log_artifact(str(tmp_path / "artifact"))
    store = open_store(Settings.load(), BUCKET)
    found = store.stat("root/artifact")
    store.close()
    assert (found.sha256, found.sealed) == (digests_of(LARGE[:size]).sha256, True)


def test_a_large_artifact_that_is_damaged_on_its_way_is_an_error(
    simulator: StorageSimulator, repository: Any, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    simulator.inject(Fault(action=CorruptRequest(300_000), method="POST", times=1))
    with pytest.raises(MlflowException) as caught:
        repository.log_artifact(str(tmp_path / "large"))
    assert caught.value.error_code == "DATA_LOSS"


def test_a_small_artifact_that_is_damaged_on_its_way_has_no_seal(
    simulator: StorageSimulator, repository: Any, tmp_path: Path
) -> None:
    (tmp_path / "small").write_bytes(bytes(20_000))
    simulator.inject(Fault(action=CorruptRequest(10_000), method="POST", times=1))
    repository.log_artifact(str(tmp_path / "small"))
    store = open_store(Settings.load(), BUCKET)
    assert not store.stat("root/small").sealed
    store.close()
