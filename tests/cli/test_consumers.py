"""`consumers` and `status`: who runs which release, from the reports that `pull` and `watch` made."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from tests.support.commands import Said, execute, invoke
from tests.support.consumers import BUCKET, FIRST, MODEL, SECOND, Bucket
from tests.support.scene import Scene
from tests.support.usage import UsageProject

pytestmark = pytest.mark.exhaustive


@pytest.fixture
def bucket(usage_project: UsageProject) -> Bucket:
    made = Bucket.of_simulator(usage_project.simulator)
    made.promote(FIRST)
    usage_project.simulator.let_anon_read(BUCKET)
    return made


def consumers(project: UsageProject, home: Path, *arguments: str, **environment: str) -> Said:
    operator = {"SUPABASE_URL": project.simulator.url, "SUPABASE_SECRET_KEY": project.simulator.service_key}
    return invoke("consumers", MODEL, *arguments, "--home", home, environment={**operator, **environment})


def test_a_pull_is_seen_as_current_and_as_idle_after_the_next_switch(
    usage_project: UsageProject, bucket: Bucket, tmp_path: Path
) -> None:
    nothing = consumers(usage_project, tmp_path)
    assert (nothing.code, nothing.out, "no consumer has reported" in nothing.err) == (0, "", True)
    pulled = execute("pull", MODEL, "dest", directory=tmp_path, environment=usage_project.environment())
    assert pulled.code == 0, pulled.err
    assert consumers(usage_project, tmp_path).out.startswith(f"api uses {FIRST}, as latest does (1 instance, last rep")
    bucket.promote(SECOND)
    with psycopg.connect(usage_project.database) as connection:
        connection.execute("update release_usage set reported_at = '2025-10-31T12:00:00Z'")
        connection.execute("create or replace view release_usage_latest as select * from release_usage")
    (found,) = json.loads(consumers(usage_project, tmp_path, "--json").out)
    assert (found["run_id"], found["standing"], found["behind_since"]) == (FIRST, "idle", "2025-11-01T02:40:10Z")


def test_a_consumer_that_still_reports_the_release_before_is_behind_since_the_switch_that_it_missed(
    usage_project: UsageProject, bucket: Bucket, tmp_path: Path
) -> None:
    bucket.promote(SECOND)
    with psycopg.connect(usage_project.database) as connection:
        connection.execute(
            "insert into release_usage (bucket, model, channel, run_id, sequence, consumer, instance, used_since, "
            "next_report_seconds) values (%s, %s, 'latest', %s, 1, %s, 'a', now(), 900), "
            "(%s, %s, '../x', 'a run_id of no form', 99, 'b', 'a', now(), null)",
            (BUCKET, MODEL, FIRST, "api\x1b[31m", BUCKET, MODEL),
        )
    said = consumers(usage_project, tmp_path)
    assert said.code == 0, said.err
    assert said.out.splitlines()[0].startswith(rf"api\x1b[31m uses {FIRST}, BEHIND latest for ")
    by_database = consumers(usage_project, tmp_path, SUPABASE_BRIDGE_USAGE_URL=usage_project.database)
    assert by_database.out.splitlines()[0].startswith(rf"api\x1b[31m uses {FIRST}, BEHIND latest for ")


def test_reports_that_cannot_be_read_are_an_error_that_names_the_setup(
    usage_project: UsageProject, tmp_path: Path
) -> None:
    with psycopg.connect(usage_project.database) as connection:
        connection.execute("drop table release_usage cascade")
    for environment in ({}, {"SUPABASE_BRIDGE_USAGE_URL": usage_project.database}):
        said = consumers(usage_project, tmp_path, **environment)
        assert (said.code, "run the SQL of docs/consumers.md" in said.error) == (1, True)
    embedded = invoke("consumers", MODEL, "--home", tmp_path)
    assert "there is no place to read reports from" in embedded.error


def test_status_shows_the_consumers_of_a_model_where_reports_are_switched_on(
    usage_project: UsageProject, directory_scene: Scene, tmp_path: Path
) -> None:
    scene = directory_scene
    scene.promote(scene.train())
    scene.work()
    home = ("--home", scene.settings.home)
    environment = {
        "SUPABASE_BRIDGE_USAGE_REPORTS": "true",
        "SUPABASE_BRIDGE_USAGE_URL": usage_project.database,
        "SUPABASE_BRIDGE_CONSUMER_NAME": "batch",
    }
    assert invoke("pull", MODEL, tmp_path / "dest", *home, environment=environment).code == 0
    assert "  consumer batch uses 20251031T093831Z, as latest does (1 instance" in (
        invoke("status", MODEL, *home, environment=environment).out
    )
    assert json.loads(invoke("status", "--json", *home).out)[0]["consumers"] == []
    with psycopg.connect(usage_project.database) as connection:
        connection.execute("drop table release_usage cascade")
    unreadable = invoke("status", MODEL, *home, environment=environment)
    assert (unreadable.code, "the reports cannot be read" in unreadable.out) == (0, True)
