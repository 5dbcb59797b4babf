"""`supabase-bridge status` on a large registry: one screen, what needs a person first, and no import of MLflow."""

from __future__ import annotations

import json
import sys
from subprocess import run

import pytest
import sqlalchemy as sa

from supabase_bridge.app.status import open_view
from supabase_bridge.outbox.freezes import freeze
from tests.support.commands import clean_environment, invoke
from tests.support.scene import MODEL, Scene

_EVENT = (
    "INSERT INTO supabase_outbox (created_ms, kind, workspace, model, version, model_deleted, state, attempts, "
    "not_before_ms, finished_ms, outcome) "
    "VALUES (1, 'version_created', 'default', :name, 1, 0, :state, 1, 0, :done, :why)"
)


@pytest.fixture
def large(directory_scene: Scene) -> Scene:
    """A registry of 60 models with one version each, of which 20 failed, with 12 failed events and 3 that wait."""
    facts = [
        {"name": f"model-{number:02d}", "status": "failed" if number < 20 else "mirrored", "error": "no ONNX file"}
        for number in range(60)
    ]
    events = [
        {**fact, "state": "dead" if number < 12 else "pending", "done": 1 if number < 12 else None, "why": "x" * 500}
        for number, fact in enumerate(facts[:15])
    ]
    tag = "INSERT INTO model_version_tags (name, version, key, value) VALUES (:name, 1"
    with directory_scene.runtime.outbox.engine.begin() as connection:
        for statement, rows in (
            ("INSERT INTO registered_models (name) VALUES (:name)", facts),
            ("INSERT INTO model_versions (name, version, current_stage) VALUES (:name, 1, 'None')", facts),
            (f"{tag}, 'supabase.status', :status)", facts),
            (f"{tag}, 'supabase.error', :error)", facts[:20]),
            (_EVENT, events),
        ):
            connection.execute(sa.text(statement), rows)
    return directory_scene


def test_status_of_a_large_registry_is_one_screen_with_the_failures_first(large: Scene) -> None:
    said = invoke("status", "--home", large.settings.home)
    lines = said.out.splitlines()
    assert said.code == 0
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 200
    assert lines[0].startswith("#12 model-11 v1 version_created failed: xxx")
    assert lines[8] == "and 4 more: supabase-bridge outbox list --state dead"
    assert lines[9] == "model-00 v1 failed: no ONNX file"
    assert lines[17] == "and 12 more: supabase-bridge status --failing"
    assert lines[18:] == [
        "60 models, 60 versions: 40 mirrored, 20 failed",
        "outbox: 3 waiting, 12 failed",
        "of one model: supabase-bridge status MODEL; of all: supabase-bridge status --all",
    ]


def test_status_of_a_large_registry_lists_freezes_and_stays_one_screen(large: Scene) -> None:
    engine = large.runtime.outbox.engine
    for number in range(4):
        freeze(engine, "default", f"model-0{number}", None, reason="holiday sale", by="ann", until=None)
    lines = invoke("status", "--home", large.settings.home).out.splitlines()
    assert len(lines) <= 24
    assert lines[18:21] == [
        "model-00 is frozen by ann: holiday sale",
        "model-01 is frozen by ann: holiday sale",
        "and 2 more freezes: supabase-bridge status --all",
    ]
    assert invoke("status", "--all", "--home", large.settings.home).out.count(" is frozen by ann") == 4


def test_a_report_of_all_models_needs_as_many_queries_as_that_of_one(large: Scene) -> None:
    def queries(model: str | None) -> int:
        with open_view(large.settings) as view:
            made = list[str]()
            sa.event.listen(
                view._outbox.engine, "before_cursor_execute", lambda _1, _2, statement, *_: made.append(statement)
            )
            view.reports(model)
            return len(made)

    assert queries(None) == queries("model-00")


def test_status_shows_the_aliases_of_a_version(directory_scene: Scene) -> None:
    directory_scene.train()
    for alias in ("champion", "canary"):
        directory_scene.client.set_registered_model_alias(MODEL, alias, "1")
    home = directory_scene.settings.home
    assert invoke("status", "--home", home).out.splitlines()[1].split()[:4] == ["v1", "None", "@canary", "@champion"]
    (model,) = json.loads(invoke("status", "--json", "--home", home).out)
    assert model["versions"][0]["aliases"] == ["canary", "champion"]


def test_status_of_a_large_registry_shows_all_where_that_is_asked_for(large: Scene) -> None:
    assert invoke("status", "--all", "--home", large.settings.home).out.count("\n  v1 ") == 60
    assert invoke("status", "--failing", "--home", large.settings.home).out.count("\n  v1 ") == 20


def test_status_of_a_model_with_many_versions_shows_those_with_problems_and_the_newest(directory_scene: Scene) -> None:
    with directory_scene.runtime.outbox.engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO registered_models (name) VALUES (:name)"), {"name": MODEL})
        rows = [{"name": MODEL, "version": number} for number in range(1, 101)]
        insert = "INSERT INTO model_versions (name, version, current_stage) VALUES (:name, :version, 'None')"
        connection.execute(sa.text(insert), rows)
        failed = (
            "INSERT INTO model_version_tags (name, version, key, value) VALUES (:name, 3, 'supabase.status', 'failed')"
        )
        connection.execute(sa.text(failed), {"name": MODEL})
    lines = invoke("status", MODEL, "--home", directory_scene.settings.home).out.splitlines()
    assert lines[1].split() == ["v3", "None", "-", "failed"]
    assert [line.split()[0] for line in lines[2:-1]] == [f"v{number}" for number in range(62, 101)]
    assert lines[-1] == "  and 60 more versions: --all shows them"
    assert len(invoke("status", MODEL, "--all", "--home", directory_scene.settings.home).out.splitlines()) == 101


def test_status_does_not_import_mlflow(directory_scene: Scene) -> None:
    program = (
        "import sys; from supabase_bridge.cli import main\n"
        f"main(['status', '--home', {str(directory_scene.settings.home)!r}], standalone_mode=False)\n"
        "print('mlflow' in sys.modules)"
    )
    home = directory_scene.settings.home
    done = run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=clean_environment(home))
    assert done.stdout.splitlines()[-1] == "False"
