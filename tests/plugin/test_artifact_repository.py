"""MLflow's contract of an artifact repository, tested for `supabase://` on each kind of store."""

from __future__ import annotations

import os
import shutil
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_supabase.artifact_repository import SupabaseArtifactRepository
from mlflow_supabase.signed_urls import SigningArtifactRepository
from supabase_bridge.core.layout import escape_path
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore, PutOptions
from supabase_bridge.storage.factory import open_store
from tests.plugin.refusals import refused
from tests.support.simulators.faults import Fault, Respond
from tests.support.simulators.storage import StorageSimulator

BUCKET = "artifacts"
ROOT = f"supabase://{BUCKET}/1/run/artifacts"
PREFIX = "1/run/artifacts"
VARIABLES = ("SUPABASE_URL", "SUPABASE_PROJECT_REF", "SUPABASE_SECRET_KEY", "SUPABASE_BRIDGE_CONFIG")


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write settings without a project."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SUPABASE_BRIDGE_ARTIFACT_BUCKETS", BUCKET)


@pytest.fixture
def project(
    request: pytest.FixtureRequest, simulator: StorageSimulator, monkeypatch: pytest.MonkeyPatch
) -> StorageSimulator:
    """Write settings with a project."""
    request.getfixturevalue("embedded")
    monkeypatch.setenv("SUPABASE_URL", simulator.url)
    monkeypatch.setenv("SUPABASE_SECRET_KEY", simulator.service_key)
    return simulator


@pytest.fixture(params=["embedded", "project"])
def bucket(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """Return the empty bucket behind the repository."""
    request.getfixturevalue(request.param)
    store = open_store(Settings.load(), BUCKET)
    store.ensure_bucket()
    yield store
    store.close()


@pytest.fixture
def repository(bucket: ObjectStore) -> SupabaseArtifactRepository:  # noqa: ARG001 (made before it is used)
    return SupabaseArtifactRepository(ROOT)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Create a directory to log, with files at three depths, an empty file and an empty directory."""
    root = tmp_path / "source"
    for name, data in {"MLmodel": b"flavors", "data/model.onnx": b"weights", "data/more/empty.txt": b""}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "nothing").mkdir()
    return root


def keys(store: ObjectStore) -> list[str]:
    return [info.key.removeprefix(f"{PREFIX}/") for info in store.list("")]


def listing(repository: SupabaseArtifactRepository, path: str | None = None) -> list[tuple[str, bool, int | None]]:
    return [(info.path, info.is_dir, info.file_size) for info in repository.list_artifacts(path)]


def test_a_file_is_logged_under_its_own_name(
    repository: SupabaseArtifactRepository, bucket: ObjectStore, source: Path
) -> None:
    repository.log_artifact(str(source / "MLmodel"))
    repository.log_artifact(str(source / "MLmodel"), "copies/of it")
    assert keys(bucket) == ["MLmodel", "copies/of it/MLmodel"]
    assert bucket.read(f"{PREFIX}/MLmodel", limit_bytes=100) == b"flavors"


def test_logging_a_file_again_replaces_it(
    repository: SupabaseArtifactRepository, bucket: ObjectStore, source: Path
) -> None:
    repository.log_artifact(str(source / "MLmodel"))
    (source / "MLmodel").write_bytes(b"other flavors")
    repository.log_artifact(str(source / "MLmodel"))
    assert bucket.read(f"{PREFIX}/MLmodel", limit_bytes=100) == b"other flavors"


@pytest.mark.parametrize(("path", "above"), [(None, ""), ("", ""), ("model", "model/"), ("a/model", "a/model/")])
def test_a_directory_is_logged_with_everything_below_it(
    repository: SupabaseArtifactRepository, bucket: ObjectStore, source: Path, path: str | None, above: str
) -> None:
    repository.log_artifacts(str(source), path)
    assert keys(bucket) == [above + name for name in ("MLmodel", "data/model.onnx", "data/more/empty.txt")]


def test_a_directory_of_many_files_is_logged_whole(
    repository: SupabaseArtifactRepository, bucket: ObjectStore, tmp_path: Path
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(50):
        (many / f"{number:02}").write_text(str(number))
    repository.log_artifacts(str(many))
    assert keys(bucket) == [f"{number:02}" for number in range(50)]


@pytest.mark.parametrize("root", [None, ""])
def test_a_listing_is_one_level_sorted_with_sizes(
    repository: SupabaseArtifactRepository, source: Path, root: str | None
) -> None:
    repository.log_artifacts(str(source))
    assert listing(repository, root) == [("MLmodel", False, 7), ("data", True, None)]
    deeper = [("data/model.onnx", False, 7), ("data/more", True, None)]
    assert listing(repository, "data") == deeper
    assert listing(repository, "data/") == deeper
    assert listing(repository, "data/more") == [("data/more/empty.txt", False, 0)]


@pytest.mark.parametrize("path", ["MLmodel", "absent", "dat"])
def test_a_listing_of_a_file_or_of_nothing_is_empty(
    repository: SupabaseArtifactRepository, source: Path, path: str
) -> None:
    repository.log_artifacts(str(source))
    assert repository.list_artifacts(path) == []


def test_a_listing_leaves_out_what_only_begins_alike(repository: SupabaseArtifactRepository, source: Path) -> None:
    SupabaseArtifactRepository(f"{ROOT}2").log_artifacts(str(source))
    assert repository.list_artifacts() == []


def test_the_root_of_a_bucket_is_a_repository_without_the_uploads_in_flight(bucket: ObjectStore, source: Path) -> None:
    repository = SupabaseArtifactRepository(f"supabase://{BUCKET}")
    repository.log_artifact(str(source / "MLmodel"))
    bucket.overwrite("_tmp/upload", b"", PutOptions())
    assert listing(repository) == [("MLmodel", False, 7)]
    with refused("INVALID_PARAMETER_VALUE"):
        repository.log_artifact(str(source / "MLmodel"), "_tmp")


def test_mlflow_downloads_a_directory_a_file_and_by_uri(
    repository: ArtifactRepository, source: Path, tmp_path: Path
) -> None:
    repository.log_artifacts(str(source), "model")
    for name in ("all", "one", "uri", "file"):
        (tmp_path / name).mkdir()
    repository.download_artifacts("", str(tmp_path / "all"))
    repository.download_artifacts("model/data/model.onnx", str(tmp_path / "one"))
    download_artifacts(artifact_uri=f"{ROOT}/model", dst_path=str(tmp_path / "uri"))
    download_artifacts(artifact_uri=f"{ROOT}/model/MLmodel", dst_path=str(tmp_path / "file"))
    everything = ["model/MLmodel", "model/data/model.onnx", "model/data/more/empty.txt"]
    assert files(tmp_path / "all") == files(tmp_path / "uri") == everything
    assert files(tmp_path / "one") == ["model/data/model.onnx"]
    assert files(tmp_path / "file") == ["MLmodel"]
    assert (tmp_path / "all/model/data/model.onnx").read_bytes() == b"weights"


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_downloading_what_is_not_there_says_so_and_leaves_nothing(
    repository: ArtifactRepository, tmp_path: Path
) -> None:
    target = tmp_path / "download"
    target.mkdir()
    with pytest.raises(MlflowException, match="absent"):
        repository.download_artifacts("absent", str(target))
    with refused("RESOURCE_DOES_NOT_EXIST"):
        repository._download_file("absent", str(target / "absent"))
    assert files(target) == []


def test_a_download_that_breaks_leaves_the_file_that_was_there(
    project: StorageSimulator, tmp_path: Path, source: Path
) -> None:
    project.put_object(BUCKET, f"{PREFIX}/other", b"")  # makes the bucket
    repository = SupabaseArtifactRepository(ROOT)
    repository.log_artifacts(str(source))
    target = tmp_path / "MLmodel"
    target.write_bytes(b"before")
    project.inject(Fault(action=Respond(status=403), method="GET"))
    with refused("PERMISSION_DENIED"):
        repository._download_file("MLmodel", str(target))
    assert target.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["MLmodel"]


def test_deleting_takes_a_file_or_everything_below_a_directory(
    repository: SupabaseArtifactRepository, bucket: ObjectStore, source: Path
) -> None:
    for directory in ("one", "ones", "two"):
        repository.log_artifacts(str(source), directory)
    repository.delete_artifacts("one")
    repository.delete_artifacts("one")
    repository.delete_artifacts("two/MLmodel")
    repository.delete_artifacts("ones/data/")
    assert keys(bucket) == ["ones/MLmodel", "two/data/model.onnx", "two/data/more/empty.txt"]
    repository.delete_artifacts()
    assert keys(bucket) == []


def test_a_whole_bucket_is_not_deleted(bucket: ObjectStore, source: Path) -> None:
    repository = SupabaseArtifactRepository(f"supabase://{BUCKET}/")
    repository.log_artifact(str(source / "MLmodel"))
    for path in (None, "", "/"):
        with refused("INVALID_PARAMETER_VALUE"):
            repository.delete_artifacts(path)
    assert keys(bucket) == ["MLmodel"]


@pytest.mark.parametrize("path", ["..", "../other", "a/../../b", "/etc", ".", "a//b", "a/./b", "a\n", "\ud800"])
def test_a_path_that_leaves_the_repository_or_cannot_be_a_key_is_refused(
    repository: SupabaseArtifactRepository, bucket: ObjectStore, source: Path, tmp_path: Path, path: str
) -> None:
    with refused("INVALID_PARAMETER_VALUE"):
        repository.log_artifact(str(source / "MLmodel"), path)
    with refused("INVALID_PARAMETER_VALUE"):
        repository.log_artifacts(str(source), path)
    with refused("INVALID_PARAMETER_VALUE"):
        repository.list_artifacts(path)
    with refused("INVALID_PARAMETER_VALUE"):
        repository.delete_artifacts(path)
    with refused("INVALID_PARAMETER_VALUE"):
        repository._download_file(path, str(tmp_path / "file"))
    assert keys(bucket) == []


NAMES = [
    "val~confusion%step%1%timestamp%1761903511000%uuid.png",
    "val#confusion+step+1.png",
    *(
        "100%.txt",
        "c#.txt",
        "a[0].npy",
        "a\\b",
        '{x}|^`<>".txt',
        "modèle.onnx",
        "混同行列.png",
        "😀.txt",
        "a$ACU$b",
        "$5$.txt",
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_listed_downloaded_and_deleted_under_that_name(
    repository: SupabaseArtifactRepository, bucket: ObjectStore, source: Path, tmp_path: Path, name: str
) -> None:
    (source / name).write_bytes(b"content")
    repository.log_artifact(str(source / name), f"images/{name}")
    assert listing(repository, "images") == [(f"images/{name}", True, None)]
    assert listing(repository, f"images/{name}") == [(f"images/{name}/{name}", False, 7)]
    repository._download_file(f"images/{name}/{name}", str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"content"
    assert keys(bucket) == [escape_path(f"images/{name}/{name}")]
    repository.delete_artifacts(f"images/{name}")
    assert keys(bucket) == []


@pytest.mark.parametrize("key", ["a$5$b.txt", "$$.txt", "price in $US$.csv", "a+b@c=1.txt", "$AGE$.txt", "$ACU=$"])
def test_a_name_that_was_stored_before_there_was_an_escape_is_found_as_it_is(
    repository: SupabaseArtifactRepository, bucket: ObjectStore, tmp_path: Path, key: str
) -> None:
    bucket.create(f"{PREFIX}/{key}", b"content", PutOptions())
    assert listing(repository) == [(key, False, 7)]
    repository._download_file(key, str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("name", ["x\n.txt", "x" * 253 + "é"])
def test_one_file_name_that_cannot_be_a_key_stops_the_batch_before_anything_is_sent(
    repository: SupabaseArtifactRepository, bucket: ObjectStore, source: Path, name: str
) -> None:
    (source / name).write_bytes(b"")
    with refused("INVALID_PARAMETER_VALUE") as caught:
        repository.log_artifacts(str(source))
    assert "ASCII letters" in str(caught.value)
    assert keys(bucket) == []


def test_what_is_no_local_file_or_directory_is_refused(repository: SupabaseArtifactRepository, source: Path) -> None:
    for wrong in (source, source / "absent"):
        with refused("INVALID_PARAMETER_VALUE"):
            repository.log_artifact(str(wrong))
    for wrong in (source / "MLmodel", source / "absent"):
        with refused("INVALID_PARAMETER_VALUE"):
            repository.log_artifacts(str(wrong))


@pytest.mark.parametrize("below", ["", "folder"])
@pytest.mark.parametrize("kind", ["a dangling link", "a link to itself", "a pipe", "a socket"])
def test_what_cannot_be_read_in_a_directory_stops_the_batch_before_anything_is_sent(
    repository: SupabaseArtifactRepository,
    bucket: ObjectStore,
    source: Path,
    kind: str,
    below: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    odd = source / below / "odd"
    odd.parent.mkdir(exist_ok=True)
    monkeypatch.chdir(odd.parent)
    with socket.socket(socket.AF_UNIX) as listening:
        if kind == "a pipe":
            os.mkfifo(odd)
        elif kind == "a socket":
            listening.bind("odd")
        else:
            odd.symlink_to("odd" if kind == "a link to itself" else "absent")
        with refused("INVALID_PARAMETER_VALUE") as caught:
            repository.log_artifacts(str(source))
    assert str(odd) in str(caught.value)
    assert keys(bucket) == []


def test_a_folder_that_cannot_be_listed_stops_the_batch_before_anything_is_sent(
    repository: SupabaseArtifactRepository, bucket: ObjectStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path is longer than the operating system accepts."""
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(source)
        for _ in range(17):
            Path("z" * 250).mkdir()
            os.chdir("z" * 250)
    with refused("INVALID_PARAMETER_VALUE") as caught:
        repository.log_artifacts(str(source))
    shutil.rmtree(source / ("z" * 250))
    assert "too long" in str(caught.value)
    assert str(source / ("z" * 250)) in str(caught.value)
    assert keys(bucket) == []


def test_a_link_to_a_file_is_logged_and_one_to_a_folder_is_not_followed_but_said(
    repository: SupabaseArtifactRepository, bucket: ObjectStore, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """MLflow's own repositories do the same, without a warning."""
    (source / "linked").symlink_to(source / "MLmodel")
    (source / "again").symlink_to(source / "data")
    repository.log_artifacts(str(source))
    assert keys(bucket) == ["MLmodel", "data/model.onnx", "data/more/empty.txt", "linked"]
    (said,) = [vars(record)["path"] for record in caplog.records if "link to a folder" in record.message]
    assert said == str(source / "again")


@pytest.mark.parametrize(
    "uri", ["supabase://", "supabase:///path", "supabase://models/a?b", "supabase://models/a#b", "s3://models/a"]
)
@pytest.mark.usefixtures("bucket")
def test_a_uri_that_names_no_bucket_and_path_is_refused_when_it_is_used(uri: str) -> None:
    repository = SupabaseArtifactRepository(uri)
    with refused("INVALID_PARAMETER_VALUE"):
        repository.list_artifacts()


@pytest.mark.usefixtures("bucket")
def test_a_uri_is_not_percent_decoded(bucket: ObjectStore, source: Path) -> None:
    SupabaseArtifactRepository(f"supabase://{BUCKET}/a%2e%2e/b").log_artifact(str(source / "MLmodel"))
    assert [info.key for info in bucket.list("")] == ["a$ACU$2e$ACU$2e/b/MLmodel"]


@pytest.mark.parametrize("name", ["private", "user:password@models", "models:443", "MODELS", "localhost"])
@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_the_settings_do_not_allow_is_refused(source: Path, name: str) -> None:
    repository = SupabaseArtifactRepository(f"supabase://{name}/path")
    with refused("PERMISSION_DENIED") as caught:
        repository.list_artifacts()
    assert f"the settings allow {BUCKET}, models" in str(caught.value)
    with refused("PERMISSION_DENIED"):
        repository.log_artifact(str(source / "MLmodel"))


def test_a_repository_can_be_made_where_settings_are_broken_but_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_URL", "no url")
    repository = SupabaseArtifactRepository(ROOT)
    with refused("INVALID_STATE"):
        repository.list_artifacts()


@pytest.mark.usefixtures("bucket")
def test_both_forms_in_which_mlflow_makes_a_repository_work() -> None:
    alone = SupabaseArtifactRepository(ROOT)
    assert (alone.artifact_uri, alone.tracking_uri, alone.registry_uri) == (ROOT, None, None)
    full = SupabaseArtifactRepository(ROOT, tracking_uri="http://t", registry_uri="supabase+sqlite:///r")
    assert (full.artifact_uri, full.tracking_uri, full.registry_uri) == (ROOT, "http://t", "supabase+sqlite:///r")
    found = get_artifact_repository(ROOT)
    assert type(found) is (SupabaseArtifactRepository if Settings.load().embedded else SigningArtifactRepository)
    assert found.list_artifacts() == []


def test_each_cause_has_a_code_of_its_own(
    project: StorageSimulator, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refused("RESOURCE_DOES_NOT_EXIST"):
        SupabaseArtifactRepository(ROOT).list_artifacts()
    project.put_object(BUCKET, f"{PREFIX}/MLmodel", b"")
    monkeypatch.setenv("SUPABASE_SECRET_KEY", "no.such.key")
    with refused("PERMISSION_DENIED") as caught:
        SupabaseArtifactRepository(ROOT).log_artifact(str(source / "MLmodel"))
    assert "no.such.key" not in str(caught.value)


@pytest.mark.usefixtures("embedded")
def test_releases_are_read_but_never_written_through_mlflow(source: Path) -> None:
    releases = open_store(Settings.load(), "models")
    releases.ensure_bucket()
    releases.create("two_tower/latest/manifest.json", b"{}", PutOptions())
    repository = SupabaseArtifactRepository("supabase://models/two_tower/latest")
    assert [found.path for found in repository.list_artifacts()] == ["manifest.json"]
    with refused("PERMISSION_DENIED") as caught:
        repository.log_artifacts(str(source))
    assert "artifact_buckets" in str(caught.value)
    with refused("PERMISSION_DENIED"):
        repository.delete_artifacts("manifest.json")
    assert keys(releases) == ["two_tower/latest/manifest.json"]


@pytest.mark.usefixtures("embedded")
def test_a_missing_bucket_is_made_when_the_first_artifact_is_logged(source: Path) -> None:
    SupabaseArtifactRepository(ROOT).log_artifact(str(source / "MLmodel"))
    assert [found.path for found in SupabaseArtifactRepository(ROOT).list_artifacts()] == ["MLmodel"]


def test_a_silent_project_is_reported_as_unavailable(project: StorageSimulator) -> None:
    project.stop()
    with refused("TEMPORARILY_UNAVAILABLE"):
        SupabaseArtifactRepository(ROOT).list_artifacts()


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("metrics.json", "application/json"),
        ("MLmodel", "application/octet-stream"),
        ("rows.csv.gz", "application/octet-stream"),
    ],
)
def test_artifacts_are_stored_with_their_type_and_without_caching(
    project: StorageSimulator, tmp_path: Path, name: str, media_type: str
) -> None:
    project.put_object(BUCKET, f"{PREFIX}/{name}", b"before")  # makes the bucket
    (tmp_path / name).write_bytes(b"{}")
    SupabaseArtifactRepository(ROOT).log_artifact(str(tmp_path / name))
    request = urllib.request.Request(
        f"{project.url}/storage/v1/object/authenticated/{BUCKET}/{PREFIX}/{name}",
        headers={"Authorization": f"Bearer {project.legacy_service_key}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["Content-Type"] == media_type
        assert answer.headers["Cache-Control"] == "no-cache"
