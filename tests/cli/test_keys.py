"""`supabase-bridge keys`, and a worker that signs, from the first key to a replaced one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from pydantic import SecretStr

from supabase_bridge.core.events import EventState
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import PutOptions
from supabase_bridge.trust.errors import Refusal
from supabase_bridge.trust.verify import TrustPolicy, verify_manifest
from tests.support.commands import Said, execute, invoke
from tests.support.scene import MODEL, MakeScene, Scene
from tests.support.signatures import key, refused_because, signer, trusting

pytestmark = pytest.mark.exhaustive

LATEST = ChannelPaths(model_key=MODEL, channel="latest")


def believed(scene: Scene, *names: str) -> int | None:
    """The version that a consumer who trusts these keys finds to be current."""
    data = scene.store.read(LATEST.manifest, limit_bytes=10**6)
    policy = TrustPolicy(keys=trusting(*names))
    return verify_manifest(data, policy=policy, channel=LATEST, seen=None, now=scene.clock()).current.model_version


def signing(scene: Scene, *arguments: object, name: str = "first") -> Said:
    environment = {**os.environ, "SUPABASE_BRIDGE_SIGNING_KEY": key(name).pem.decode()}
    return invoke(*arguments, "--home", scene.settings.home, environment=environment)


def signing_scene(make_scene: MakeScene, settings: Settings) -> Scene:
    scene = make_scene(settings, signing_key=SecretStr(key("first").pem.decode()))
    scene.promote(scene.train())
    scene.work()
    return scene


@pytest.fixture
def signed(make_scene: MakeScene, directory_settings: Settings) -> Scene:
    """A worker that signs, and a version that it made current."""
    return signing_scene(make_scene, directory_settings)


# --- the commands -----------------------------------------------------------------------------------------------------


def test_generate_makes_a_pair_that_list_knows(tmp_path: Path) -> None:
    made = execute("keys", "generate", "--out", "mine", directory=tmp_path)
    key_id = made.out.strip()
    private, public = tmp_path / "mine/signing-key.pem", tmp_path / f"mine/{key_id[:12]}.pem"
    assert (made.code, private.stat().st_mode & 0o777) == (0, 0o600)
    assert str(private) in made.err
    assert str(public) in made.err
    assert private.read_text() not in made.out + made.err

    def listed(*more: str) -> str:
        environment = {
            "SUPABASE_BRIDGE_SIGNING_KEY_FILE": str(private),
            "SUPABASE_BRIDGE_TRUSTED_KEYS": str(public),
            "SUPABASE_BRIDGE_MAX_AGE": "3600",
        }
        return invoke("keys", "list", "--home", tmp_path, *more, environment=environment).out

    assert listed() == f"{key_id} trusted, signs\n"
    assert json.loads(listed("--json")) == {
        "trusted": [key_id],
        "signing": key_id,
        "require_signature": True,
        "max_age_seconds": 3600.0,
    }


def test_generate_writes_over_nothing(tmp_path: Path) -> None:
    first = invoke("keys", "generate", "--out", tmp_path)
    before = (tmp_path / "signing-key.pem").read_bytes()
    again = invoke("keys", "generate", "--out", tmp_path)
    assert (first.code, again.code) == (0, 2)
    assert "exists already" in again.error
    assert (tmp_path / "signing-key.pem").read_bytes() == before


def test_list_needs_no_service_key_and_says_where_no_key_is_trusted(tmp_path: Path) -> None:
    said = invoke("keys", "list", "--home", tmp_path, environment={"SUPABASE_URL": "https://abc.supabase.co"})
    assert (said.code, said.out) == (0, "")
    assert "no key is trusted" in said.err


def test_list_shows_a_signing_key_that_nobody_trusts(tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_bytes(key("second").public.pem)
    environment = {
        "SUPABASE_BRIDGE_SIGNING_KEY": key("first").pem.decode(),
        "SUPABASE_BRIDGE_TRUSTED_KEYS": str(tmp_path / "other.pem"),
    }
    said = invoke("keys", "list", "--home", tmp_path, environment=environment)
    assert f"{key('first').public.key_id} signs, but is not trusted" in said.out


def test_a_wrong_key_ends_a_command_with_2_and_is_not_shown(tmp_path: Path) -> None:
    environment = {"SUPABASE_BRIDGE_SIGNING_KEY": "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----"}
    said = invoke("-v", "activate", MODEL, "20251031T093831Z", "--home", tmp_path, environment=environment)
    assert said.code == 2
    assert "SUPABASE_BRIDGE_SIGNING_KEY" in said.err
    assert "hunter2" not in said.err + said.out


def test_sign_release_needs_a_key(tmp_path: Path) -> None:
    said = invoke("keys", "sign-release", MODEL, "20251031T093831Z", "--home", tmp_path)
    assert (said.code, "SUPABASE_BRIDGE_SIGNING_KEY_FILE" in said.err) == (2, True)


# --- the worker -------------------------------------------------------------------------------------------------------


def test_a_promotion_ends_in_a_manifest_that_a_consumer_believes(make_scene: MakeScene, settings: Settings) -> None:
    signed = signing_scene(make_scene, settings)
    assert believed(signed, "first") == 1
    release = signed.head()
    assert release is not None
    assert "model.sig" in release.current.files


def test_no_key_is_in_any_object_tag_or_event(signed: Scene) -> None:
    secret = str(key("first").jwk.as_dict(private=True)["d"])
    told = [repr(signed.events()), repr(signed.tags(1)), repr(signed.settings), repr(signed.runtime)]
    told += [data.decode("latin-1") for data in signed.objects().values()]
    assert [text for text in told if secret in text or "PRIVATE KEY" in text] == []


def test_a_forged_log_entry_makes_the_promotion_a_dead_letter_until_it_is_gone(signed: Scene) -> None:
    head = signed.head()
    assert head is not None
    forged = signer("stranger").sign(head.model_copy(update={"sequence": 2}))
    signed.store.create(LATEST.history(2), forged.to_bytes(), PutOptions())
    signed.promote(signed.train())
    dead = [item for item in signed.work() if item.state is EventState.DEAD]
    assert dead
    assert all("no trusted key signed it" in item.outcome for item in dead)
    assert "history/00000002.json" in signed.tags(2)["error"]
    assert believed(signed, "first") == 1
    signed.store.delete([LATEST.history(2)])
    for item in dead:
        signed.runtime.outbox.retry(item.event.id)
    signed.work()
    assert believed(signed, "first") == 2


def test_a_file_swapped_between_mirroring_and_promotion_stops_the_promotion(signed: Scene) -> None:
    version = signed.train()
    signed.work()
    run_id = signed.tags(version)["run_id"]
    folder = signed.settings.home / "supabase" / signed.settings.bucket / MODEL / run_id
    meta = json.loads((folder / "model_meta.json").read_bytes())
    (folder / "model_meta.json").write_text(json.dumps({**meta, "embedding_dim": 1}))
    signed.promote(version)
    signed.work()
    assert "model.sig" in signed.tags(version)["error"]
    assert believed(signed, "first") == 1


def test_signing_is_switched_on_for_what_is_there(directory_scene: Scene) -> None:
    """Releases and a log without signatures: nothing of them is believed before somebody has vouched for it."""
    scene = directory_scene
    scene.promote(scene.train())
    scene.work()
    with refused_because(Refusal.UNSIGNED):
        believed(scene, "first")
    run_id = scene.tags(1)["run_id"]
    refused = signing(scene, "keys", "sign-manifest", MODEL)
    assert (refused.code, f"keys sign-release {MODEL} {run_id}" in refused.error) == (1, True)
    assert signing(scene, "keys", "sign-release", MODEL, run_id).code == 0
    said = signing(scene, "keys", "sign-manifest", MODEL)
    assert said.out == f"{LATEST.manifest} is {run_id} (entry 2, signed by {key('first').public.key_id})\n"
    assert believed(scene, "first") == 1


def test_rollback_and_activate_sign_as_the_worker_does(signed: Scene) -> None:
    signed.promote(signed.train(), archive=True)
    signed.work()
    first = signed.tags(1)["run_id"]
    assert signing(signed, "rollback", MODEL).code == 0
    assert believed(signed, "first") == 1
    assert signing(signed, "rollback", MODEL, "--without-mlflow").code == 0
    assert believed(signed, "first") == 2
    assert signing(signed, "activate", MODEL, first).code == 0
    assert believed(signed, "first") == 1
    unsigned = invoke("activate", MODEL, signed.tags(2)["run_id"], "--home", signed.settings.home)
    assert (unsigned.code, believed(signed, "first")) == (1, 1)
    assert "no signing key" in unsigned.error


def test_a_rollback_to_a_release_that_nobody_signed_changes_nothing(directory_scene: Scene) -> None:
    for _ in range(2):
        directory_scene.promote(directory_scene.train(), archive=True)
        directory_scene.work()
    before = (directory_scene.events(), directory_scene.objects())
    said = signing(directory_scene, "rollback", MODEL)
    assert (said.code, "keys sign-release" in said.error) == (1, True)
    assert (directory_scene.events(), directory_scene.objects()) == before


def test_mlflow_reads_signed_releases_alone_where_a_key_is_trusted(
    signed: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = signed.tags(1)["run_id"]
    (tmp_path / "public.pem").write_bytes(key("first").public.pem)
    for name, value in {
        "SUPABASE_BRIDGE_HOME": signed.settings.home,
        "SUPABASE_BRIDGE_CACHE": tmp_path / "cache",
        "SUPABASE_BRIDGE_TRUSTED_KEYS": tmp_path / "public.pem",
    }.items():
        monkeypatch.setenv(name, str(value))
    uris = [f"supabase://models/{MODEL}@latest/MLmodel", f"supabase://models/{MODEL}/{run_id}/MLmodel"]
    for uri in uris:
        assert Path(download_artifacts(uri)).read_bytes()
    head = signed.head()
    assert head is not None
    forged = signer("stranger").sign(head.model_copy(update={"sequence": 2}))
    signed.store.overwrite(LATEST.manifest, forged.to_bytes(), PutOptions())
    signed.store.overwrite(f"{MODEL}/{run_id}/model.sig", b"{}", PutOptions())
    for uri in uris:
        with pytest.raises(MlflowException, match=r"not trusted|no model signature"):
            download_artifacts(uri)
