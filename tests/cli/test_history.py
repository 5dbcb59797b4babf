"""`history`: every switch with who, when and why, what was current at a time, and the proof of the log."""

from __future__ import annotations

import csv
import getpass
import io
import json
from datetime import datetime, timezone
from pathlib import Path

import pytest

from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.factory import open_store
from tests.support.commands import Said, invoke
from tests.support.logs import write_log
from tests.support.scene import MODEL, Scene
from tests.support.small_releases import LATEST, PLAIN

USER = getpass.getuser()


def run(scene: Scene, *arguments: object) -> Said:
    return invoke("history", *arguments, "--home", scene.settings.home)


@pytest.fixture
def scene(directory_scene: Scene) -> Scene:
    """Version 2 was promoted after version 1; then came a freeze, and a rollback during it."""
    for recall in (0.68, 0.70):
        directory_scene.promote(directory_scene.train(metrics={"recall_at_20": recall}))
        directory_scene.work()
    home = directory_scene.settings.home
    until = ("--until", "2999-12-27T08:00Z")
    assert invoke("freeze", f"{MODEL}@latest", "--reason", "holiday sale", *until, "--home", home).code == 0
    assert invoke("rollback", MODEL, "--home", home).code == 0
    assert invoke("thaw", f"{MODEL}@latest", "--home", home).code == 0
    return directory_scene


def test_the_history_says_who_did_what_when_and_why_with_freezes_and_metrics(scene: Scene) -> None:
    rows = json.loads(run(scene, f"{MODEL}@latest", "--json").out)
    assert [(row["sequence"], row["kind"]) for row in rows] == [
        (None, "thawed"),
        (3, "rolled back"),
        (None, "frozen"),
        (2, "promoted"),
        (1, "promoted"),
    ]
    assert {row["by"] for row in rows} == {USER}
    back, frozen, second = rows[1], rows[2], rows[3]
    assert (back["from_version"], back["version"]) == (2, 1)
    assert "two_tower@latest is frozen until 2999-12-27T08:00:00Z" in back["during_freeze"]
    assert back["metrics"]["recall@20"] == {"before": 0.70, "after": 0.68}
    assert (frozen["reason"], frozen["until"]) == ("holiday sale", "2999-12-27T08:00:00Z")
    assert second["metrics"]["recall@20"] == {"before": 0.68, "after": 0.70}
    assert (second["from_version"], second["event_id"] is not None) == (1, True)
    said = run(scene, MODEL)
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0] == f"{MODEL}@latest"
    assert lines[1].endswith(f"thawed by {USER}: holiday sale")
    assert f" (v2) -> {scene.tags(1)['run_id']} (v1)  rolled back by {USER} (event " in lines[2]
    assert lines[3].strip().startswith("during a freeze: two_tower@latest is frozen until 2999")
    assert "recall@20 0.7 -> 0.68 (-0.02)" in said.out
    assert f"frozen until 2999-12-27T08:00:00Z by {USER}: holiday sale" in said.out
    assert len(json.loads(run(scene, MODEL, "--json", "--limit", 2).out)) == 2


def test_what_was_current_at_a_time_is_answered(scene: Scene) -> None:
    head = scene.head()
    assert head is not None
    found = json.loads(run(scene, f"{MODEL}@latest", "--at", head.current.published_at.isoformat(), "--json").out)
    assert (found[0]["sequence"], found[0]["version"], found[0]["by"]) == (3, 1, USER)
    said = run(scene, MODEL, "--at", datetime.now(timezone.utc).isoformat())
    assert said.out.startswith(f"two_tower@latest: {head.current.run_id} (v1) since ")
    assert said.out.endswith(f" by {USER} (entry 3)\n")
    before = run(scene, f"{MODEL}@latest", "--at", "2020-01-01")
    assert (before.code, "nothing was current at 2020-01-01T00:00:00Z" in before.out) == (1, True)
    assert run(scene, MODEL, "--at", "yesterday").code == 2


def test_a_rewritten_entry_fails_the_verification_and_is_named(scene: Scene) -> None:
    proof = run(scene, MODEL, "--verify")
    assert proof.code == 0
    assert "two_tower@latest: 3 entries, none is missing, and none that a later one names was rewritten" in proof.out
    assert "no key is trusted, so a rewritten newest entry cannot be noticed" in proof.out
    store = scene.store
    data = store.read(LATEST.history(2), limit_bytes=100_000)
    store.overwrite(LATEST.history(2), data.replace(USER.encode(), b"mallory"), PLAIN)
    proof = run(scene, MODEL, "--verify")
    assert proof.code == 1
    assert "two_tower@latest entry 2: it was rewritten: entry 3 names another one" in proof.out
    store.delete([LATEST.history(1)])
    found = json.loads(run(scene, MODEL, "--verify", "--json").out)[0]
    assert [item["sequence"] for item in found["problems"]] == [1, 2]
    fresh = invoke(
        "history",
        MODEL,
        "--home",
        scene.settings.home,
        environment={"SUPABASE_BRIDGE_CACHE": str(scene.settings.home / "other")},
    )
    assert "PROBLEM: it was rewritten: entry 3 names another one" in fresh.out
    assert "history --verify" in fresh.err
    store.delete([LATEST.history(3), LATEST.history(2)])
    emptied = run(scene, MODEL, "--verify")
    assert (emptied.code, "manifest.json is not the newest entry of the log" in emptied.out) == (1, True)


def test_without_the_registrys_database_the_folder_names_the_model_and_no_freeze_is_shown(tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path, environ={})
    assert settings.embedded
    store = open_store(settings, settings.bucket)
    store.ensure_bucket()
    write_log(store, [1, 2])
    said = invoke("history", MODEL, "--home", tmp_path)
    assert said.code == 0
    assert "promoted by bob (event 1)" in said.out
    assert "so no freeze is shown" in said.err
    absent = invoke("history", "nothing", "--home", tmp_path)
    assert (absent.code, "nothing" in absent.err) == (1, True)
    assert invoke("history", MODEL, "--csv", "--verify", "--home", tmp_path).code == 2
    store.close()


def test_csv_has_a_line_for_each_entry_and_no_cell_that_a_spreadsheet_calculates(tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path, environ={})
    store = open_store(settings, settings.bucket)
    store.ensure_bucket()
    head = write_log(store, [1])
    forged = head.model_copy(update={"release_notes": "=cmd|' /C calc'!A0", "cause": head.cause})
    paths = ChannelPaths(model_key=MODEL, channel="latest")
    for key in (paths.history(1), paths.manifest):
        store.overwrite(key, forged.to_bytes(), PLAIN)
    rows = list(csv.DictReader(io.StringIO(invoke("history", MODEL, "--csv", "--home", tmp_path).out)))
    assert [row["reason"] for row in rows] == ["'=cmd|' /C calc'!A0"]
    assert (rows[0]["sequence"], rows[0]["by"], rows[0]["version"]) == ("1", "bob", "1")
    store.close()
