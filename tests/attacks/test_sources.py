"""A trainer registers a version whose files are not its own to give."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from supabase_bridge.core.events import EventState
from supabase_bridge.mirror.errors import SourceRefusedError
from supabase_bridge.mirror.sources import Sources
from supabase_bridge.settings.model import Settings
from tests.attacks.refusals import refusal
from tests.support.scene import BUCKET, MODEL, MakeScene, Scene, tiny_onnx
from tests.support.simulators.storage import StorageSimulator

pytestmark = pytest.mark.exhaustive

SECRET = b"the other model's weights, which are none of yours"


def registered(scene: Scene, source: str) -> int:
    return scene.register(scene.log_run(), source=source)


def registered_without_run(scene: Scene, source: str) -> int:
    """A version without a run that names a place itself."""
    if not scene.client.search_registered_models(filter_string=f"name = '{MODEL}'"):
        scene.client.create_registered_model(MODEL)
    return int(scene.client.create_model_version(MODEL, source).version)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A model directory that MLflow does not own."""
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "model.onnx").write_bytes(tiny_onnx())
    (directory / "secret").write_bytes(SECRET)
    return directory


def test_a_source_at_the_clouds_metadata_service_is_refused(directory_scene: Scene) -> None:
    for source in [
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
        "http://[fd00:ec2::254]/latest/meta-data",
        "http://metadata.google.internal/computeMetadata/v1/",
    ]:
        assert "outside the allowed roots" in refusal(directory_scene, registered(directory_scene, source))


@pytest.mark.parametrize("form", ["{url}/model", "{url}/api/2.0/mlflow-artifacts/artifacts/1/model", "HTTP://{host}/x"])
def test_a_source_on_another_host_is_refused_and_the_host_is_never_asked(
    directory_scene: Scene, simulator: StorageSimulator, form: str
) -> None:
    source = form.format(url=simulator.url, host=simulator.url.removeprefix("http://"))
    assert "outside the allowed roots" in refusal(directory_scene, registered(directory_scene, source))
    assert simulator.calls() == []


def test_a_source_in_another_bucket_is_refused_although_the_service_key_could_read_it(
    supabase_scene: Scene, simulator: StorageSimulator
) -> None:
    for bucket in ["backups", "models-other", "MODELS", "models%2f..%2fbackups", "models@evil.example"]:
        simulator.put_object("backups", "model/model.onnx", SECRET)
        simulator.reset_calls()
        error = refusal(supabase_scene, registered(supabase_scene, f"supabase://{bucket}/model"))
        assert "outside the allowed roots" in error
        assert simulator.count(path_contains="backups") == 0


def test_a_source_on_another_supabase_project_is_read_from_ours_or_not_at_all(
    supabase_scene: Scene, simulator: StorageSimulator
) -> None:
    with StorageSimulator() as evil:
        host = evil.url.removeprefix("http://")
        assert "not read" in refusal(supabase_scene, registered(supabase_scene, f"supabase://{host}/models/x"))
        assert evil.calls() == []
    assert simulator.object_keys(BUCKET) == []


def test_a_source_that_is_a_system_file_is_refused(directory_scene: Scene) -> None:
    for source in [
        "/etc/passwd",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "file://localhost/etc",
        "/proc/self/environ",
        "/proc/self",
    ]:
        assert "outside the allowed roots" in refusal(directory_scene, registered(directory_scene, source))


def test_a_source_that_climbs_out_of_mlflows_artifacts_is_refused(directory_scene: Scene, outside: Path) -> None:
    for form in [
        "{root}/../../outside",
        "{root}/x/../../../outside",
        "{root}/..",
        "{root}-other",
        "file://{root}/../../outside",
        "file://{root}/%2e%2e/%2e%2e/outside",
        "file://{root}/%2E%2E%2F%2E%2E/outside",
    ]:
        assert outside.is_dir()
        source = form.format(root=directory_scene.settings.artifacts_destination)
        assert "not read" in refusal(directory_scene, registered(directory_scene, source))


def test_a_path_that_mlflow_would_decode_once_more_shows_no_foreign_folder(
    directory_scene: Scene, outside: Path
) -> None:
    scene = directory_scene
    Path(scene.settings.artifacts_destination).mkdir()
    version = registered_without_run(scene, f"{scene.settings.artifacts_destination}/%2e%2e/%2e%2e/{outside.name}")
    source = Sources(scene.runtime.registry, scene.settings).locate(scene.runtime.registry.version(MODEL, version))
    assert source.model_folder.files() == []


def test_the_worker_home_as_a_source_is_refused_so_that_its_database_cannot_be_published(
    directory_scene: Scene,
) -> None:
    home = directory_scene.settings.home
    assert (home / "mlflow.db").is_file()
    assert "outside the allowed roots" in refusal(directory_scene, registered(directory_scene, str(home)))


@pytest.mark.parametrize(
    "name", ["model.onnx", "two_tower_latest.pt", "model_meta.json", "summary.md", "requirements.txt"]
)
def test_a_link_among_the_artifacts_that_leads_to_a_foreign_file_is_not_followed(
    directory_scene: Scene, outside: Path, name: str
) -> None:
    run_id = directory_scene.log_run(files={"model/MLmodel": b"flavors: {}\n", "model/model.onnx": tiny_onnx()})
    version = directory_scene.register(run_id)
    link = Path(directory_scene.client.get_run(run_id).info.artifact_uri or "") / "model" / name
    link.unlink(missing_ok=True)
    link.symlink_to(outside / "secret")
    assert "outside the allowed roots" in refusal(directory_scene, version)


def test_a_folder_among_the_artifacts_that_leads_outside_is_not_entered(directory_scene: Scene, outside: Path) -> None:
    run_id = directory_scene.log_run(files={"model/MLmodel": b"flavors: {}\n"})
    version = directory_scene.register(run_id)
    root = Path(directory_scene.client.get_run(run_id).info.artifact_uri or "")
    (root / "model" / "weights").symlink_to(outside)
    assert "outside the allowed roots" in refusal(directory_scene, version)


def test_a_named_pipe_among_the_artifacts_does_not_make_the_worker_wait_for_ever(directory_scene: Scene) -> None:
    run_id = directory_scene.log_run(files={"model/model.onnx": tiny_onnx()})
    version = directory_scene.register(run_id)
    os.mkfifo(Path(directory_scene.client.get_run(run_id).info.artifact_uri or "") / "model" / "model_meta.json")
    assert "no regular file" in refusal(directory_scene, version)


def test_a_link_to_nowhere_among_the_artifacts_is_an_error_with_a_name(directory_scene: Scene) -> None:
    run_id = directory_scene.log_run(files={"model/model.onnx": tiny_onnx()})
    version = directory_scene.register(run_id)
    root = Path(directory_scene.client.get_run(run_id).info.artifact_uri or "")
    (root / "model" / "summary.md").symlink_to(root / "model" / "nothing")
    (handled,) = directory_scene.work()
    assert handled.state is EventState.PENDING
    assert "no such file" in handled.outcome.lower()
    assert "Error:" not in directory_scene.tags(version)["error"]


class _EndlessListing(BaseHTTPRequestHandler):
    """An artifact server in whose every folder there are a hundred more."""

    def do_GET(self) -> None:
        files = [{"path": f"folder{number}", "is_dir": True} for number in range(100)]
        body = json.dumps({"files": files}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def endless_listing() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _EndlessListing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/api/2.0/mlflow-artifacts/artifacts"
        server.shutdown()
        thread.join()


def test_folders_in_folders_without_end_are_given_up_after_a_bound(
    make_scene: MakeScene, directory_settings: Settings
) -> None:
    with endless_listing() as root:
        scene = make_scene(directory_settings, allowed_sources=(root,))
        version = registered_without_run(scene, f"{root}/1/model")
        source = Sources(scene.runtime.registry, scene.settings).locate(scene.runtime.registry.version(MODEL, version))
        with pytest.raises(SourceRefusedError, match="more than 10000 files and folders"):
            source.model_folder.files()


@pytest.mark.parametrize(
    "reference", ["runs:/{run}/../../../../outside", "runs:/{run}/%2e%2e/%2e%2e/%2e%2e/%2e%2e/outside"]
)
def test_a_reference_of_mlflows_own_that_climbs_out_is_refused(
    directory_scene: Scene, outside: Path, reference: str
) -> None:
    assert outside.is_dir()
    run_id = directory_scene.log_run()
    directory_scene.register(run_id, model="other")
    version = directory_scene.register(run_id, source=reference.format(run=run_id))
    handled = [item for item in directory_scene.work() if item.event.model == MODEL]
    assert [item.state for item in handled] == [EventState.DEAD]
    assert "failed" in directory_scene.tags(version)["status"]


def test_a_source_in_the_folder_of_unfinished_uploads_is_refused(
    supabase_scene: Scene, simulator: StorageSimulator
) -> None:
    simulator.put_object(BUCKET, "_tmp/0123456789abcdef0123456789abcdef", SECRET)
    refusal(supabase_scene, registered(supabase_scene, f"supabase://{BUCKET}/_tmp"))


def artifacts_of(scene: Scene, run_id: str) -> str:
    return str(scene.client.get_run(run_id).info.artifact_uri)


@pytest.mark.parametrize("form", ["{root}", "file://{root}/", "{root}/trainings"])
@pytest.mark.parametrize("with_run", [True, False])
def test_a_source_that_holds_other_runs_is_refused_and_shows_none_of_their_files(
    directory_scene: Scene, form: str, with_run: bool
) -> None:
    scene = directory_scene
    theirs = scene.log_run(files={"model/their-secret-name.onnx": SECRET, "model/other.onnx": SECRET})
    source = form.format(root=scene.settings.artifacts_destination)
    version = registered(scene, source) if with_run else registered_without_run(scene, source)
    error = refusal(scene, version)
    assert "is not read" in error
    assert "their-secret-name" not in error
    assert theirs not in error


@pytest.mark.parametrize("form", ["{theirs}/model", "{own}/../../{id}/artifacts/model", "runs:/{id}/model"])
def test_a_source_in_another_runs_artifacts_is_refused(directory_scene: Scene, form: str) -> None:
    scene = directory_scene
    other, run_id = scene.log_run(), scene.log_run()
    source = form.format(theirs=artifacts_of(scene, other), own=artifacts_of(scene, run_id), id=other)
    assert "the version's own run" in refusal(scene, scene.register(run_id, source=source))


def test_a_folder_of_releases_is_no_source_of_a_version(
    directory_scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = directory_scene
    monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(scene.settings.home))
    scene.train()
    scene.work()
    for source in (f"supabase://{BUCKET}", f"supabase://{BUCKET}//", f"supabase://{BUCKET}/{MODEL}"):
        assert "is not read" in refusal(scene, registered_without_run(scene, source))


def test_a_version_without_a_run_may_name_a_directory_below_an_operators_root(
    make_scene: MakeScene, directory_settings: Settings, outside: Path
) -> None:
    (outside / "secret").unlink()
    scene = make_scene(directory_settings, allowed_sources=(str(outside.parent),))
    version = registered_without_run(scene, str(outside))
    scene.promote(version)
    scene.work()
    assert scene.current() == version
    assert "is not read" in refusal(scene, registered_without_run(scene, str(outside.parent)))
