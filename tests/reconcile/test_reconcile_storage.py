"""What was deleted, edited or left behind in the store is found and made good; what is right is not touched."""

from __future__ import annotations

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import Any, cast

import pytest

from supabase_bridge.app.runtime import Stores
from supabase_bridge.core.events import EventState
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.layout import METRICS_NAME, ChannelPaths, ReleasePaths, RunId
from supabase_bridge.reconcile.findings import Finding, FindingKind, Remedy
from supabase_bridge.reconcile.release_check import Scope
from supabase_bridge.reconcile.releases import ExpectedRelease, merge_join
from supabase_bridge.releases.folders import Folder
from supabase_bridge.releases.manual import activate_manually
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.base import ObjectStore, PutOptions
from supabase_bridge.storage.errors import StoreUnavailableError
from supabase_bridge.worker.context import Services
from supabase_bridge.worker.processor import Processor
from supabase_bridge.worker.worker import Worker
from tests.support.scene import BUCKET, FIRST_TRAINING, MODEL, Scene, model_files
from tests.support.simulators.faults import Fault, Respond
from tests.support.simulators.storage import StorageSimulator

pytestmark = pytest.mark.exhaustive

MANIFEST = ChannelPaths(model_key=MODEL, channel="latest").manifest
LONG = timedelta(days=3)
FULL_OR_ANY = [
    Scope.FULL,
    *(pytest.param(scope, marks=pytest.mark.exhaustive) for scope in (Scope.INCREMENTAL, Scope.DEEP)),
]


@pytest.fixture
def released(scene: Scene) -> Scene:
    """Two versions, released one after the other, on every store there is."""
    return release_two(scene)


def release_two(scene: Scene) -> Scene:
    for _ in range(2):
        scene.promote(scene.train(metrics={"auc": 0.5}), archive=True)
        scene.work()
    return scene


def reconcile(scene: Scene, *, scope: Scope = Scope.FULL, dry_run: bool = False, sweep: bool = False) -> list[Finding]:
    with closing(Stores(scene.settings, create=False)) as untouched:
        reconciler = scene.runtime.reconciler(untouched if dry_run else scene.runtime.stores)
        return list(reconciler.run(now=scene.clock(), scope=scope, dry_run=dry_run, sweep=sweep))


def keys_of(scene: Scene, version: int) -> ReleasePaths:
    return ReleasePaths(model_key=MODEL, run_id=RunId.parse(scene.tags(version)["run_id"]))


def delete(scene: Scene, prefix: str) -> None:
    scene.store.delete(list(scene.objects(prefix)))


def kinds(found: list[Finding]) -> list[tuple[FindingKind, Remedy]]:
    return [(item.kind, item.remedy) for item in found]


# --- releases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", list(Scope))
def test_a_registry_in_step_is_left_alone(released: Scene, scope: Scope) -> None:
    objects, events = released.objects(), released.events()
    assert reconcile(released, scope=scope) == []
    assert (released.objects(), released.events()) == (objects, events)


@pytest.mark.parametrize("scope", FULL_OR_ANY)
def test_a_release_deleted_by_hand_is_mirrored_again_as_it_was(released: Scene, scope: Scope) -> None:
    before = released.objects()
    delete(released, keys_of(released, 2).prefix)
    assert kinds(reconcile(released, scope=scope)) == [(FindingKind.INCOMPLETE_RELEASE, Remedy.RECORDED)]
    assert reconcile(released)[0].detail.endswith("is on its way")
    released.work()
    assert released.objects() == before
    assert reconcile(released) == []


def test_a_single_file_deleted_by_hand_comes_back(released: Scene) -> None:
    before = released.objects()
    released.store.delete([keys_of(released, 1).onnx])
    reconcile(released)
    released.work()
    assert released.objects() == before


def test_an_edited_file_is_reported_and_kept_and_the_failure_is_not_repeated(released: Scene) -> None:
    keys = keys_of(released, 1)
    released.store.overwrite(keys.onnx, b"edited", PutOptions())
    assert kinds(reconcile(released, scope=Scope.INCREMENTAL)) == []
    assert kinds(reconcile(released)) == [(FindingKind.INCOMPLETE_RELEASE, Remedy.RECORDED)]
    (handled,) = released.work()
    assert (handled.state, keys.onnx in handled.outcome) == (EventState.DEAD, True)
    assert f"supabase-bridge remake {MODEL} 1" in released.tags(1)["error"]
    for scope in (Scope.FULL, Scope.DEEP):
        found = reconcile(released, scope=scope)
        assert kinds(found) == [
            (FindingKind.INCOMPLETE_RELEASE, Remedy.REPORTED),
            (FindingKind.DEAD_LETTER, Remedy.REPORTED),
        ]
        assert all(f"outbox retry {handled.event.id}" in item.detail for item in found)
    assert released.objects()[keys.onnx] == b"edited"


@pytest.mark.parametrize("name", ["summary.md", "metrics.json", "MLmodel", "requirements.txt", "model_meta.json"])
def test_a_file_of_an_older_release_comes_back_with_the_bytes_that_were_recorded(
    directory_scene: Scene, name: str
) -> None:
    scene = release_two(directory_scene)
    scene.promote(scene.train(metrics={"auc": 0.75}), archive=True)
    scene.work()
    before = scene.objects()
    for number in (1, 2):
        scene.store.delete([keys_of(scene, number).file(name)])
    assert kinds(reconcile(scene)) == [(FindingKind.INCOMPLETE_RELEASE, Remedy.RECORDED)] * 2
    assert {handled.state for handled in scene.work()} == {EventState.DONE}
    assert scene.objects() == before
    assert reconcile(scene, scope=Scope.DEEP) == []


def test_an_older_release_that_was_deleted_comes_back_as_it_was(directory_scene: Scene) -> None:
    scene = release_two(directory_scene)
    scene.promote(scene.train(metrics={"auc": 0.75}), archive=True)
    scene.work()
    before = scene.objects()
    delete(scene, keys_of(scene, 2).prefix)
    reconcile(scene)
    scene.work()
    assert scene.objects() == before


def test_features_and_a_tower_that_were_deleted_come_back_as_they_were(directory_scene: Scene) -> None:
    scene = directory_scene
    files = {**model_files(), "features/tags.json": b'{"drama": 0}'}
    scene.promote(scene.train(files=files, tags={"supabase.towers": "user"}))
    scene.work()
    before, paths = scene.objects(), keys_of(scene, 1)
    deleted = [paths.file("features/tags.json"), paths.file(paths.tower_name("user"))]
    assert set(deleted) < before.keys()
    scene.store.delete(deleted)
    reconcile(scene)
    scene.work()
    assert scene.objects() == before


def test_a_file_that_cannot_be_made_again_is_not_replaced_and_a_remade_release_takes_its_place(
    directory_scene: Scene,
) -> None:
    scene = release_two(directory_scene)
    scene.client.update_model_version(MODEL, "1", description="described later")
    old = keys_of(scene, 1)
    scene.store.delete([old.file("summary.md"), old.onnx])
    before = scene.objects()
    reconcile(scene)
    (handled,) = scene.work()
    assert (handled.state, "summary.md cannot be made again" in handled.outcome) == (EventState.DEAD, True)
    assert f"supabase-bridge remake {MODEL} 1" in scene.tags(1)["error"]
    after = scene.objects()
    assert after.keys() - before.keys() == {old.onnx}
    run_id = scene.runtime.processor.mirror(scene.runtime.registry.version(MODEL, 1), remake=True)
    assert (run_id, scene.tags(1)["run_id"]) == (f"{old.run_id}-v1", f"{old.run_id}-v1")
    assert {path: data for path, data in scene.objects().items() if path in after} == after
    scene.runtime.outbox.discard(handled.event.id)
    assert [item.kind for item in reconcile(scene)] == [FindingKind.DAMAGED_RELEASE]
    assert scene.runtime.processor.mirror(scene.runtime.registry.version(MODEL, 1), remake=True) == f"{old.run_id}-v1.2"


def test_a_release_in_previous_that_is_not_there_and_has_no_version_is_reported(directory_scene: Scene) -> None:
    scene = release_two(directory_scene)
    gone = keys_of(scene, 1)
    scene.client.delete_model_version(MODEL, "1")
    scene.work()
    delete(scene, gone.prefix)
    (found,) = reconcile(scene)
    assert (found.kind, found.subject, found.remedy) == (FindingKind.DAMAGED_RELEASE, gone.prefix, Remedy.REPORTED)


def test_versions_and_folders_meet_in_the_order_of_their_keys() -> None:
    def claim(key: str) -> ExpectedRelease:
        paths = ReleasePaths(model_key=key, run_id=RunId.parse("20251031T093831Z"))
        return ExpectedRelease(workspace="default", model=key, version=1, stage="None", paths=paths)

    def folder(key: str) -> Folder:
        return Folder(model_key=key, name="20251031T093831Z", newest_at=FIRST_TRAINING)

    # In the order of whole keys: '-' comes before '/'.
    claims, found = [claim("b"), claim("c-d"), claim("c"), claim("e")], [folder("a"), folder("c-d"), folder("c")]
    pairs = [
        (left and left.model, right and right.model_key) for left, right in merge_join(claims, [*found, folder("f")])
    ]
    assert pairs == [(None, "a"), ("b", None), ("c-d", "c-d"), ("c", "c"), ("e", None), (None, "f")]


def test_a_version_whose_status_is_none_of_ours_has_no_release_to_look_after(directory_scene: Scene) -> None:
    release_two(directory_scene)
    directory_scene.client.set_model_version_tag(MODEL, "1", "supabase.status", "archived")
    delete(directory_scene, keys_of(directory_scene, 1).prefix)
    assert reconcile(directory_scene, scope=Scope.INCREMENTAL) == []
    (found,) = reconcile(directory_scene)
    assert (found.kind, found.remedy) == (FindingKind.DAMAGED_RELEASE, Remedy.REPORTED)
    assert f"{MODEL}/latest/manifest.json names this release" in found.detail


def test_a_folder_that_no_version_claims_is_reported_once_old_and_never_deleted(directory_scene: Scene) -> None:
    release_two(directory_scene)
    directory_scene.store.create(f"{MODEL}/20200101T000000Z/notes.txt", b"mine", PutOptions())
    directory_scene.store.create(f"{MODEL}/notes/notes.txt", b"mine", PutOptions())
    before = directory_scene.objects()
    assert reconcile(directory_scene) == []
    directory_scene.clock.advance(LONG)
    (found,) = reconcile(directory_scene)
    assert (found.kind, found.subject) == (FindingKind.UNCLAIMED_FOLDER, f"{MODEL}/20200101T000000Z/")
    assert directory_scene.objects() == before


def begin_a_release(scene: Scene, paths: ReleasePaths) -> dict[str, bytes]:
    """What a mirror leaves that was stopped for good before `model_meta.json`; returns the objects without it."""
    before = scene.objects()
    for name in (paths.onnx_name, METRICS_NAME, "requirements.txt"):
        scene.store.create(paths.file(name), b"begun", PutOptions())
    return before


NOBODYS = ReleasePaths(model_key=MODEL, run_id=RunId.parse("20200101T000000Z"))


def test_a_half_written_release_of_nobodys_is_deleted_once_old_where_that_is_asked_for(released: Scene) -> None:
    without = begin_a_release(released, NOBODYS)
    begun = released.objects()
    assert reconcile(released, sweep=True) == []
    released.clock.advance(LONG)
    assert kinds(reconcile(released)) == [(FindingKind.UNCLAIMED_FOLDER, Remedy.REPORTED)]
    assert kinds(reconcile(released, sweep=True, dry_run=True)) == [(FindingKind.UNCLAIMED_FOLDER, Remedy.DELETED)]
    assert released.objects() == begun
    assert kinds(reconcile(released, sweep=True)) == [(FindingKind.UNCLAIMED_FOLDER, Remedy.DELETED)]
    assert released.objects() == without


def kept(scene: Scene) -> str:
    """Why a half-written release stays where its deletion is asked for; and that it stays."""
    scene.clock.advance(LONG)
    before = scene.objects()
    found, *others = reconcile(scene, sweep=True)
    assert (found.kind, found.remedy) == (FindingKind.UNCLAIMED_FOLDER, Remedy.REPORTED)
    assert {item.kind for item in others} <= {FindingKind.DAMAGED_RELEASE}
    assert scene.objects() == before
    return found.detail


def test_what_a_mirror_does_not_write_is_not_deleted_with_a_half_written_release(released: Scene) -> None:
    begin_a_release(released, NOBODYS)
    released.store.create(NOBODYS.file("notes.txt"), b"mine", PutOptions())
    assert kept(released).endswith("; it stays: no mirror wrote notes.txt")


def test_a_release_that_was_current_once_is_not_deleted_whatever_it_lacks(released: Scene) -> None:
    first = keys_of(released, 1)
    released.client.delete_model_version(MODEL, "1")
    released.work()
    released.store.delete([first.meta])
    assert kept(released).endswith(f"; it stays: {MODEL}/latest/history/00000001.json names it")


def test_a_log_that_is_too_large_to_be_read_keeps_what_is_half_written_and_ends_nothing(released: Scene) -> None:
    begin_a_release(released, NOBODYS)
    large = f"{MODEL}/other/history/00000001.json"
    released.store.create(large, b"x" * (LIMIT_BYTES + 1), PutOptions())
    released.clock.advance(LONG)
    before = released.objects()
    found = reconcile(released, sweep=True)
    assert kinds(found) == [
        (FindingKind.UNCLAIMED_FOLDER, Remedy.REPORTED),
        (FindingKind.DAMAGED_LOG, Remedy.REPORTED),
    ]
    assert found[0].detail.endswith(f"; it stays: {large} is too large to be read, and may name it")
    assert released.objects() == before


def test_each_log_is_read_once_however_much_is_half_written_and_may_go_meanwhile(
    supabase_scene: Scene, simulator: StorageSimulator
) -> None:
    release_two(supabase_scene)
    without = begin_a_release(supabase_scene, NOBODYS)
    begin_a_release(supabase_scene, ReleasePaths(model_key=MODEL, run_id=RunId.parse("20200102T000000Z")))
    supabase_scene.clock.advance(LONG)
    reconcile(supabase_scene)
    gone = b'{"statusCode": "404", "error": "not_found", "message": "Object not found"}'
    entry = f"{MODEL}/latest/history/00000001.json"
    simulator.inject(Fault(action=Respond(400, gone), path_contains=entry, times=1))
    asked = len(simulator.calls())
    assert kinds(reconcile(supabase_scene, sweep=True)) == [(FindingKind.UNCLAIMED_FOLDER, Remedy.DELETED)] * 2
    reads = [call.path for call in simulator.calls()[asked:] if call.method == "GET" and entry in call.path]
    assert len(reads) == 1
    assert supabase_scene.objects() == without


def test_a_full_pass_reads_each_manifest_and_its_log_once(supabase_scene: Scene, simulator: StorageSimulator) -> None:
    release_two(supabase_scene)
    asked = len(simulator.calls())
    assert reconcile(supabase_scene) == []
    read = [call.path.rpartition("/latest/")[2] for call in simulator.calls()[asked:] if "/latest/" in call.path]
    assert sorted(read) == ["history/00000002.json", "history/00000003.json", "manifest.json"]


class SweptMeanwhile:
    """A store in which somebody deletes a file just before its release gets `model_meta.json`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def move(self, key: str, target: str) -> None:
        self._store.delete([target.replace("model_meta.json", METRICS_NAME)])
        self._store.move(key, target)


def test_a_release_that_was_swept_while_it_was_made_is_reported_and_a_retry_makes_it_whole(
    directory_scene: Scene,
) -> None:
    scene = directory_scene
    version = scene.train()
    scene.promote(version)
    services = Services(
        settings=scene.settings,
        registry=scene.runtime.registry,
        outbox=scene.runtime.outbox,
        open_store=lambda bucket: cast("ObjectStore", SweptMeanwhile(scene.runtime.stores(bucket))),
    )
    Worker(name="w", settings=scene.settings, outbox=scene.runtime.outbox, processor=Processor(services)).drain()
    # The second event repairs what the first one could only report.
    first, second = sorted(scene.events(), key=lambda event: event.state.value)
    assert (first.state, second.state) == (EventState.DEAD, EventState.DONE)
    (found,) = reconcile(scene)
    assert (found.kind, f"supabase-bridge outbox retry {first.id}" in found.detail) == (FindingKind.DEAD_LETTER, True)
    scene.runtime.outbox.retry(first.id)
    scene.work()
    assert scene.current() == version
    assert reconcile(scene) == []


def test_nothing_half_written_is_deleted_while_changes_are_on_their_way(released: Scene) -> None:
    begin_a_release(released, NOBODYS)
    released.train()
    assert "; it stays: registry events are waiting" in kept(released)


def test_a_pass_goes_on_with_the_models_that_come_next(directory_scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supabase_bridge.reconcile.reconciler._OBJECTS_A_PASS", 1)
    names = ["a", "a b", "a-b", "b"]
    for name in names:
        directory_scene.train(model=name)
    directory_scene.work()
    for name in names:
        delete(directory_scene, f"{name}/")
    found = [[item.subject for item in reconcile(directory_scene, scope=Scope.INCREMENTAL)] for _ in range(5)]
    assert found[:4] == [[f"{name} version 1"] for name in names]
    assert found[4] == []


# --- channels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", [Scope.INCREMENTAL, Scope.FULL])
@pytest.mark.parametrize("content", [None, b"edited", pytest.param(b"{}", marks=pytest.mark.exhaustive)])
def test_a_manifest_edited_or_deleted_by_hand_is_restored_from_the_log(
    released: Scene, scope: Scope, content: bytes | None
) -> None:
    before = released.objects()
    if content is None:
        released.store.delete([MANIFEST])
    else:
        released.store.overwrite(MANIFEST, content, PutOptions())
    assert kinds(reconcile(released, scope=scope)) == [(FindingKind.MANIFEST_DIFFERS, Remedy.RESTORED)]
    assert released.objects() == before
    assert reconcile(released) == []


def test_a_manifest_set_back_to_an_older_entry_is_restored(released: Scene) -> None:
    before = released.objects()
    released.store.overwrite(MANIFEST, before[ChannelPaths(model_key=MODEL, channel="latest").history(1)], PutOptions())
    assert kinds(reconcile(released)) == [(FindingKind.MANIFEST_DIFFERS, Remedy.RESTORED)]
    assert released.objects() == before


def test_a_pointer_moved_on_purpose_stays(released: Scene) -> None:
    paths = ChannelPaths(model_key=MODEL, channel="latest")
    activate_manually(released.store, paths, keys_of(released, 1).run_id, now=released.clock())
    assert reconcile(released) == []
    released.work()
    assert released.current() == 1


def test_a_channel_whose_log_is_gone_is_made_anew_from_the_registry(directory_scene: Scene) -> None:
    release_two(directory_scene)
    delete(directory_scene, f"{MODEL}/latest/")
    assert kinds(reconcile(directory_scene)) == [(FindingKind.DAMAGED_LOG, Remedy.RECORDED)]
    directory_scene.work()
    assert directory_scene.current() == 2


def test_a_log_that_somebody_wrote_into_is_reported(directory_scene: Scene) -> None:
    release_two(directory_scene)
    directory_scene.store.overwrite(ChannelPaths(model_key=MODEL, channel="latest").history(2), b"{}", PutOptions())
    assert (FindingKind.DAMAGED_LOG, Remedy.REPORTED) in kinds(reconcile(directory_scene))


# --- leftovers --------------------------------------------------------------------------------------------------------


def test_temporary_keys_are_swept_once_old(released: Scene) -> None:
    released.store.create("_tmp/0123456789abcdef", b"half", PutOptions())
    before = released.objects()
    assert reconcile(released) == []
    released.clock.advance(LONG)
    assert kinds(reconcile(released)) == [(FindingKind.TEMPORARY_KEY, Remedy.DELETED)]
    assert released.objects("_tmp/") == {}
    assert released.objects() == before


def test_remembered_uploads_that_are_over_are_forgotten(directory_scene: Scene) -> None:
    uploads = directory_scene.settings.home / "uploads"
    uploads.mkdir()
    old, young = uploads / "old.json", uploads / "young.json"
    for path in (old, young):
        path.write_text("{}")
    past = (directory_scene.clock() - LONG).timestamp()
    os.utime(old, (past, past))
    assert [item.subject for item in reconcile(directory_scene, dry_run=True)][-1:] == ["old.json"]
    assert old.exists()
    assert kinds(reconcile(directory_scene)) == [(FindingKind.REMEMBERED_UPLOAD, Remedy.DELETED)]
    assert [path.name for path in uploads.iterdir()] == ["young.json"]


# --- a dry run --------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_the_same_and_writes_nothing(supabase_scene: Scene, simulator: StorageSimulator) -> None:
    release_two(supabase_scene)
    supabase_scene.store.create("_tmp/0123456789abcdef", b"half", PutOptions())
    delete(supabase_scene, keys_of(supabase_scene, 1).prefix)
    supabase_scene.store.delete([MANIFEST])
    supabase_scene.train()
    with supabase_scene.runtime.outbox.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM supabase_outbox WHERE version = 3")
    supabase_scene.clock.advance(LONG)
    objects, database = supabase_scene.objects(), dump(supabase_scene.settings)
    asked = len(simulator.calls())
    would = reconcile(supabase_scene, dry_run=True)
    writes = [
        call for call in simulator.calls()[asked:] if call.method not in {"GET", "HEAD"} and "list" not in call.path
    ]
    assert writes == []
    assert (supabase_scene.objects(), dump(supabase_scene.settings)) == (objects, database)
    assert reconcile(supabase_scene) == would
    assert len(would) == 4


def dump(settings: Settings) -> list[str]:

    with closing(sqlite3.connect(settings.home / "mlflow.db")) as database:
        return list(database.iterdump())


def test_a_dry_run_creates_no_bucket(supabase_scene: Scene, simulator: StorageSimulator) -> None:
    (found,) = reconcile(supabase_scene, dry_run=True)
    assert (found.kind, BUCKET in found.detail) == (FindingKind.UNCHECKED, True)
    assert [call.method for call in simulator.calls() if call.path.endswith("/bucket")] == []


def test_a_store_that_does_not_answer_ends_the_pass_and_the_next_one_does_the_rest(
    supabase_scene: Scene, simulator: StorageSimulator
) -> None:
    release_two(supabase_scene)
    supabase_scene.store.delete([MANIFEST])
    simulator.stop()
    with pytest.raises(StoreUnavailableError):
        reconcile(supabase_scene)
    simulator.start()
    assert kinds(reconcile(supabase_scene)) == [(FindingKind.MANIFEST_DIFFERS, Remedy.RESTORED)]


def test_two_passes_at_once_record_each_change_once(directory_scene: Scene) -> None:

    for _ in range(5):
        directory_scene.train()
    with directory_scene.runtime.outbox.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM supabase_outbox")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: reconcile(directory_scene), range(4)))
    assert sum(map(len, found)) == 5
    assert len(directory_scene.events()) == 5


# --- what anybody may write in MLflow ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", FULL_OR_ANY)
def test_tags_that_name_no_folder_no_channel_and_no_release_are_reported_and_hide_nothing(
    released: Scene, scope: Scope
) -> None:
    released.train(model="ours")
    released.client.set_registered_model_tag("ours", "supabase.key", "ö")
    released.client.set_model_version_tag("ours", "1", "supabase.run_id", "20251031T093831Z")
    released.client.set_model_version_tag("ours", "1", "supabase.channel.latest", "current since x")
    for channel in ("ö", "../x", "A", "x" * 200, ""):
        released.client.set_model_version_tag(MODEL, "1", f"supabase.channel.{channel}", "current since x")
    released.work()
    delete(released, MANIFEST)
    delete(released, keys_of(released, 1).prefix)
    released.store.create("_tmp/left", b"", PutOptions())
    released.clock.advance(LONG)
    found = reconcile(released, scope=scope)
    assert {FindingKind.MANIFEST_DIFFERS, FindingKind.INCOMPLETE_RELEASE, FindingKind.TEMPORARY_KEY} <= {
        item.kind for item in found
    }
    unusable = [item for item in found if item.kind is FindingKind.UNUSABLE_TAG]
    assert {item.subject for item in unusable} == {f"{MODEL} version 1", "ours version 1"}
    assert len(unusable) == 6
    assert {item.remedy for item in unusable} == {Remedy.REPORTED}
