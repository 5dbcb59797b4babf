"""`supabase-bridge sync`: what no event said is found, and an existing registry is mirrored."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from supabase_bridge.core.events import EventState
from supabase_bridge.core.layout import META_NAME, ChannelPaths
from tests.support.commands import EXECUTABLE, Said, clean_environment, execute, invoke
from tests.support.processes import started, surroundings
from tests.support.scene import BUCKET, MODEL, Scene, model_files, store_objects, supabase_environment
from tests.support.served import until
from tests.support.simulators.storage import StorageSimulator

MANIFEST = ChannelPaths(model_key=MODEL, channel="latest").manifest


@pytest.fixture
def unseen(directory_scene: Scene) -> Scene:
    """A registry with three versions from before the plugin came, the second in Production."""
    return without_events(directory_scene)


def without_events(scene: Scene) -> Scene:
    for _ in range(3):
        scene.train()
    scene.promote(2)
    with scene.runtime.outbox.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM supabase_outbox")
    return scene


def sync(scene: Scene, *arguments: object) -> Said:
    return invoke("sync", *arguments, "--home", scene.settings.home)


def test_what_is_found_is_printed_and_recorded_for_the_worker(unseen: Scene) -> None:
    said = sync(unseen)
    assert said.code == 0
    assert said.out.splitlines() == [
        "unrecorded_change two_tower version 2: None -> Production [recorded]",
        "unrecorded_change two_tower version 2: version_created [recorded]",
        "unrecorded_change two_tower version 1: version_created [recorded]",
        "unrecorded_change two_tower version 3: version_created [recorded]",
    ]
    assert said.err.splitlines()[-1] == "4 recorded"
    unseen.work()
    assert unseen.current() == 2
    assert sync(unseen).err.splitlines()[-1] == "no differences"


def test_a_dry_run_prints_what_would_be_done_and_does_nothing(unseen: Scene) -> None:
    said = sync(unseen, "--dry-run", "--all")
    assert said.code == 0
    assert [line for line in said.out.splitlines() if not line.endswith("[would be recorded]")] == [
        line for line in said.out.splitlines() if line.startswith("unchecked")
    ]
    assert said.err.splitlines()[-1].endswith("(nothing was changed)")
    assert unseen.events() == []


def test_all_of_one_model_works_off_what_is_due_of_others_too(directory_scene: Scene) -> None:
    for model in (MODEL, "other"):
        directory_scene.train(model=model)
    assert sync(directory_scene, MODEL, "--all").err.splitlines()[-1].endswith("2 events processed, 0 left")
    assert [directory_scene.tags(1, model)["status"] for model in (MODEL, "other")] == ["mirrored", "mirrored"]


def test_all_mirrors_an_existing_registry_the_version_in_production_first(unseen: Scene) -> None:
    said = sync(unseen, "--all")
    assert (said.code, said.err.splitlines()[-1]) == (0, "4 recorded; 4 events processed, 0 left")
    first = unseen.events()[0]
    assert (first.version, first.stage, first.state) == (2, "Production", EventState.DONE)
    assert [unseen.tags(version)["status"] for version in (1, 2, 3)] == ["mirrored", "active", "mirrored"]
    assert unseen.current() == 2
    objects = store_objects(unseen.settings)
    assert sync(unseen, "--all", "--deep").code == 0
    assert store_objects(unseen.settings) == objects


def test_a_version_that_fails_is_reported_at_the_end_and_stops_no_other(directory_scene: Scene) -> None:
    directory_scene.train(files={})
    without_events(directory_scene)
    said = sync(directory_scene, "--all", "--json")
    assert said.code == 1
    result = json.loads(said.out)
    (left,) = result["left"]
    assert (left["version"], left["state"]) == (1, "dead")
    assert "no ONNX file" in left["reason"]
    assert result["carried_out"] == 4
    assert directory_scene.current() == 2
    assert sync(directory_scene, "--all", "--json").code == 1
    said = sync(directory_scene)
    assert (said.code, said.out.split()[0], said.err.splitlines()[-1]) == (1, "dead_letter", "1 reported")
    directory_scene.runtime.outbox.discard(left["event"])
    assert sync(directory_scene).code == 0


def test_what_failed_before_is_tried_again_with_all(directory_scene: Scene) -> None:
    run = directory_scene.log_run(files={"model/other.txt": b"nothing"})
    directory_scene.register(run)
    assert sync(directory_scene, "--all").code == 1
    folder = Path(directory_scene.client.get_run(run).info.artifact_uri or "")
    for path, data in model_files().items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(data)
    assert sync(directory_scene, "--all").code == 0
    assert directory_scene.tags(1)["status"] == "mirrored"


def test_a_half_written_release_is_swept_where_that_is_asked_for(directory_scene: Scene) -> None:
    directory_scene.train()
    directory_scene.work()
    begun = directory_scene.settings.home / "supabase" / BUCKET / MODEL / "20200101T000000Z/metrics.json"
    begun.parent.mkdir()
    begun.write_bytes(b"{}")
    os.utime(begun, (0, 0))
    assert "unclaimed_folder" in sync(directory_scene).out
    assert "[would be deleted]" in sync(directory_scene, "--sweep", "--dry-run").out
    assert begun.exists()
    said = sync(directory_scene, "--sweep")
    assert (said.code, said.err.splitlines()[-1]) == (0, "1 deleted")
    assert not begun.parent.exists()


def test_only_the_model_that_is_named_is_looked_at(unseen: Scene) -> None:
    assert sync(unseen, "other").err.splitlines()[-1] == "no differences"
    assert len(sync(unseen, MODEL).out.splitlines()) == 4


@pytest.mark.exhaustive
def test_killed_and_run_again_it_uploads_nothing_twice(supabase_scene: Scene, simulator: StorageSimulator) -> None:
    without_events(supabase_scene)
    home = supabase_scene.settings.home
    (home / "supabase-bridge.toml").write_text("lease = 1\n")
    command = [str(EXECUTABLE), "sync", "--all", "--home", str(home)]
    environment = supabase_environment(simulator)
    with started(command, cwd=home, env=surroundings(home, **environment)) as process:
        until(lambda: MANIFEST in simulator.object_keys(BUCKET), "the first release", limit_seconds=60)
        process.kill()
    complete = [key for key in simulator.object_keys(BUCKET) if key.endswith(META_NAME)]
    files = supabase_scene.objects(complete[0].removesuffix(META_NAME))
    asked = len(simulator.calls())
    said = execute("sync", "--all", "--home", home, directory=home, environment=environment)
    assert said.code == 0, said.err
    uploads = [call for call in simulator.calls()[asked:] if call.method == "POST" and "/_tmp/" in call.path]
    log_entries = 1
    assert len(uploads) <= (3 - len(complete)) * len(files) + log_entries
    assert supabase_scene.current() == 2


@pytest.mark.exhaustive
def test_two_at_once_are_safe(unseen: Scene) -> None:
    home = unseen.settings.home
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda _: execute("sync", "--all", "--home", home, directory=home), range(2)))
    assert [one.code for one in said] == [0, 0], said
    assert len(unseen.events()) == 4
    head = unseen.head()
    assert head is not None
    assert (head.sequence, head.current.model_version) == (1, 2)


@pytest.mark.exhaustive
def test_a_person_at_a_terminal_sees_how_far_it_is(unseen: Scene) -> None:
    home = unseen.settings.home
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [EXECUTABLE, "sync", "--all", "--home", home],
        cwd=home,
        env=clean_environment(home, {"TERM": "xterm"}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        timeout=120,
        check=False,
    )
    os.close(theirs)
    seen = os.read(ours, 100_000)
    os.close(ours)
    assert done.returncode == 0
    assert b"mirroring" in seen
    assert b"4/4" in seen


def test_a_dry_run_foresees_what_would_fail_by_cause_with_the_line_that_mends_it(
    directory_scene: Scene, tmp_path: Path
) -> None:
    scene = directory_scene
    scene.train()
    scene.register(scene.log_run(files={"model/MLmodel": b"flavors:\n  sklearn: {}\n", "model/model.pkl": b""}))
    elsewhere = tmp_path / "elsewhere" / "mlruns"
    experiment = scene.client.create_experiment("other", artifact_location=f"{elsewhere}/7")
    for number in range(3):
        run = scene.client.create_run(experiment).info
        for path, data in model_files(number).items():
            target = Path(run.artifact_uri) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        scene.client.set_terminated(run.run_id)
        scene.register(run.run_id, source=f"{run.artifact_uri}/model")
    said = sync(scene, "--dry-run", "--json")
    assert said.code == 1
    found = [item for item in json.loads(said.out)["found"] if item["kind"] == "would_fail"]
    outside, no_onnx = found
    assert (outside["subject"], no_onnx["subject"]) == ("3 versions", "1 version")
    assert "two_tower v5, two_tower v4, two_tower v3" in outside["detail"]
    line = f'allowed_sources = ["{elsewhere}"]'
    assert outside["detail"].endswith(f"set in supabase-bridge.toml: {line}")
    assert "no ONNX file (it was logged as sklearn)" in no_onnx["detail"]
    (scene.settings.home / "supabase-bridge.toml").write_text(f"{line}\n")
    kinds = [item["subject"] for item in json.loads(sync(scene, "--dry-run", "--json").out)["found"]]
    assert kinds.count("3 versions") == 0
    assert kinds.count("1 version") == 1
    assert sync(scene, "--all").code == 1
    assert [scene.tags(number)["status"] for number in range(1, 6)] == ["mirrored", "rejected", *["mirrored"] * 3]


def test_a_dry_run_advises_no_setting_for_a_version_that_names_no_place(directory_scene: Scene) -> None:
    scene = directory_scene
    scene.train()
    with scene.runtime.outbox.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE model_versions SET source = '', storage_location = NULL")
    found = [
        item for item in json.loads(sync(scene, "--dry-run", "--json").out)["found"] if item["kind"] == "would_fail"
    ]
    assert [item["detail"] for item in found] == [
        "no directory that could be allowed: no place of files is registered (two_tower v1)"
    ]
