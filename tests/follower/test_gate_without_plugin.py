"""Promotions that did not go through our plugin: MLflow has made them, and the gate keeps them from the pointer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient

from supabase_bridge.app.runtime import open_runtime
from supabase_bridge.core.events import DEFAULT_WORKSPACE
from supabase_bridge.outbox import freezes
from supabase_bridge.settings.model import FILE_NAME, Settings
from tests.support.commands import Said, invoke
from tests.support.gated import FAILS, PASSES, RECALL, SceneWith
from tests.support.processes import mlflow_command, serving, surroundings
from tests.support.scene import MODEL, MakeScene, Scene

pytestmark = pytest.mark.exhaustive

NOT_WORSE = '[gates.two_tower]\ncriteria = ["recall@20 not worse than current by more than 0.01"]\n'
UNREFUSED = "MLflow could not be made to refuse it"


def promote_past_the_plugin(scene: Scene, version: int) -> None:
    """As a process does it in which MLflow's own store is used, and nothing of ours."""
    program = (
        "import sys; from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Store; "
        f"Store(sys.argv[1]).transition_model_version_stage('{MODEL}', '{version}', 'Production', False)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, scene.settings.database_url], check=True)


def set_stage_by_sql(scene: Scene, version: int, stage: str) -> None:
    statement = sa.text("UPDATE model_versions SET current_stage = :stage WHERE version = :version")
    with scene.runtime.outbox.engine.begin() as connection:
        connection.execute(statement, {"stage": stage, "version": version})


def sync(scene: Scene, *arguments: object) -> Said:
    return invoke("sync", *arguments, "--home", scene.settings.home)


def trained(scene: Scene, *metrics: Mapping[str, float]) -> list[int]:
    """Versions, each mirrored; the first is current."""
    versions = [scene.train(metrics=item) for item in metrics]
    scene.promote(versions[0])
    scene.work()
    assert scene.current() == versions[0]
    return versions


# --- one database with the server -------------------------------------------------------------------------------------


def test_a_version_that_was_promoted_past_the_plugin_during_a_freeze_waits_for_its_end(scene_with: SceneWith) -> None:
    scene = scene_with("")
    old, new = trained(scene, PASSES, PASSES)
    freezes.freeze(scene.runtime.outbox.engine, DEFAULT_WORKSPACE, MODEL, None, reason="audit", by="ada", until=None)
    set_stage_by_sql(scene, new, "Production")
    assert "is frozen by ada: audit" in sync(scene).out
    assert scene.current() == old
    assert "two_tower is frozen by ada: audit" in scene.tags(new)["verdict"]
    assert freezes.thaw(scene.runtime.outbox.engine, DEFAULT_WORKSPACE, MODEL, None, by="ada")
    sync(scene)
    scene.work()
    assert scene.current() == new


def test_what_fails_and_was_promoted_past_the_plugin_does_not_reach_the_pointer(scene_with: SceneWith) -> None:
    scene = scene_with(RECALL)
    good, bad = trained(scene, PASSES, FAILS)
    promote_past_the_plugin(scene, bad)
    said = sync(scene)
    assert said.out.splitlines() == [
        "failed_gate two_tower version 2: None -> Production is blocked: recall@20 0.610 < 0.65 [reported]"
    ]
    assert (scene.work(), scene.current()) == ([], good)
    tags = scene.tags(bad)
    assert (tags["status"], tags["verdict"]) == ("rejected", "Production: failed: recall@20 0.610 < 0.65")
    assert UNREFUSED in tags["error"]
    (found,) = json.loads(sync(scene, "--json").out)["found"]
    assert (found["kind"], found["remedy"]) == ("failed_gate", "reported")


def test_a_pass_that_finds_it_again_writes_nothing(scene_with: SceneWith) -> None:
    scene = scene_with(RECALL)
    _, bad = trained(scene, PASSES, FAILS)
    set_stage_by_sql(scene, bad, "Production")
    sync(scene)
    assert scene.tags(bad)["status"] == "rejected"
    before = (scene.client.get_model_version(MODEL, str(bad)), scene.events())
    sync(scene)
    after = scene.client.get_model_version(MODEL, str(bad))
    assert (dict(before[0].tags), before[0].last_updated_timestamp) == (dict(after.tags), after.last_updated_timestamp)
    assert scene.events() == before[1]


def test_a_dry_run_says_it_and_writes_no_tag(scene_with: SceneWith) -> None:
    scene = scene_with(RECALL)
    _, bad = trained(scene, PASSES, FAILS)
    set_stage_by_sql(scene, bad, "Production")
    before = scene.tags(bad)
    assert "failed_gate two_tower version 2" in sync(scene, "--dry-run").out
    assert scene.tags(bad) == before


@pytest.mark.parametrize("lifted", ["by a tag", "by a newer metric"])
def test_the_next_pass_lets_it_through_once_it_passes(scene_with: SceneWith, lifted: str) -> None:
    scene = scene_with(RECALL)
    _, bad = trained(scene, PASSES, FAILS)
    set_stage_by_sql(scene, bad, "Production")
    sync(scene)
    if lifted == "by a tag":
        scene.client.set_registered_model_tag(MODEL, "supabase.gate.recall_at_20", ">= 0.60")
    else:
        run_id = scene.client.get_model_version(MODEL, str(bad)).run_id
        scene.client.log_metric(str(run_id), "recall_at_20", 0.7, step=1)
    sync(scene)
    scene.work()
    assert scene.current() == bad
    assert scene.tags(bad)["status"] == "active"
    assert "error" not in scene.tags(bad)


def test_a_version_that_no_event_ever_told_of_is_mirrored_and_stays_withheld(scene_with: SceneWith) -> None:
    scene = scene_with(RECALL)
    good, bad = scene.train(metrics=PASSES), scene.train(metrics=FAILS)
    for version in (good, bad):
        set_stage_by_sql(scene, version, "Production")
    with scene.runtime.outbox.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM supabase_outbox")
    sync(scene, "--all")
    assert scene.current() == good
    assert "run_id" in scene.tags(bad)
    assert (scene.tags(bad)["status"], UNREFUSED in scene.tags(bad)["error"]) == ("rejected", True)
    assert "failed_gate two_tower version 2" in sync(scene).out


def test_an_alias_is_gated_as_a_stage_is(scene_with: SceneWith) -> None:
    scene = scene_with('[channels.aliases]\nchampion = "latest"\n' + RECALL)
    good, bad = trained(scene, PASSES, FAILS)
    statement = "INSERT INTO registered_model_aliases (name, alias, version) VALUES (:name, 'champion', :version)"
    with scene.runtime.outbox.engine.begin() as connection:
        connection.execute(sa.text(statement), {"name": MODEL, "version": bad})
    assert "alias_set @champion is blocked" in sync(scene).out
    scene.work()
    assert scene.current() == good


def test_what_is_worse_than_current_is_withheld_of_several_at_once_too(scene_with: SceneWith) -> None:
    scene = scene_with(NOT_WORSE)
    _, better, worse = trained(scene, {"recall_at_20": 0.6}, PASSES, FAILS)
    for version in (better, worse):
        set_stage_by_sql(scene, version, "Production")
    sync(scene)
    scene.work()
    assert scene.current() == better
    assert scene.tags(worse)["verdict"] == "Production: failed: recall@20 0.610 < 0.69 (v2 has 0.700, - 0.01)"


def test_a_gate_that_warns_lets_it_through_and_tags_it(scene_with: SceneWith) -> None:
    scene = scene_with(RECALL + 'mode = "warn"\n')
    _, bad = trained(scene, PASSES, FAILS)
    set_stage_by_sql(scene, bad, "Production")
    assert "[recorded]" in sync(scene).out
    scene.work()
    assert scene.current() == bad
    assert scene.tags(bad)["verdict"] == "Production: failed: recall@20 0.610 < 0.65"


@pytest.mark.parametrize(("gate_rollbacks", "back"), [(False, True), (True, False)])
def test_what_was_current_before_is_let_back(scene_with: SceneWith, gate_rollbacks: bool, back: bool) -> None:
    scene = scene_with(f"gate_rollbacks = {str(gate_rollbacks).lower()}\n" + RECALL + 'mode = "off"\n')
    old, new = trained(scene, FAILS, PASSES)
    scene.promote(new, archive=True)
    scene.work()
    scene.client.set_registered_model_tag(MODEL, "supabase.gate", "enforce")
    set_stage_by_sql(scene, old, "Production")
    sync(scene)
    scene.work()
    assert (scene.current() == old) is back
    if back:
        assert scene.tags(old)["verdict"] == "Production: not judged: it was current before"


# --- a server that cannot have the plugin -----------------------------------------------------------------------------


@pytest.fixture
def stock_server(make_scene: MakeScene, directory_settings: Settings) -> Iterator[tuple[Scene, str]]:
    """A scene that is a training's machine, and MLflow's own server over its database; nothing of ours judges there."""
    scene = make_scene(directory_settings)
    home = scene.settings.home
    command = mlflow_command("server", "--host", "127.0.0.1", "--workers", "1")
    command += ["--backend-store-uri", scene.settings.database_url, "--default-artifact-root", str(home / "mlruns")]
    with serving(command, cwd=home, env=surroundings(home)) as url:
        yield scene, url


def test_a_watched_server_cannot_refuse_and_the_pointer_stays(
    stock_server: tuple[Scene, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    training, url = stock_server
    good, bad = training.train(metrics=PASSES), training.train(metrics=FAILS)
    over_http = replace(training, client=MlflowClient(tracking_uri=url, registry_uri=url))
    home = tmp_path / "follower"
    home.mkdir()
    sources = f'allowed_sources = ["{training.settings.artifacts_destination}"]\n'
    (home / FILE_NAME).write_text(sources + RECALL)
    settings = Settings.load(home=home, environ={})

    def tags(version: int) -> dict[str, str]:
        return over_http.tags(version)

    with open_runtime(settings, remote=url) as made:
        over_http.promote(good)
        made.poller.poll()
        made.worker().drain()
        assert tags(good)["status"] == "active"
        over_http.promote(bad)
        found = made.poller.poll()
        assert (found.events, found.blocked) == ((), 1)
        made.worker().drain()
        assert (tags(good)["status"], tags(bad)["status"]) == ("active", "rejected")
        assert tags(bad)["verdict"] == "Production: failed: recall@20 0.610 < 0.65"
        assert UNREFUSED in tags(bad)["error"]
        # The gate changes: a new promotion is judged at once, and every full poll judges the others again.
        over_http.client.set_registered_model_tag(MODEL, "supabase.gate.recall_at_20", ">= 0.60")
        assert made.poller.poll().events == ()
        assert [event.version for event in made.poller.poll(full=True).events] == [bad]
        made.worker().drain()
        assert tags(bad)["status"] == "active"
        # And one that leaves and comes back between two polls is judged by what holds then.
        over_http.client.set_registered_model_tag(MODEL, "supabase.gate.recall_at_20", ">= 0.65")
        third = training.train(metrics=FAILS)
        over_http.promote(third)
        assert [event.stage for event in made.poller.poll().events] == ["None"]
        over_http.promote(third, "Archived")
        made.poller.poll()
        over_http.client.set_registered_model_tag(MODEL, "supabase.gate.recall_at_20", ">= 0.60")
        over_http.promote(third)
        assert [event.version for event in made.poller.poll().events] == [third]
