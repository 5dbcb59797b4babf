"""Sets of embeddings beside the bucket: which may be dropped, which are missing, and the commands for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from supabase_bridge.cli import main
from supabase_bridge.core.documents import FileRecord
from supabase_bridge.embeddings.sets import EmbeddingSets
from supabase_bridge.releases.channel import Channel
from supabase_bridge.releases.verify import verify_release
from supabase_bridge.storage.directory import DirectoryStore
from tests.support.embedding_sets import MODEL, WIDTH, rows
from tests.support.scene import Scene
from tests.support.small_releases import LATEST, NOON, event, keys_of, lay_out, run_id

RunCommand = Callable[..., Result]


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    """The embedded store of a home."""
    made = DirectoryStore(tmp_path / "supabase" / "models")
    made.ensure_bucket()
    return made


@pytest.fixture
def run(tmp_path: Path, embeddings_url: str) -> RunCommand:
    """Run a command of `embeddings` in that home, with the test's database."""
    items, users = rows(6), rows(2, prefix="user")
    np.savez(tmp_path / "items.npz", ids=np.array(items.ids), embeddings=items.matrix)
    np.savez(tmp_path / "users.npz", ids=np.array(users.ids), embeddings=users.matrix)
    variables = {"SUPABASE_BRIDGE_EMBEDDINGS_URL": embeddings_url, "SUPABASE_BRIDGE_HOME": str(tmp_path)}

    def call(*words: str, **environ: str) -> Result:
        return CliRunner().invoke(main, ["embeddings", *words], env={**variables, **environ})

    return call


def activate(store: DirectoryStore, number: int, channel: Channel) -> None:
    head = channel.read_head().head
    release = verify_release(store, keys_of(number))
    channel.activate(release, head=head, cause=event(number), published_at=NOON)


def delete(store: DirectoryStore, number: int) -> None:
    store.delete([item.key for item in store.list(keys_of(number).prefix)])


def test_a_set_is_loaded_listed_checked_and_dropped_by_commands(
    run: RunCommand, store: DirectoryStore, tmp_path: Path
) -> None:
    lay_out(store, 1, embedding_dim=WIDTH)
    name = f"{MODEL}/{run_id(1)}"
    files = ["--items", str(tmp_path / "items.npz"), "--users", str(tmp_path / "users.npz")]
    missing = run("load", name, *files)
    assert (missing.exit_code, "embeddings init two_tower" in missing.output) == (1, True)
    assert run("init", MODEL, "--dim", str(WIDTH)).exit_code == 0
    assert run("check", name).stdout == f"{name}: it has no set\n"
    for _ in range(2):
        loaded = run("load", *files, SUPABASE_BRIDGE_RELEASE=name)
        assert (loaded.exit_code, loaded.stdout.endswith(": 6 items, 2 users\n")) == (0, True)
    assert run("list").stdout == loaded.stdout
    assert '"state": "ready"' in run("list", "--json").stdout
    checked = run("check", SUPABASE_BRIDGE_RELEASE=name)
    assert (checked.exit_code, checked.stdout) == (0, f"{name}: ready\n")
    assert run("drop", name).stdout == f"{name} is dropped\n"
    assert run("drop", name).stdout == f"{name} had no embeddings\n"


def test_in_a_step_the_commands_need_no_key_of_the_bucket(run: RunCommand, sets: EmbeddingSets, tmp_path: Path) -> None:
    name, digest = f"{MODEL}/{run_id(1)}", FileRecord.of(b"onnx").sha256
    step = {
        "SUPABASE_URL": "https://x.supabase.co",
        "SUPABASE_BRIDGE_RELEASE": name,
        "SUPABASE_BRIDGE_ONNX_SHA256": digest,
        "SUPABASE_BRIDGE_RELEASE_BUCKET": "https://x.supabase.co, bucket models",
    }
    assert run("check", **step).exit_code == 1
    assert run("load", "--items", str(tmp_path / "items.npz"), **step).exit_code == 0
    found = sets.find(MODEL, str(run_id(1)))
    assert found is not None
    assert (found.onnx_sha256, found.bucket) == (digest, step["SUPABASE_BRIDGE_RELEASE_BUCKET"])
    assert run("check", **step).exit_code == 0
    assert run("check", **{**step, "SUPABASE_BRIDGE_ONNX_SHA256": "0" * 64}).exit_code == 1


def test_embeddings_of_another_width_than_the_release_declares_are_refused(
    run: RunCommand, store: DirectoryStore, tmp_path: Path
) -> None:
    lay_out(store, 1, embedding_dim=WIDTH + 1)
    run("init", MODEL, "--dim", str(WIDTH))
    done = run("load", f"{MODEL}/{run_id(1)}", "--items", str(tmp_path / "items.npz"))
    assert (done.exit_code, "the release's embedding_dim is 9" in done.output) == (1, True)


def test_a_set_that_a_manifest_names_as_current_or_previous_stays(
    run: RunCommand, store: DirectoryStore, tmp_path: Path
) -> None:
    run("init", MODEL, "--dim", str(WIDTH))
    channel = Channel(store, LATEST)
    for number in range(1, 5):
        lay_out(store, number)
        run("load", f"{MODEL}/{run_id(number)}", "--items", str(tmp_path / "items.npz"))
        activate(store, number, channel)
    # The log decides, whatever the manifest says.
    store.delete([LATEST.manifest])
    for number, role in ((4, "current"), (3, "previous"), (2, "previous")):
        refused = run("drop", f"{MODEL}/{run_id(number)}")
        message = f"{MODEL}/{run_id(number)} keeps its set, because the manifest of latest ({role}) names it"
        assert (refused.exit_code, message in refused.output) == (1, True)
    assert run("drop", f"{MODEL}/{run_id(1)}").exit_code == 0


def test_check_names_what_a_manifest_needs_and_what_has_no_release(
    run: RunCommand, store: DirectoryStore, tmp_path: Path
) -> None:
    run("init", MODEL, "--dim", str(WIDTH))
    channel = Channel(store, LATEST)
    for number in (1, 2, 3):
        lay_out(store, number)
    for number in (1, 3):
        run("load", f"{MODEL}/{run_id(number)}", "--items", str(tmp_path / "items.npz"))
    assert run("check", MODEL).stdout == f"{MODEL}: ready\n"
    activate(store, 1, channel)
    activate(store, 2, channel)
    delete(store, 3)
    done = run("check", MODEL)
    needed = f"{MODEL}/{run_id(2)}: the manifest of latest (current) needs its set, which is not ready\n"
    assert (done.exit_code, done.stdout) == (1, needed + f"{MODEL}/{run_id(3)}: its release is gone\n")


def test_a_set_goes_with_its_release_unless_a_manifest_or_another_bucket_has_it(
    run: RunCommand, store: DirectoryStore, tmp_path: Path, sets: EmbeddingSets
) -> None:
    channel = Channel(store, LATEST)
    for number in (1, 2, 3, 4):
        lay_out(store, number)
        run("load", f"{MODEL}/{run_id(number)}", "--items", str(tmp_path / "items.npz"))
    activate(store, 1, channel)
    for number in (1, 2, 3):
        delete(store, number)
    sets._connection.execute(
        "update supabase_bridge.embedding_sets set bucket = 'https://other.supabase.co, bucket models' "
        "where run_id = %s",
        (str(run_id(3)),),
    )
    done = run("drop", MODEL)
    assert done.stdout == f"{MODEL}/{run_id(2)} is dropped, because its release is gone\n"
    assert [found.run_id for found in sets.list()] == [str(run_id(number)) for number in (1, 3, 4)]


def test_a_worker_drops_the_sets_of_deleted_releases(
    run: RunCommand, directory_scene: Scene, tmp_path: Path, sets: EmbeddingSets, embeddings_url: str
) -> None:
    scene = directory_scene
    store = scene.runtime.stores(scene.settings.bucket)
    for number in (1, 2):
        lay_out(store, number)
        home = str(scene.settings.home)
        run("load", f"{MODEL}/{run_id(number)}", "--items", str(tmp_path / "items.npz"), SUPABASE_BRIDGE_HOME=home)
    store.delete([item.key for item in store.list(keys_of(2).prefix)])
    settings = scene.settings.with_changes(embeddings_url=SecretStr(embeddings_url))
    runtime = replace(scene.runtime, settings=settings)
    (task,) = [task for task in runtime.periodic_tasks() if task.name == "drop embeddings"]
    task.act(threading.Event())
    assert [found.run_id for found in sets.list()] == [str(run_id(1))]
