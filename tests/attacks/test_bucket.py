"""Somebody who can write to the bucket changes what lies there, by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from pydantic import SecretStr

from mlflow_supabase.artifact_repository import SupabaseArtifactRepository
from supabase_bridge.client.release import of_meta
from supabase_bridge.core.documents import FileRecord, Manifest
from supabase_bridge.core.errors import InvalidDocumentError, InvalidObjectKeyError, SettingsError
from supabase_bridge.core.events import EventState
from supabase_bridge.core.layout import SEQUENCE_LIMIT
from supabase_bridge.mirror.source_files import ModelFile
from supabase_bridge.mirror.upload import has_content
from supabase_bridge.outbox.tables import META
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.errors import ReleaseDamagedError
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import PutOptions
from supabase_bridge.storage.factory import open_store
from supabase_bridge.storage.hashing import hash_body
from supabase_bridge.storage.supabase.client import SEAL_NAME, DigestAuthenticator
from supabase_bridge.trust.errors import Refusal
from tests.attacks.laid import FIRST, LATEST, Laid, keys_of, lay
from tests.attacks.refusals import download
from tests.support.commands import invoke
from tests.support.scene import BUCKET, MODEL, MakeScene, Scene, model_files, supabase_environment
from tests.support.signatures import refused_because
from tests.support.simulators.memory_store import MemoryStore
from tests.support.simulators.storage import CorruptRequest, CorruptResponse, Fault, StorageSimulator
from tests.support.simulators.storage_tokens import DIGEST_KEY

pytestmark = pytest.mark.exhaustive


@pytest.fixture
def laid() -> Laid:
    """A bucket, for what does not depend on the store."""
    return lay(MemoryStore())


@pytest.fixture(params=["directory", "supabase"])
def laid_anywhere(request: pytest.FixtureRequest) -> Iterator[Laid]:
    """The same bucket on every store there is."""
    with closing(open_store(request.getfixturevalue(f"{request.param}_settings"), BUCKET)) as store:
        yield lay(store)


def released(scene: Scene) -> Manifest:
    """Two versions released, the second one current."""
    for _ in range(2):
        scene.promote(scene.train())
        scene.work()
    head = scene.head()
    assert head is not None
    return head


def put(scene: Scene | Laid, key: str, value: bytes | dict[str, Any]) -> None:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    scene.store.overwrite(key, data, PutOptions())


def entry(head: Manifest, **changes: Any) -> dict[str, Any]:
    """The entry that would follow, changed."""
    return {**json.loads(head.to_bytes()), "sequence": head.sequence + 1, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"model_name": "other"},
        {"model_name": "../two_tower"},
        {"channel": "staging"},
        {"sequence": 9},
        {"sequence": 10**9},
        {"sequence": 2.5},
        {"sequence": True},
        {"current": {}},
        {"previous": "none"},
    ],
    ids=str,
)
def test_a_forged_log_entry_of_another_model_channel_or_sequence_is_not_built_upon(
    laid: Laid, changes: dict[str, Any]
) -> None:
    head = laid.head
    before = laid.objects(f"{MODEL}/latest/manifest.json")
    put(laid, LATEST.history(head.sequence + 1), entry(head, **changes))
    with pytest.raises(InvalidDocumentError):
        laid.switch(head.previous[0].run_id)
    assert laid.objects(f"{MODEL}/latest/manifest.json") == before


@pytest.mark.parametrize("field", ["onnx_path", "meta_path", "metrics_path", "user_onnx_path"])
@pytest.mark.parametrize(
    "path",
    [
        "other/20251031T093831Z/other.onnx",
        "two_tower/20200101T000000Z/two_tower.onnx",
        "two_tower/{run_id}/../../other/x.onnx",
        "two_tower/{run_id}/%2e%2e/x.onnx",
        "/two_tower/{run_id}/x.onnx",
        "https://evil.example/x.onnx",
        "two_tower/{run_id}-evil/x.onnx",
        "two_tower/{run_id}/",
        "two_tower\\{run_id}\\x.onnx",
        "two_tower/{run_id}/x\0.onnx",
        "",
    ],
)
def test_a_forged_log_entry_whose_files_lie_elsewhere_is_not_built_upon(laid: Laid, field: str, path: str) -> None:
    head = laid.head
    current = json.loads(head.to_bytes())["current"]
    forged = entry(head, current={**current, field: path.format(run_id=head.current.run_id)})
    put(laid, LATEST.history(head.sequence + 1), forged)
    with refused_because(Refusal.PATH) as caught:
        Channel(laid.store, LATEST).read_head()
    assert caught.value.detail.startswith(f"current.{field} is ")
    former = json.loads(head.to_bytes())["current"]
    put(laid, LATEST.history(head.sequence + 1), entry(head, previous=[{**former, field: path}]))
    with refused_because(Refusal.PATH):
        Channel(laid.store, LATEST).read_head()


@pytest.mark.parametrize(
    "run_id", ["../../other", "latest", "20251031T093831Z/../..", "20251331T000000Z", "", "%2e%2e", "x" * 900_000]
)
def test_a_forged_log_entry_whose_run_id_is_a_path_is_not_built_upon(laid: Laid, run_id: str) -> None:
    head = laid.head
    current = {**json.loads(head.to_bytes())["current"], "run_id": run_id}
    put(laid, LATEST.history(head.sequence + 1), entry(head, current=current))
    with refused_because(Refusal.PATH) as caught:
        Channel(laid.store, LATEST).read_head()
    assert len(str(caught.value)) < 1_000


def test_a_forged_last_entry_leaves_no_room_and_says_so(laid: Laid) -> None:
    head = laid.head
    forged = entry(head, sequence=SEQUENCE_LIMIT)
    put(laid, LATEST.history(SEQUENCE_LIMIT), forged)
    put(laid, LATEST.manifest, forged)
    with pytest.raises(InvalidDocumentError, match="no entry can follow"):
        laid.switch(head.previous[0].run_id)


@pytest.mark.parametrize(
    "data", [b"[" * 900_000, b"{}", b"\xff", b'{"a":' * 100_000], ids=lambda data: data[:4].decode("latin-1")
)
def test_a_log_entry_that_explodes_is_an_error_with_a_name(laid: Laid, data: bytes) -> None:
    put(laid, LATEST.history(laid.head.sequence + 1), data)
    with pytest.raises(InvalidDocumentError):
        laid.switch(FIRST)


def test_a_log_entry_larger_than_any_document_is_refused_unread(directory_scene: Scene) -> None:
    head = released(directory_scene)
    put(directory_scene, LATEST.history(head.sequence + 1), b" " * 2_000_000)
    directory_scene.promote(directory_scene.train())
    handled = directory_scene.work()[-1]
    assert handled.state is EventState.DEAD
    assert "is larger than" in handled.outcome


def test_a_manifest_changed_by_hand_is_not_believed_and_the_next_switch_puts_the_log_back(
    directory_scene: Scene,
) -> None:
    head = released(directory_scene)
    forged = entry(head, current={**json.loads(head.to_bytes())["current"], "onnx_path": "evil/x.onnx"})
    put(directory_scene, LATEST.manifest, forged)
    said = invoke("status", "--home", directory_scene.settings.home)
    assert "MANIFEST DIFFERS FROM ITS LOG" in said.out
    directory_scene.promote(directory_scene.train())
    directory_scene.work()
    now = directory_scene.head()
    assert now is not None
    assert (now.sequence, now.previous[0].run_id) == (head.sequence + 1, head.current.run_id)
    assert b"evil" not in directory_scene.objects(LATEST.manifest)[LATEST.manifest]


# --- the releases -----------------------------------------------------------------------------------------------------


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_one_changed_byte_in_any_recorded_file_keeps_a_release_from_being_activated(laid_anywhere: Laid) -> None:
    laid = laid_anywhere
    head = laid.head
    former = head.previous[0].run_id
    files = laid.objects(f"{MODEL}/{former}/")
    recorded = {key: data for key, data in files.items() if not key.endswith("/model_meta.json")}
    assert len(recorded) == 6
    for key, data in recorded.items():
        put(laid, key, flipped(data, len(data) // 2))
        with pytest.raises(ReleaseDamagedError) as caught:
            laid.switch(former)
        assert caught.value.key == key
        put(laid, key, data)
    assert laid.head == head


def test_a_byte_more_or_less_in_any_recorded_file_keeps_a_release_from_being_activated(laid: Laid) -> None:
    former = laid.head.previous[0].run_id
    for key, data in laid.objects(f"{MODEL}/{former}/").items():
        if key.endswith("/model_meta.json"):
            continue
        for changed in (data + b"x", data[:-1], b""):
            put(laid, key, changed)
            with pytest.raises(ReleaseDamagedError):
                laid.switch(former)
        laid.store.delete([key])
        with pytest.raises(ReleaseDamagedError, match="missing"):
            laid.switch(former)
        put(laid, key, data)


@pytest.mark.parametrize(
    "change",
    [
        {"model_name": "other"},
        {"run_id": "20200101T000000Z"},
        {"files": {}},
        {"files": {"../../other/secret": {"size_bytes": 1, "sha256": "0" * 64}}},
        {"files": {"/etc/passwd": {"size_bytes": 1, "sha256": "0" * 64}}},
        {"files": {"a\\b": {"size_bytes": 1, "sha256": "0" * 64}}},
        {"files": {"x": {"size_bytes": -1, "sha256": "0" * 64}}},
        {"files": {"x": {"size_bytes": 1, "sha256": "0" * 64 + "\n"}}},
        {"files": {"x": {"size_bytes": 1, "sha256": "G" * 64}}},
    ],
    ids=str,
)
def test_a_model_meta_of_another_release_or_with_files_elsewhere_is_refused(laid: Laid, change: dict[str, Any]) -> None:
    former = laid.head.previous[0].run_id
    keys = keys_of(former)
    value = json.loads(laid.objects(keys.meta)[keys.meta])
    files = {**value["files"], **change["files"]} if change.get("files") else change.get("files", value["files"])
    put(laid, keys.meta, {**value, **change, "files": files})
    with pytest.raises((ReleaseDamagedError, InvalidDocumentError, InvalidObjectKeyError)):
        laid.switch(former)
    with pytest.raises(InvalidDocumentError) if change != {"files": {}} else nullcontext():
        of_meta(laid.objects(keys.meta)[keys.meta], keys)


def test_the_model_meta_of_another_model_copied_into_a_release_is_refused(laid: Laid) -> None:
    former = laid.head.previous[0].run_id
    laid.lay(former, "other")
    foreign = laid.objects("other/")[keys_of(former, "other").meta]
    put(laid, f"{MODEL}/{former}/model_meta.json", foreign)
    with pytest.raises(ReleaseDamagedError, match="another model or run_id"):
        laid.switch(former)


def test_other_content_laid_under_a_releases_keys_before_it_is_mirrored_is_never_adopted(
    directory_scene: Scene,
) -> None:
    run_id = "20251031T093831Z"
    names = (f"{MODEL}_{run_id}.onnx", f"{MODEL}_{run_id}.pt", "MLmodel", "metrics.json")
    for name in names:
        put(directory_scene, f"{MODEL}/{run_id}/{name}", b"evil")
    version = directory_scene.runtime.registry.version(MODEL, directory_scene.train())
    assert directory_scene.runtime.processor.mirror(version) == f"{run_id}-v1"
    assert directory_scene.objects(f"{MODEL}/{run_id}/") == {f"{MODEL}/{run_id}/{name}": b"evil" for name in names}


OURS, EVIL = bytes(100_000), bytes(99_999) + b"x"
SAYS = {
    "nothing": {},
    "the truth": {"sha256": hash_body(EVIL).sha256},
    "that it is ours": {"sha256": hash_body(OURS).sha256},
    "that it is ours, with the seal of ours": {
        "sha256": hash_body(OURS).sha256,
        SEAL_NAME: str(DigestAuthenticator(SecretStr(DIGEST_KEY)).mac(hash_body(OURS))),
    },
}


@pytest.mark.parametrize("metadata", SAYS.values(), ids=SAYS.keys())
def test_other_content_under_a_model_files_key_is_never_adopted_whatever_its_metadata_says(
    supabase_settings: Settings, simulator: StorageSimulator, tmp_path: Path, metadata: dict[str, str]
) -> None:
    key = keys_of(FIRST).onnx
    simulator.put_object(BUCKET, key, EVIL, metadata)
    (tmp_path / "ours").write_bytes(OURS)
    ours = ModelFile(record=FileRecord.of(OURS), path=tmp_path / "ours")
    with closing(open_store(supabase_settings, BUCKET)) as store:
        assert [has_content(store, info, ours) for info in store.list(key)] == [False]
    assert simulator.object_bytes(BUCKET, key) == EVIL
    assert simulator.object_keys(BUCKET) == [key]


# --- what the store says of an object, and what it sends -------------------------------------------------------------


def serve_from(
    scene: Scene, simulator: StorageSimulator, monkeypatch: pytest.MonkeyPatch, path: str
) -> SupabaseArtifactRepository:
    """What `mlflow models serve` reads a release with."""
    for name, value in supabase_environment(simulator).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(scene.settings.home))
    return SupabaseArtifactRepository(f"supabase://{BUCKET}/{path}")


def test_a_file_replaced_under_metadata_that_lies_about_its_sha256_is_refused_by_whoever_downloads_it(
    supabase_scene: Scene, simulator: StorageSimulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    head = released(supabase_scene)
    key = head.current.onnx_path
    data, record = simulator.object_bytes(BUCKET, key), simulator.object_metadata(BUCKET, key)
    simulator.put_object(BUCKET, key, flipped(data, 10), record)
    repository = serve_from(supabase_scene, simulator, monkeypatch, f"{MODEL}@latest")
    (tmp_path / "got").mkdir()
    with pytest.raises(MlflowException, match="is damaged"):
        download(repository, key.rsplit("/", 1)[1], str(tmp_path / "got"))
    assert not list((tmp_path / "got").rglob("*.onnx"))


def test_a_model_meta_changed_after_the_switch_is_refused_by_whoever_comes_through_the_channel(
    supabase_scene: Scene, simulator: StorageSimulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    head = released(supabase_scene)
    data = simulator.object_bytes(BUCKET, head.current.meta_path)
    simulator.put_object(BUCKET, head.current.meta_path, data.replace(b"two_tower", b"two_towel", 1))
    repository = serve_from(supabase_scene, simulator, monkeypatch, f"{MODEL}@latest")
    with pytest.raises(MlflowException, match="is damaged"):
        download(repository, "model_meta.json", str(tmp_path))


def test_a_byte_changed_on_its_way_up_gets_no_release(supabase_scene: Scene, simulator: StorageSimulator) -> None:
    version = supabase_scene.train()
    simulator.inject(Fault(action=CorruptRequest(40), method="POST", path_contains="/object/models/_tmp/"))
    supabase_scene.promote(version)
    handled = supabase_scene.work()
    assert "is damaged" in handled[0].outcome
    for name in simulator.object_keys(BUCKET):
        assert not name.endswith("model_meta.json") or handled[-1].state is EventState.DONE


def test_a_byte_changed_on_its_way_down_is_refused(
    supabase_scene: Scene, simulator: StorageSimulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    head = released(supabase_scene)
    name = head.current.onnx_path.rsplit("/", 1)[1]
    repository = serve_from(supabase_scene, simulator, monkeypatch, f"{MODEL}/{head.current.run_id}")
    simulator.inject(Fault(action=CorruptResponse(7), method="GET", path_contains=name))
    with pytest.raises(MlflowException, match="is damaged"):
        download(repository, name, str(tmp_path))


# --- MLflow's own ways into the bucket --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack",
    [
        lambda repository, file: repository.log_artifact(str(file)),
        lambda repository, file: repository.log_artifact(str(file), "latest"),
        lambda repository, file: repository.log_artifacts(str(file.parent), "latest"),
        lambda repository, _: repository.delete_artifacts("latest"),
        lambda repository, _: repository.delete_artifacts(),
        lambda repository, _: repository.log_artifact_from_stream(BytesIO(b"evil"), "manifest.json", "latest"),
    ],
    ids=["file", "file in a folder", "folder", "delete", "delete all", "stream"],
)
@pytest.mark.parametrize(
    "place", [f"supabase://{BUCKET}/{MODEL}", f"SUPABASE://{BUCKET}/{MODEL}/", f"supabase://{BUCKET}/new"]
)
def test_whoever_logs_artifacts_through_mlflow_cannot_write_or_delete_where_releases_are(
    directory_scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    place: str,
    attack: Callable[[SupabaseArtifactRepository, Path], None],
) -> None:
    monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(directory_scene.settings.home))
    put(directory_scene, LATEST.manifest, b"{}")
    before = directory_scene.objects()
    (tmp_path / "logged").mkdir()
    file = tmp_path / "logged" / "manifest.json"
    file.write_bytes(b"evil")
    with pytest.raises(MlflowException, match="holds releases"):
        attack(SupabaseArtifactRepository(place), file)
    assert directory_scene.objects() == before


@pytest.mark.parametrize(
    "place",
    ["supabase://backups/x", "supabase://models-other/x", "supabase://../models/x", "supabase://evil.example:80/x"],
)
def test_a_bucket_that_the_settings_do_not_name_is_not_opened_through_mlflow(
    directory_scene: Scene, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(directory_scene.settings.home))
    with pytest.raises(MlflowException, match="is not allowed"):
        SupabaseArtifactRepository(place).list_artifacts()
    with pytest.raises(SettingsError):
        open_store(directory_scene.settings.with_changes(artifact_buckets=("mine",)), place.split("/")[2])


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "a/../../secret",
        "/etc/passwd",
        "a\0b",
        "_tmp/x",
        "a//b",
        "a\x1b[2J",
    ],
)
def test_a_path_that_climbs_out_of_an_artifact_folder_is_refused_for_reading_and_writing(
    directory_scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str
) -> None:
    monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(directory_scene.settings.home))
    monkeypatch.setenv("SUPABASE_BRIDGE_ARTIFACT_BUCKETS", "mine")
    put(directory_scene, "secret", b"secret")
    root = "supabase://mine" if path == "_tmp/x" else "supabase://mine/1"
    repository = SupabaseArtifactRepository(root)
    file = tmp_path / "a.txt"
    file.write_bytes(b"x")
    for attack in (
        lambda: repository.log_artifact(str(file), path),
        lambda: repository.delete_artifacts(path),
        lambda: repository._download_file(path, str(tmp_path / "got")),
        lambda: repository.list_artifacts(path),
    ):
        with pytest.raises(MlflowException):
            attack()
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize("path", ["%2e%2e/secret", "a\\..\\b", "ａ/．．/b", "~root"])
def test_a_path_that_looks_like_a_way_out_of_an_artifact_folder_is_a_name_inside_it(
    directory_scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str
) -> None:
    monkeypatch.setenv("SUPABASE_BRIDGE_HOME", str(directory_scene.settings.home))
    monkeypatch.setenv("SUPABASE_BRIDGE_ARTIFACT_BUCKETS", "mine")
    file = tmp_path / "a.txt"
    file.write_bytes(b"x")
    repository = SupabaseArtifactRepository("supabase://mine/1")
    repository.log_artifact(str(file), path)
    assert [item.path for item in repository.list_artifacts(path)] == [f"{path}/a.txt"]
    bucket = directory_scene.settings.home / "supabase"
    (stored,) = [found for found in bucket.rglob("*") if found.is_file() and found.read_bytes() == b"x"]
    assert stored.is_relative_to(bucket / "mine" / "1")


def test_a_second_registry_on_one_bucket_moves_no_channel_of_the_first_until_an_operator_adopts_it(
    make_scene: MakeScene, directory_settings: Settings, tmp_path: Path
) -> None:
    first = make_scene(directory_settings)
    first.promote(first.train())
    first.work()
    before = first.head()
    assert before is not None
    home = tmp_path / "second"
    second = make_scene(Settings.load(home=home, environ={}))
    (home / "supabase").symlink_to(directory_settings.home / "supabase")
    with second.runtime.outbox.engine.begin() as connection:  # The scenes' databases are copies of one.
        connection.execute(META.update().values(registry_id="0b9e1f43-0000-4000-8000-000000000002"))
    version = second.train(files=model_files(9), tags={"supabase.run_id": "20251101T000000Z"})
    second.promote(version)
    refused = second.work()[0]
    assert refused.state is EventState.DEAD
    assert "another registry" in refused.outcome
    assert first.head() == before
    said = invoke("adopt", f"{MODEL}@latest", "--home", home)
    assert said.out == f"{MODEL} latest is adopted (entry 2)\n", said.err
    adopted = first.head()
    assert adopted is not None
    assert adopted.cause is not None
    assert (adopted.current, adopted.cause.adopted) == (before.current, True)
    assert invoke("adopt", MODEL, "--home", home).out == f"{MODEL} latest belongs to this registry already\n"
    second.runtime.outbox.retry(refused.event.id)
    second.work()
    head = first.head()
    assert head is not None
    assert head.current.run_id == "20251101T000000Z"
    first.promote(first.train())
    assert first.work()[0].state is EventState.DEAD


def test_a_malformed_key_of_one_model_keeps_no_other_from_being_adopted(directory_scene: Scene) -> None:
    scene = directory_scene
    scene.client.create_registered_model("a_broken_one")
    scene.client.set_registered_model_tag("a_broken_one", "supabase.key", "../../x")
    scene.promote(scene.train())
    scene.work()
    said = invoke("adopt", "--all", "--home", scene.settings.home)
    assert (said.code, said.out) == (1, f"{MODEL} latest belongs to this registry already\n")
    assert "a_broken_one is not adopted: model '../../x' cannot be a folder" in said.err
