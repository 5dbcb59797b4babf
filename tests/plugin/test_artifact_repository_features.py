"""Further features of MLflow's repositories: uploads from streams, signed downloads, progress."""

from __future__ import annotations

import asyncio
import io
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact import artifact_repo
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_supabase.artifact_files import IN_MEMORY_BYTES
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore, PutOptions
from supabase_bridge.storage.factory import open_store
from tests.support.simulators.storage import StorageSimulator

BUCKET = "artifacts"
ROOT = f"supabase://{BUCKET}/root"
OFFERED = hasattr(artifact_repo, "StreamUploadMixin")
"""MLflow 2.22 asks for none of these."""


@pytest.fixture(params=["embedded", "project"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SUPABASE_BRIDGE_ARTIFACT_BUCKETS", BUCKET)
    if request.param == "project":
        simulator: StorageSimulator = request.getfixturevalue("simulator")
        monkeypatch.setenv("SUPABASE_URL", simulator.url)
        monkeypatch.setenv("SUPABASE_SECRET_KEY", simulator.service_key)
    store = open_store(Settings.load(), BUCKET)
    store.ensure_bucket()
    yield store
    store.close()


def _repository(uri: str = ROOT) -> Any:
    """Return the repository that MLflow creates; Any, because MLflow 2.22 has no types for the mixins."""
    return get_artifact_repository(uri)


async def _chunks(data: bytes, *, then: Exception | None = None) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]
    if then is not None:
        raise then


class _Breaking(io.BytesIO):
    """A stream whose connection ends after its first piece."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise ConnectionResetError
        return super().read(size)


@pytest.mark.parametrize("size_bytes", [0, 1, IN_MEMORY_BYTES, IN_MEMORY_BYTES + 1, 3_000_000])
def test_a_stream_is_stored_whole_under_the_last_part_of_its_name(bucket: ObjectStore, size_bytes: int) -> None:
    data = bytes(range(251)) * (size_bytes // 251 + 1)
    data = data[:size_bytes]
    repository = _repository()
    repository.log_artifact_from_stream(io.BytesIO(data), "../a/sync.bin", "deep/er")
    asyncio.run(repository.log_artifact_from_async_stream(_chunks(data), "async.bin"))
    assert bucket.read("root/deep/er/sync.bin", limit_bytes=size_bytes) == data
    assert bucket.read("root/async.bin", limit_bytes=size_bytes) == data


@pytest.mark.parametrize("size_bytes", [1, 3_000_000])
def test_a_stream_that_breaks_leaves_what_was_there(bucket: ObjectStore, size_bytes: int) -> None:
    repository = _repository()
    for name in ("sync", "async"):
        repository.log_artifact_from_stream(io.BytesIO(b"before"), name)
    with pytest.raises(ConnectionResetError):
        repository.log_artifact_from_stream(_Breaking(bytes(size_bytes)), "sync")
    broken = _chunks(bytes(size_bytes), then=ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        asyncio.run(repository.log_artifact_from_async_stream(broken, "async"))
    assert [bucket.read(f"root/{name}", limit_bytes=100) for name in ("sync", "async")] == [b"before"] * 2


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("path", ["..", "/etc", "a\0"])
def test_a_stream_goes_nowhere_else(path: str) -> None:
    with pytest.raises(MlflowException) as refused:
        _repository().log_artifact_from_stream(io.BytesIO(b""), "name", path)
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"
    with pytest.raises(MlflowException) as refused:
        _repository("supabase://models/two_tower").log_artifact_from_stream(io.BytesIO(b""), "manifest.json", "latest")
    assert refused.value.error_code == "PERMISSION_DENIED"


def test_mlflow_sees_which_repositories_can_sign(bucket: ObjectStore) -> None:
    repository = _repository()
    assert bucket.name
    assert hasattr(repository, "get_download_presigned_url") is not Settings.load().embedded
    if OFFERED:
        assert isinstance(repository, artifact_repo.StreamUploadMixin)
        assert isinstance(repository, artifact_repo.MultipartDownloadMixin) is not Settings.load().embedded
        assert isinstance(repository, artifact_repo.PresignedUploadMixin) is not Settings.load().embedded
    assert isinstance(repository, artifact_repo.MultipartUploadMixin) is not Settings.load().embedded


if OFFERED:

    @pytest.mark.parametrize("bucket", ["project"], indirect=True)
    def test_a_signed_url_reads_one_file_without_a_key_until_it_expires(bucket: ObjectStore) -> None:
        repository = _repository()
        repository.log_artifact_from_stream(io.BytesIO(b"0123456789"), "a file.bin", "deep")
        signed = repository.get_download_presigned_url("deep/a file.bin", expiration=60)
        assert (signed.file_size, signed.headers) == (10, {})
        part = urllib.request.Request(signed.url, headers={"Range": "bytes=2-4"})
        with urllib.request.urlopen(part, timeout=10) as answer:
            assert answer.read() == b"234"
            assert answer.headers["Content-Disposition"].startswith("attachment")
        other = signed.url.replace("a%20file", "b%20file").replace("a+file", "b+file")
        bucket.create("root/deep/b file.bin", b"0123456789", PutOptions())
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(other, timeout=10)
        refused.value.close()

    @pytest.mark.usefixtures("bucket")
    @pytest.mark.parametrize("bucket", ["project"], indirect=True)
    @pytest.mark.parametrize(
        ("path", "seconds", "code"),
        [
            ("absent", 60, "RESOURCE_DOES_NOT_EXIST"),
            ("../other", 60, "INVALID_PARAMETER_VALUE"),
            ("absent", 0, "INVALID_PARAMETER_VALUE"),
            ("absent", 604801, "INVALID_PARAMETER_VALUE"),
        ],
    )
    def test_what_cannot_be_signed_is_refused(path: str, seconds: int, code: str) -> None:
        with pytest.raises(MlflowException) as refused:
            _repository().get_download_presigned_url(path, expiration=seconds)
        assert refused.value.error_code == code


class _Bars:
    """Replaces tqdm, which draws MLflow's bars; each bar is [description, shown steps, total]."""

    def __init__(self) -> None:
        self.drawn: list[list[Any]] = []

    def tqdm(self, *, total: int, desc: str, **_: object) -> _Bars:
        self.drawn.append([desc, 0, total])
        return self

    def update(self, steps: int) -> None:
        self.drawn[-1][1] += steps

    def refresh(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@pytest.mark.usefixtures("bucket")
def test_progress_is_shown_as_mlflow_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = _Bars()
    monkeypatch.setitem(sys.modules, "tqdm", bars)
    monkeypatch.setitem(sys.modules, "tqdm.auto", bars)
    source = tmp_path / "source"
    source.mkdir()
    for name in ("one", "two"):
        (source / name).write_bytes(b"x" * 25_000_000)
    _repository().log_artifacts(str(source))
    assert bars.drawn == [["Uploading artifacts", 2, 2]]
    bars.drawn.clear()
    monkeypatch.setattr("mlflow.utils.file_utils._PROGRESS_BAR_DISPLAY_THRESHOLD", 20_000_000)
    _repository().log_artifact(str(source / "one"))
    assert bars.drawn == [[f"Uploading {source / 'one'}", 25_000_000, 25_000_000]]
    bars.drawn.clear()
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    _repository().log_artifact(str(source / "one"))
    assert bars.drawn == []
