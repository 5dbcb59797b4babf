"""Signing is on, and somebody else who can write to the bucket wants the worker to build on what they wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from pydantic import SecretStr

from supabase_bridge.app.runtime import open_runtime
from supabase_bridge.core.documents import FileRecord, Manifest, ModelMeta
from supabase_bridge.core.events import EventKind, EventState
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import PutOptions
from supabase_bridge.trust.model_signature import sign
from tests.support.scene import MODEL, MakeScene, Scene, tiny_onnx
from tests.support.signatures import key, signer

pytestmark = pytest.mark.exhaustive

LATEST = ChannelPaths(model_key=MODEL, channel="latest")


@pytest.fixture
def signing(make_scene: MakeScene, directory_settings: Settings) -> Scene:
    """A scene whose worker signs with the first key, and has signed two switches."""
    scene = make_scene(directory_settings, signing_key=SecretStr(key("first").pem.decode()))
    for _ in range(2):
        scene.promote(scene.train())
        scene.work()
    return scene


def newest(scene: Scene) -> Manifest:
    data = scene.objects(LATEST.manifest)[LATEST.manifest]
    manifest = Manifest.parse(data)
    assert manifest.signature is not None
    assert scene.objects()[LATEST.history(manifest.sequence)] == data
    return manifest


def put(scene: Scene, name: str, data: bytes) -> None:
    scene.store.overwrite(name, data, PutOptions(sha256=hashlib.sha256(data).hexdigest()))


def refused(scene: Scene) -> str:
    """Let the worker try another promotion, which must die without a change in the channel; why."""
    before = scene.objects(f"{MODEL}/latest/")
    version = scene.train()
    scene.promote(version)
    handled = scene.work()[0]
    assert (handled.event.kind, handled.state) == (EventKind.STAGE_CHANGED, EventState.DEAD)
    assert scene.objects(f"{MODEL}/latest/") == before
    assert scene.tags(version)["error"] == handled.outcome
    return handled.outcome


FORGERIES: dict[str, Callable[[Manifest], Manifest]] = {
    "not signed": lambda entry: entry.model_copy(update={"signature": None}),
    "with the signature of the entry before": lambda entry: entry,
    "signed by a stranger": lambda entry: signer("stranger").sign(entry),
    "with a stranger's notes": lambda entry: entry.model_copy(update={"release_notes": "harmless"}),
}


def test_a_forged_log_entry_is_not_built_upon_where_signing_is_on(signing: Scene) -> None:
    head = newest(signing)
    for forge in FORGERIES.values():
        forged = forge(head.model_copy(update={"sequence": head.sequence + 1}))
        put(signing, LATEST.history(forged.sequence), forged.to_bytes())
        put(signing, LATEST.manifest, forged.to_bytes())
        assert LATEST.history(forged.sequence) in refused(signing)
        signing.store.delete([LATEST.history(forged.sequence)])
    signing.promote(signing.train())
    assert signing.work()[-1].state is EventState.DONE
    assert newest(signing).sequence == head.sequence + 1


def test_a_manifest_of_a_stranger_is_not_believed_and_the_worker_signs_nothing_in_it(signing: Scene) -> None:
    head = newest(signing)
    evil = head.model_copy(update={"release_notes": "evil"})
    for forged in (evil.to_bytes(), signer("stranger").sign(evil).to_bytes(), b"\xff", b""):
        put(signing, LATEST.manifest, forged)
        signing.promote(signing.train())
        assert signing.work()[-1].state is EventState.DONE
        assert "evil" not in json.dumps([entry.decode() for entry in signing.objects(f"{MODEL}/latest/").values()])
    assert newest(signing).sequence == head.sequence + 4


def swap_onnx(scene: Scene, paths: ReleasePaths) -> dict[str, FileRecord]:
    """Another model in place of a release's, with records that fit it: what every key to the bucket can do."""
    data = tiny_onnx(99)
    own = FileRecord(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    meta = ModelMeta.parse(scene.objects()[paths.meta])
    changed = meta.model_copy(update={"files": {**meta.files, paths.onnx_name: own}}).to_bytes()
    put(scene, paths.onnx, data)
    put(scene, paths.meta, changed)
    record = FileRecord(size_bytes=len(changed), sha256=hashlib.sha256(changed).hexdigest())
    return {**meta.files, paths.onnx_name: own, "model_meta.json": record}


@pytest.mark.parametrize("resigned", [False, True], ids=["old signature", "a stranger's signature"])
def test_a_release_swapped_between_mirroring_and_promotion_never_becomes_current(
    signing: Scene, resigned: bool
) -> None:
    head = newest(signing)
    version = signing.train()
    signing.work()
    paths = ReleasePaths(model_key=MODEL, run_id=RunId.parse(signing.tags(version)["run_id"]))
    records = swap_onnx(signing, paths)
    if resigned:
        put(signing, paths.signature, sign(records, name=str(paths.run_id), key=key("stranger")))
    signing.promote(version)
    assert signing.work()[-1].state is EventState.DEAD
    assert newest(signing) == head


def test_a_former_release_that_was_swapped_is_not_rolled_back_to(signing: Scene) -> None:
    head = newest(signing)
    former = head.previous[0]
    swap_onnx(signing, ReleasePaths(model_key=MODEL, run_id=RunId.parse(former.run_id)))
    signing.promote(int(former.model_version or 0))
    assert signing.work()[-1].state is EventState.DEAD
    assert newest(signing) == head


def test_signatures_are_not_switched_off_by_a_worker_that_lost_its_key(signing: Scene) -> None:
    head = newest(signing)
    with open_runtime(signing.settings.with_changes(signing_key=None)) as without:
        assert "SUPABASE_BRIDGE_SIGNING_KEY" in refused(replace(signing, runtime=without))
    assert newest(signing) == head
