"""The requests of uploads and downloads of artifacts, and the effect of damage in transit."""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.factory import open_store
from supabase_bridge.storage.hashing import hash_body, md5_of
from tests.support.full_disk import no_file_larger_than
from tests.support.simulators.faults import Action, CorruptRequest, CorruptResponse, Fault, Respond
from tests.support.simulators.storage import StorageSimulator
from tests.support.simulators.storage_tokens import DIGEST_KEY
from tests.support.stores import info_answer

BUCKET = "artifacts"
LARGE = bytes(range(256)) * 2_000


@pytest.fixture
def repository(simulator: StorageSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a repository that knows that its bucket exists, because it was written to."""
    monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SUPABASE_BRIDGE_ARTIFACT_BUCKETS", BUCKET)
    monkeypatch.setenv("SUPABASE_URL", simulator.url)
    monkeypatch.setenv("SUPABASE_SECRET_KEY", simulator.service_key)
    monkeypatch.setenv("SUPABASE_BRIDGE_DIGEST_KEY", DIGEST_KEY)
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
    assert (found.sha256, found.digest_authenticated) == (hash_body(LARGE[:size]).sha256, True)


def test_a_small_artifact_that_changes_while_it_is_logged_is_stored_as_it_was_once(
    repository: Any, target: Path
) -> None:
    """The operating system returns other content at each read of this file."""
    repository.log_artifact("/proc/sys/kernel/random/uuid")
    repository._download_file("uuid", str(target))
    assert uuid.UUID(target.read_text().strip())


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
    assert not store.stat("root/small").digest_authenticated
    store.close()


# --- on their way back ------------------------------------------------------------------------------------------------

HTML = Respond(200, b"<html><h1>Log in to the network</h1></html>", {"content-type": "text/html"})
SIZES = [20_000, 3_000_000]
RECORDED = "by this repository"
UNRECORDED = "by somebody else"
NO_SIGNING = "with another key"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Yield a target that exists already; nothing else may stay in its directory."""
    place = tmp_path / "downloads" / "artifact"
    place.parent.mkdir()
    place.write_bytes(b"before")
    yield place
    assert list(place.parent.iterdir()) == [place]


def lay(simulator: StorageSimulator, repository: Any, data: bytes, by: str) -> None:
    """Store an artifact without counting its requests."""
    if by == RECORDED:
        repository.log_artifact_from_stream(io.BytesIO(data), "artifact")
    else:
        digest = hashlib.sha256(data).hexdigest()
        simulator.put_object(BUCKET, "root/artifact", data, {"sha256": digest} if by == NO_SIGNING else {})
    simulator.reset_calls()


@pytest.mark.parametrize("by", [RECORDED, NO_SIGNING, UNRECORDED])
@pytest.mark.parametrize("size", [0, *SIZES])
def test_an_artifact_is_downloaded_whole_by_one_look_and_one_reading(
    simulator: StorageSimulator, repository: Any, target: Path, by: str, size: int
) -> None:
    data = bytes(range(250)) * (size // 250)
    lay(simulator, repository, data, by)
    repository._download_file("artifact", str(target))
    assert target.read_bytes() == data
    assert [(call.method, "/info/" in call.path) for call in simulator.calls()] == [("GET", True), ("GET", False)]


@pytest.mark.parametrize("by", [RECORDED, NO_SIGNING, UNRECORDED])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("action", [CorruptResponse(7), HTML], ids=["a byte", "a page of a proxy"])
def test_an_artifact_that_is_damaged_on_its_way_down_is_an_error_and_no_file(
    simulator: StorageSimulator, repository: Any, target: Path, by: str, size: int, action: Action
) -> None:
    lay(simulator, repository, bytes(size), by)
    simulator.inject(Fault(action=action, method="GET", path_contains=f"object/{BUCKET}/"))
    with pytest.raises(MlflowException, match="is damaged") as caught:
        repository._download_file("artifact", str(target))
    assert caught.value.error_code == "DATA_LOSS"
    assert target.read_bytes() == b"before"


def test_a_proxys_page_of_the_artifacts_own_size_is_told_from_it_by_the_md5(
    simulator: StorageSimulator, repository: Any, target: Path
) -> None:
    lay(simulator, repository, bytes(len(HTML.body)), UNRECORDED)
    simulator.inject(Fault(action=HTML, method="GET", path_contains=f"object/{BUCKET}/"))
    with pytest.raises(MlflowException, match="is damaged"):
        repository._download_file("artifact", str(target))


def test_an_artifact_whose_etag_is_no_md5_is_compared_by_its_size(
    simulator: StorageSimulator, repository: Any, target: Path
) -> None:
    lay(simulator, repository, bytes(20_000), UNRECORDED)
    simulator.inject(Fault(action=info_answer(size=20_000, etag=f"{'0' * 32}-3"), path_contains="object/info/"))
    repository._download_file("artifact", str(target))
    assert target.read_bytes() == bytes(20_000)
    simulator.inject(Fault(action=HTML, method="GET", path_contains=f"object/{BUCKET}/"))
    with pytest.raises(MlflowException, match="is damaged"):
        repository._download_file("artifact", str(target))


def test_a_small_artifact_that_was_damaged_on_its_way_up_is_not_downloaded_as_if_it_were_whole(
    simulator: StorageSimulator, repository: Any, target: Path
) -> None:
    simulator.inject(Fault(action=CorruptRequest(10_000), method="POST", times=1))
    lay(simulator, repository, bytes(20_000), RECORDED)
    with pytest.raises(MlflowException, match="is damaged"):
        repository._download_file("artifact", str(target))


def test_an_artifact_that_is_replaced_while_it_is_downloaded_comes_as_one_of_the_two(
    simulator: StorageSimulator, repository: Any, target: Path
) -> None:
    lay(simulator, repository, b"former", RECORDED)
    former = info_answer(size=6, etag=md5_of(b"former").hexdigest())
    simulator.put_object(BUCKET, "root/artifact", b"latter, and longer")
    simulator.inject(Fault(action=former, path_contains="object/info/", times=1))
    repository._download_file("artifact", str(target))
    assert target.read_bytes() == b"latter, and longer"


def test_an_artifact_that_is_replaced_again_and_again_is_given_up(
    simulator: StorageSimulator, repository: Any, target: Path
) -> None:
    lay(simulator, repository, b"content", UNRECORDED)
    for size in range(100, 120):
        simulator.inject(Fault(action=info_answer(size=size), path_contains="object/info/", times=1))
    with pytest.raises(MlflowException, match="replaced again and again") as caught:
        repository._download_file("artifact", str(target))
    assert caught.value.error_code == "TEMPORARILY_UNAVAILABLE"


def test_a_full_disk_is_named_and_leaves_no_half_artifact(
    simulator: StorageSimulator, repository: Any, target: Path
) -> None:
    lay(simulator, repository, bytes(3_000_000), RECORDED)
    with no_file_larger_than(1_000_000), pytest.raises(MlflowException, match="artifact: file too large"):
        repository._download_file("artifact", str(target))
    assert target.read_bytes() == b"before"


def test_a_target_that_cannot_be_written_is_named(repository: Any, tmp_path: Path) -> None:
    (tmp_path / "folder" / "full").mkdir(parents=True)
    for place in ("absent/artifact", "folder"):
        with pytest.raises(MlflowException, match=str(tmp_path / place)):
            repository._download_file("first", str(tmp_path / place))
    assert [path.name for path in tmp_path.glob(".*")] == []
