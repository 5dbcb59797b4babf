"""What goes along with a release: its model signature comes back with it, its embeddings and steps are dropped."""

from __future__ import annotations

from dataclasses import replace

from pydantic import SecretStr

from supabase_bridge.app.retention import open_remover, restore
from supabase_bridge.client.release import Release
from supabase_bridge.core.layout import SIGNATURE_NAME
from supabase_bridge.embeddings.sets import EmbeddingSets
from supabase_bridge.releases.manual import sign_release
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.steps.records import StepRecords
from tests.support.embedding_sets import rows
from tests.support.retained import ARCHIVE, DELETE, MakeRetained, paths_of, removed_names, run
from tests.support.scene import MODEL
from tests.support.signatures import sealed


def test_a_signed_release_comes_back_with_its_signature(make_retained: MakeRetained) -> None:
    signing = sealed("first")
    for name, table in (("archive", ARCHIVE), ("delete", DELETE)):
        scene = make_retained(table, name=name)
        paths = paths_of(scene, 1)
        sign_release(scene.store, paths, signing=signing)
        before = scene.objects(paths.prefix)
        run(scene)
        assert SIGNATURE_NAME in removed_names(scene, 1)
        restore(scene.runtime, MODEL, paths.run_id)
        assert scene.objects(paths.prefix) == before
        verify_release(scene.store, paths, signing=signing, read_all=True)


def test_the_archive_holds_a_complete_signed_release(make_retained: MakeRetained) -> None:
    signing = sealed("first")
    scene = make_retained(ARCHIVE)
    sign_release(scene.store, paths_of(scene, 1), signing=signing)
    run(scene)
    archive = scene.runtime.stores(str(ARCHIVE["archive_bucket"]))
    verify_release(archive, paths_of(scene, 1), signing=signing, read_all=True)


def test_embeddings_and_steps_go_with_their_release(
    make_retained: MakeRetained, sets: EmbeddingSets, embeddings_url: str
) -> None:
    scene = make_retained(DELETE)
    records = StepRecords(scene.runtime.outbox.engine, scene.settings.bucket)
    releases = {version: verify_release(scene.store, paths_of(scene, version)) for version in (1, 3)}
    for version, release in releases.items():
        records.record(release, "embeddings")
        of_set = Release(model=MODEL, run_id=str(release.paths.run_id), files=release.files, signed=False)
        sets.load(of_set, items=rows(3, seed=version))
    settings = scene.settings.with_changes(embeddings_url=SecretStr(embeddings_url))
    with open_remover(replace(scene.runtime, settings=settings)) as remover:
        assert [result.problem for result in remover.run()] == [None, None]
    assert [item.run_id for item in sets.list(MODEL)] == [str(releases[3].paths.run_id)]
    assert [sorted(records.succeeded(releases[version])) for version in (1, 3)] == [[], ["embeddings"]]
