"""`supabase://models/<model>@<channel>` and `.../<run_id>` lead to one release as recorded, on each kind of store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_supabase.artifact_repository import SupabaseArtifactRepository
from supabase_bridge.core.documents import Cause, FileRecord, ModelMeta
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId
from supabase_bridge.settings.model import FILE_NAME, Settings
from supabase_bridge.storage.base import ObjectStore, PutOptions
from supabase_bridge.storage.errors import DeadlineExceededError
from supabase_bridge.storage.factory import open_store
from supabase_bridge.trust.errors import ManifestRefusedError, Refusal
from supabase_bridge.trust.load import write_new_key
from tests.plugin.refusals import refused
from tests.support.activation import activate
from tests.support.simulators.faults import Fault, Hang
from tests.support.simulators.storage import StorageSimulator

MODEL = "two_tower"
FIRST, SECOND = "20251031T093831Z", "20251101T093831Z"
NOW = datetime(2025, 11, 2, tzinfo=timezone.utc)
NAMES = ["MLmodel", "metrics.json", "model_meta.json"]


class Releases:
    """Create a bucket with two releases; the first one is current in `latest`."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._events = 0
        for run_id in (FIRST, SECOND):
            self._add(run_id)
        self.promote(FIRST)

    def promote(self, run_id: str) -> None:
        self._events += 1
        channel = ChannelPaths(model_key=MODEL, channel="latest")
        cause = Cause(registry_id="registry", event_id=self._events)
        activate(self.store, channel, RunId.parse(run_id), cause=cause, published_at=NOW)

    def replace(self, key: str, data: bytes) -> None:
        """Change an object without the bridge."""
        self.store.overwrite(key, data, PutOptions())

    def _add(self, run_id: str) -> None:
        paths = ReleasePaths(model_key=MODEL, run_id=RunId.parse(run_id))
        files = {paths.onnx_name: f"weights of {run_id}", "MLmodel": f"flavors of {run_id}", "metrics.json": "{}"}
        for name, text in files.items():
            self.store.create(paths.file(name), text.encode(), PutOptions())
        records = {
            name: FileRecord(size_bytes=len(text), sha256=hashlib.sha256(text.encode()).hexdigest())
            for name, text in files.items()
        }
        meta = ModelMeta(model_name=MODEL, run_id=run_id, files=records)
        self.store.create(paths.meta, meta.to_bytes(), PutOptions())


@pytest.fixture(params=["embedded", "project"])
def releases(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Releases]:
    monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SUPABASE_BRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SUPABASE_BRIDGE_ARTIFACT_BUCKETS", "artifacts")
    if request.param == "project":
        simulator = request.getfixturevalue("simulator")
        monkeypatch.setenv("SUPABASE_URL", simulator.url)
        monkeypatch.setenv("SUPABASE_SECRET_KEY", simulator.service_key)
    store = open_store(Settings.load(), "models")
    store.ensure_bucket()
    yield Releases(store)
    store.close()


def names(repository: SupabaseArtifactRepository, path: str | None = None) -> list[str]:
    return [info.path for info in repository.list_artifacts(path)]


def fetched(repository: SupabaseArtifactRepository, path: str, directory: Path) -> str:
    target = directory / "fetched"
    repository._download_file(path, str(target))
    return target.read_text()


@pytest.mark.usefixtures("releases")
@pytest.mark.parametrize(("named", "run_id"), [("@latest", FIRST), (f"/{FIRST}", FIRST), (f"/{SECOND}", SECOND)])
def test_a_release_is_a_repository_and_a_directory_of_one(named: str, run_id: str, tmp_path: Path) -> None:
    inside = SupabaseArtifactRepository(f"supabase://models/{MODEL}{named}")
    above = SupabaseArtifactRepository("supabase://models")
    expected = [*NAMES, f"{MODEL}_{run_id}.onnx"]
    assert names(inside) == expected
    assert names(above, f"{MODEL}{named}") == [f"{MODEL}{named}/{name}" for name in expected]
    assert names(inside, "MLmodel") == names(above, f"{MODEL}{named}/MLmodel") == []
    assert fetched(inside, "MLmodel", tmp_path) == f"flavors of {run_id}"
    assert fetched(above, f"{MODEL}{named}/MLmodel", tmp_path) == f"flavors of {run_id}"


@pytest.mark.usefixtures("releases")
@pytest.mark.parametrize("named", ["@latest", f"/{FIRST}"])
def test_mlflow_downloads_a_release_whole(named: str, tmp_path: Path) -> None:
    found = download_artifacts(artifact_uri=f"supabase://models/{MODEL}{named}", dst_path=str(tmp_path))
    assert sorted(path.name for path in Path(found).iterdir()) == [*NAMES, f"{MODEL}_{FIRST}.onnx"]


@pytest.mark.usefixtures("releases")
@pytest.mark.parametrize(
    ("path", "code", "missing"),
    [
        (f"{MODEL}@staging", "RESOURCE_DOES_NOT_EXIST", f"{MODEL}/staging/manifest.json is missing"),
        ("other@latest", "RESOURCE_DOES_NOT_EXIST", "other has no channel 'latest'"),
        (f"{MODEL}/20200101T000000Z", "RESOURCE_DOES_NOT_EXIST", "no complete release 20200101T000000Z"),
        (f"{MODEL}@Latest", "INVALID_PARAMETER_VALUE", "'Latest' cannot be a channel"),
        ("@latest", "INVALID_PARAMETER_VALUE", "it is empty"),
    ],
)
def test_what_is_no_release_is_named(path: str, code: str, missing: str, tmp_path: Path) -> None:
    for repository, below in ((f"supabase://models/{path}", ""), ("supabase://models", f"{path}/")):
        made = SupabaseArtifactRepository(repository)
        with refused(code) as caught:
            made.list_artifacts(below)
        assert missing in str(caught.value)
        with refused(code) as caught:
            made._download_file(f"{below}MLmodel", str(tmp_path / "target"))
        assert missing in str(caught.value)
    assert not (tmp_path / "target").exists()


def test_a_repository_stays_with_the_release_that_it_found_first(releases: Releases, tmp_path: Path) -> None:
    repository = SupabaseArtifactRepository(f"supabase://models/{MODEL}@latest")
    assert fetched(repository, "MLmodel", tmp_path) == f"flavors of {FIRST}"
    releases.promote(SECOND)
    assert fetched(repository, f"{MODEL}_{FIRST}.onnx", tmp_path) == f"weights of {FIRST}"
    assert names(SupabaseArtifactRepository("supabase://models"), f"{MODEL}@latest")[-1].endswith(f"{SECOND}.onnx")


@pytest.mark.parametrize("data", [b"", b"flavors of 20251031T093831z", b"flavors of 20251031T093831Z and more"])
@pytest.mark.parametrize("named", ["@latest", f"/{FIRST}"])
def test_a_file_that_differs_from_its_record_is_refused(
    releases: Releases, named: str, data: bytes, tmp_path: Path
) -> None:
    releases.replace(f"{MODEL}/{FIRST}/MLmodel", data)
    repository: ArtifactRepository = SupabaseArtifactRepository(f"supabase://models/{MODEL}{named}")
    target = tmp_path / "target"
    target.mkdir()
    with refused("DATA_LOSS"):
        repository._download_file("MLmodel", str(target / "MLmodel"))
    # MLflow 2.22 gives every failure of a directory's download one code.
    with pytest.raises(MlflowException, match="damaged"):
        repository.download_artifacts("", str(target))
    assert not (target / "MLmodel").exists()
    assert not list((tmp_path / "cache").rglob(hashlib.sha256(data).hexdigest()))


def test_a_file_that_no_record_names_is_not_part_of_a_release(releases: Releases, tmp_path: Path) -> None:
    releases.replace(f"{MODEL}/{FIRST}/stray.py", b"import os")
    for named in ("@latest", f"/{FIRST}"):
        repository = SupabaseArtifactRepository(f"supabase://models/{MODEL}{named}")
        assert "stray.py" not in names(repository)
        with refused("RESOURCE_DOES_NOT_EXIST"):
            repository._download_file("stray.py", str(tmp_path / "target"))


@pytest.mark.parametrize(
    ("document", "field", "value"),
    [
        ("latest/manifest.json", "model_name", "other"),
        ("latest/manifest.json", "channel", "staging"),
        (f"{FIRST}/model_meta.json", "model_name", "other"),
        (f"{FIRST}/model_meta.json", "run_id", SECOND),
        (f"{FIRST}/model_meta.json", "files", {"../evil": {"size_bytes": 0, "sha256": "0" * 64}}),
    ],
)
def test_a_document_of_something_else_or_that_leads_elsewhere_is_refused(
    releases: Releases, document: str, field: str, value: object
) -> None:
    key = f"{MODEL}/{document}"
    found = json.loads(releases.store.read(key, limit_bytes=10_000))
    releases.replace(key, json.dumps({**found, field: value}).encode())
    named = "@latest" if document.startswith("latest") else f"/{FIRST}"
    with refused("DATA_LOSS"):
        SupabaseArtifactRepository(f"supabase://models/{MODEL}{named}").list_artifacts()


def test_a_manifest_that_verification_refuses_is_reported_as_lost_data(
    releases: Releases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = write_new_key(tmp_path / "keys", "signing.pem")
    monkeypatch.setenv("SUPABASE_BRIDGE_TRUSTED_KEYS", str(key.public))
    assert releases.store.name
    with refused("DATA_LOSS") as caught:
        SupabaseArtifactRepository(f"supabase://models/{MODEL}@latest").list_artifacts()
    cause = caught.value.__cause__
    assert isinstance(cause, ManifestRefusedError)
    assert cause.reason is Refusal.UNSIGNED


@pytest.mark.parametrize("releases", ["project"], indirect=True)
def test_a_project_that_answers_too_late_is_reported_as_unavailable(
    releases: Releases, simulator: StorageSimulator, tmp_path: Path
) -> None:
    assert releases.store.name
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / FILE_NAME).write_text("request_timeout = 0.3\n")
    simulator.inject(Fault(action=Hang(), path_contains="manifest.json"))
    with refused("TEMPORARILY_UNAVAILABLE") as caught:
        SupabaseArtifactRepository(f"supabase://models/{MODEL}@latest").list_artifacts()
    assert isinstance(caught.value.__cause__, DeadlineExceededError)


def test_what_was_downloaded_once_comes_from_the_cache(releases: Releases, tmp_path: Path) -> None:
    uri = f"supabase://models/{MODEL}@latest"
    assert fetched(SupabaseArtifactRepository(uri), "MLmodel", tmp_path) == f"flavors of {FIRST}"
    releases.store.delete([f"{MODEL}/{FIRST}/MLmodel"])
    assert fetched(SupabaseArtifactRepository(uri), "MLmodel", tmp_path) == f"flavors of {FIRST}"


def test_an_at_sign_means_nothing_in_a_bucket_of_artifacts(releases: Releases, tmp_path: Path) -> None:
    assert releases.store.name
    (tmp_path / "a@b").write_text("data")
    repository = get_artifact_repository("supabase://artifacts/x@latest")
    repository.log_artifact(str(tmp_path / "a@b"), f"{FIRST}")
    assert [info.path for info in repository.list_artifacts(FIRST)] == [f"{FIRST}/a@b"]


@pytest.mark.usefixtures("releases")
def test_nothing_is_written_into_a_release(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("other")
    repository = SupabaseArtifactRepository(f"supabase://models/{MODEL}@latest")
    with refused("PERMISSION_DENIED"):
        repository.log_artifact(str(tmp_path / "MLmodel"))
    with refused("PERMISSION_DENIED"):
        repository.delete_artifacts("MLmodel")
