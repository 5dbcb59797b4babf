"""`supabase-bridge doctor` finds what a newcomer gets wrong, says how to mend it, and changes nothing."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa

from supabase_bridge.app.doctor.check import Check, Status
from supabase_bridge.app.doctor.database import clock, pooler
from supabase_bridge.app.doctor.examine import examine
from supabase_bridge.settings.api_keys import kind_of_key
from tests.support.commands import clean_environment, invoke
from tests.support.databases import DatabaseServer
from tests.support.machine import free_port
from tests.support.scene import BUCKET, Scene, files_below, supabase_environment
from tests.support.simulators.storage import StorageSimulator

pytestmark = pytest.mark.mlflow


def checked(home: Path, environ: Mapping[str, str] | None = None, *, consumer: bool = False) -> dict[str, Check]:
    """Every check by its name."""
    return {check.name: check for check in examine(home=home, environ=environ or {}, consumer=consumer)}


def statuses(home: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    return {name: check.status.value for name, check in checked(home, environ).items()}


def failures(found: Mapping[str, Check]) -> set[str]:
    return {name for name, check in found.items() if check.status is Status.FAILED}


# --- an installation that works ---------------------------------------------------------------------------------------


def test_an_installation_that_works_has_nothing_failed_and_is_not_changed(directory_scene: Scene) -> None:
    directory_scene.promote(directory_scene.train())
    directory_scene.work()
    home = directory_scene.settings.home
    before = files_below(home)
    said = invoke("doctor", "--json", "--home", home)
    found = {item["name"]: item for item in json.loads(said.out)}
    assert said.code == 0
    assert {item["status"] for item in found.values()} <= {"ok", "warning", "skipped"}
    assert "the worker reads 2 files of two_tower version 1" in found["artifacts"]["detail"]
    assert found["outbox"]["status"] == found["database clock"]["status"] == "ok"
    assert files_below(home).keys() == before.keys()
    assert files_below(home)["mlflow.db"] == before["mlflow.db"]


def test_a_fresh_home_is_no_failure_and_stays_absent(tmp_path: Path) -> None:
    found = checked(tmp_path / "home")
    assert failures(found) == set()
    assert "supabase-bridge server" in found["database"].remedy
    assert not (tmp_path / "home").exists()


def test_every_check_that_failed_or_warns_has_a_remedy(tmp_path: Path) -> None:
    environ = {"SUPABASE_URL": f"http://127.0.0.1:{free_port()}", "SUPABASE_SECRET_KEY": "sb_secret_x"}
    for check in checked(tmp_path, environ).values():
        assert bool(check.remedy) == (check.status in {Status.FAILED, Status.WARNING})


def test_a_wrong_setting_is_a_failed_check(tmp_path: Path) -> None:
    said = invoke("doctor", "--home", tmp_path, environment={"SUPABASE_URL": "not-a-url"})
    assert said.code == 1
    assert "failed   settings          SUPABASE_URL: expected https://" in said.out


# --- packages ---------------------------------------------------------------------------------------------------------

_BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from supabase_bridge.cli import main
main({arguments!r}, prog_name="supabase-bridge")
"""


def doctor_without(blocked: set[str], directory: Path, environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What `doctor` finds in a process that cannot import some packages."""
    arguments = ["doctor", "--json", "--home", str(directory)]
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKER.format(blocked=blocked, arguments=arguments)],
        env=clean_environment(directory, environ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    return {item["name"]: item for item in json.loads(done.stdout)}


def test_missing_extras_are_named_with_the_command_that_installs_them(tmp_path: Path) -> None:
    environ = {"SUPABASE_BRIDGE_DATABASE_URL": "postgresql+psycopg://mlflow@127.0.0.1/mlflow"}
    found = doctor_without({"mlflow", "psycopg"}, tmp_path, environ)
    assert "mlflow cannot be imported" in found["extra [mlflow]"]["detail"]
    assert "psycopg cannot be imported" in found["extra [postgres]"]["detail"]
    assert found["extra [postgres]"]["remedy"] == "pip install 'mlflow-supabase-bridge[mlflow,postgres]'"
    assert found["MLflow"]["status"] == found["MLflow plugin"]["status"] == "failed"
    assert found["database"]["status"] == "skipped"


def test_a_consumer_needs_neither_mlflow_nor_a_database(tmp_path: Path, simulator: StorageSimulator) -> None:
    simulator.put_object(BUCKET, "two_tower/latest/manifest.json", b"{}")
    simulator.let_anon_read(BUCKET)
    environ = {"SUPABASE_URL": simulator.url, "SUPABASE_PUBLISHABLE_KEY": simulator.anon_key}
    found = checked(tmp_path, environ, consumer=True)
    assert failures(found) == set()
    assert found["MLflow"].status is found["database"].status is found["bucket"].status is Status.SKIPPED
    assert found["readers"].status is Status.OK


def test_an_unreadable_signing_key_is_a_failure(tmp_path: Path) -> None:
    found = checked(tmp_path, {"SUPABASE_BRIDGE_SIGNING_KEY_FILE": str(tmp_path / "missing.pem")})
    assert failures(found) == {"signing keys"}


def test_a_destination_of_announcements_without_its_secret_is_a_failure_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "supabase-bridge.toml").write_text('[announce.slack]\nslack_env = "SLACK_URL"\n')
    found = checked(tmp_path)
    assert "SLACK_URL is not set" in found["announcements"].detail
    assert failures(found) == {"announcements"}
    monkeypatch.setenv("SLACK_URL", "https://hooks.slack.com/services/T")
    assert checked(tmp_path)["announcements"].status is Status.OK
    assert "announcements" not in checked(tmp_path, consumer=True)


# --- database ---------------------------------------------------------------------------------------------------------


def test_a_database_that_does_not_answer_is_a_failure_without_its_password(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://mlflow:hunter2@127.0.0.1:{free_port()}/mlflow"
    said = invoke("doctor", "--json", "--home", tmp_path, environment={"SUPABASE_BRIDGE_DATABASE_URL": url})
    assert said.code == 1
    assert "hunter2" not in said.out + said.err
    found = {item["name"]: item for item in json.loads(said.out)}
    assert found["database"]["status"] == "failed"
    assert found["worker"]["status"] == "skipped"


def test_an_empty_postgresql_database_is_reported_and_stays_empty(tmp_path: Path, postgresql: DatabaseServer) -> None:
    url = postgresql.create()
    found = checked(tmp_path, {"SUPABASE_BRIDGE_DATABASE_URL": url})
    assert failures(found) == set()
    assert "has no table registered_models" in found["database"].detail
    assert found["pooler"].status is Status.OK
    engine = sa.create_engine(url)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("postgresql+psycopg://u@db.pooler.supabase.com:6543/postgres", Status.FAILED),
        ("postgresql+psycopg2://u@db.pooler.supabase.com:6543/postgres", Status.WARNING),
        ("postgresql+psycopg://u@db.pooler.supabase.com:5432/postgres", Status.OK),
        ("sqlite:///mlflow.db", Status.SKIPPED),
    ],
)
def test_the_poolers_transaction_mode_is_noticed_by_its_port(url: str, status: Status) -> None:
    assert pooler(sa.make_url(url)).status is status


def test_a_later_revision_of_the_outbox_is_a_failure(directory_scene: Scene) -> None:
    with closing(sqlite3.connect(directory_scene.settings.home / "mlflow.db")) as database, database:
        database.execute("UPDATE supabase_bridge_version SET version_num = '9999'")
    found = checked(directory_scene.settings.home)
    assert failures(found) == {"outbox"}
    assert "revision 9999" in found["outbox"].detail


def test_an_event_that_no_worker_claims_is_a_failure(directory_scene: Scene) -> None:
    directory_scene.train()
    home = directory_scene.settings.home
    assert checked(home)["worker"].status is Status.WARNING
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("UPDATE supabase_outbox SET created_ms = created_ms - 600000")
    found = checked(home)
    assert failures(found) == {"worker"}
    assert "supabase-bridge worker" in found["worker"].remedy


def test_a_worker_that_holds_an_event_or_made_a_pass_lately_is_seen(directory_scene: Scene) -> None:
    directory_scene.train()
    home = directory_scene.settings.home
    event = directory_scene.runtime.outbox.claim("host/1", lease=timedelta(minutes=1))
    assert event is not None
    assert "host/1 holds an event" in checked(home)["worker"].detail
    now_ms = round(time.time() * 1_000)
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("DELETE FROM supabase_outbox")
        due_ms = now_ms + 60_000
        database.execute("INSERT OR REPLACE INTO supabase_bridge_duties VALUES ('reconcile', ?, '')", (due_ms,))
    assert "its next reconcile pass is due" in checked(home)["worker"].detail


def test_failed_events_are_counted(directory_scene: Scene) -> None:
    directory_scene.register(directory_scene.log_run(files={"notes.txt": b""}))
    directory_scene.work()
    found = checked(directory_scene.settings.home)["failed events"]
    assert (found.status, found.detail) == (Status.WARNING, "1 failed permanently")


def test_files_outside_the_allowed_roots_are_a_failure(directory_scene: Scene, tmp_path: Path) -> None:
    run_id = directory_scene.log_run()
    directory_scene.register(run_id, source=str(tmp_path))
    found = checked(directory_scene.settings.home)["artifacts"]
    assert found.status is Status.FAILED
    assert "allowed_sources" in found.remedy


def test_files_that_this_machine_does_not_have_are_a_failure(directory_scene: Scene) -> None:
    directory_scene.train()
    home = directory_scene.settings.home
    (home / "artifacts").rename(home / "elsewhere")
    found = checked(home)["artifacts"]
    assert found.status is Status.FAILED
    assert "mount the directory" in found.remedy


@pytest.mark.parametrize(("seconds", "status"), [(0, Status.OK), (-25, Status.OK), (45, Status.WARNING)])
def test_a_clock_that_differs_by_more_than_half_a_minute_is_reported(seconds: int, status: Status) -> None:
    assert clock("clock", datetime.now(timezone.utc) + timedelta(seconds=seconds)).status is status


# --- project ----------------------------------------------------------------------------------------------------------


def test_a_project_that_works_is_reported_with_its_bucket(tmp_path: Path, simulator: StorageSimulator) -> None:
    simulator.put_object(BUCKET, "two_tower/latest/manifest.json", b"{}")
    found = checked(tmp_path, supabase_environment(simulator))
    assert failures(found) == set()
    assert found["secret key"].detail == "a secret key"
    assert found["rights"].detail == "the key may read and write everything: it sees 1 buckets"
    assert found["bucket"].detail.startswith("'models' is private")
    assert found["Supabase clock"].status in {Status.OK, Status.SKIPPED}
    assert {call.method for call in simulator.calls()} == {"GET"}


def test_a_missing_bucket_is_created_by_the_worker_and_not_by_doctor(
    tmp_path: Path, simulator: StorageSimulator
) -> None:
    found = checked(tmp_path, supabase_environment(simulator))
    assert found["bucket"].status is Status.WARNING
    assert simulator.buckets() == []


def test_a_missing_secret_key_is_a_failure_that_names_the_check_for_consumers(
    tmp_path: Path, simulator: StorageSimulator
) -> None:
    environ = {"SUPABASE_URL": simulator.url, "SUPABASE_PUBLISHABLE_KEY": simulator.anon_key}
    said = invoke("doctor", "--home", tmp_path, environment=environ)
    assert said.code == 1
    assert "failed   secret key        SUPABASE_SECRET_KEY is not set" in said.out
    assert "doctor --consumer" in said.out
    simulator.put_object(BUCKET, "two_tower/latest/manifest.json", b"{}")
    simulator.let_anon_read(BUCKET)
    assert invoke("doctor", "--consumer", "--home", tmp_path, environment=environ).code == 0


def test_a_publishable_key_in_place_of_the_secret_key_is_a_failure(tmp_path: Path, simulator: StorageSimulator) -> None:
    for key, kind in ((simulator.anon_key, "a publishable key"), (simulator.legacy_anon_key, "the role anon")):
        found = checked(tmp_path, {"SUPABASE_URL": simulator.url, "SUPABASE_SECRET_KEY": key})
        assert failures(found) == {"secret key"}
        assert f"{kind}: it cannot write" in found["secret key"].detail


@pytest.mark.parametrize("consumer", [False, True])
def test_a_secret_key_given_to_consumers_is_a_failure(
    tmp_path: Path, simulator: StorageSimulator, consumer: bool
) -> None:
    environ = {"SUPABASE_URL": simulator.url, "SUPABASE_PUBLISHABLE_KEY": simulator.service_key}
    found = checked(tmp_path, {**supabase_environment(simulator), **environ}, consumer=consumer)
    assert failures(found) == {"publishable key"}
    assert found["secret key"].status is (Status.WARNING if consumer else Status.OK)


def test_a_legacy_key_that_is_ignored_is_named_with_the_key_in_force(
    tmp_path: Path, simulator: StorageSimulator
) -> None:
    environ = {**supabase_environment(simulator), "SUPABASE_SERVICE_ROLE_KEY": "of.another.project"}
    found = checked(tmp_path, environ)
    assert failures(found) == set()
    assert found["secret key"].detail == "a secret key; SUPABASE_SERVICE_ROLE_KEY is set too, and ignored"
    assert found["Supabase"].status is Status.OK


def test_a_bucket_that_keeps_old_versions_is_reported(tmp_path: Path, simulator: StorageSimulator) -> None:
    simulator.put_object(BUCKET, "two_tower/latest/manifest.json", b"{}")
    simulator.keep_versions(BUCKET)
    found = checked(tmp_path, supabase_environment(simulator))
    assert failures(found) == set()
    assert "versioning is on" in found["bucket"].detail
    assert "lifecycle rule" in found["bucket"].remedy


def test_a_key_that_the_server_refuses_is_a_failure(tmp_path: Path, simulator: StorageSimulator) -> None:
    environ = {"SUPABASE_URL": simulator.url, "SUPABASE_SECRET_KEY": "sb_secret_of_another_project"}
    said = invoke("doctor", "--json", "--home", tmp_path, environment=environ)
    assert said.code == 1
    found = {item["name"]: item for item in json.loads(said.out)}
    assert found["Supabase"]["status"] == "failed"
    assert "sb_secret_of_another_project" not in said.out + said.err


def test_a_missing_policy_for_readers_is_a_failure(tmp_path: Path, simulator: StorageSimulator) -> None:
    environ = {**supabase_environment(simulator), "SUPABASE_PUBLISHABLE_KEY": simulator.anon_key}
    simulator.put_object(BUCKET, "two_tower/latest/manifest.json", b"{}")
    found = checked(tmp_path, environ)
    assert failures(found) == {"readers"}
    assert "docs/consumers.md" in found["readers"].remedy
    simulator.let_anon_read(BUCKET)
    assert checked(tmp_path, environ)["readers"].status is Status.OK


def test_a_project_that_does_not_answer_is_a_failure(tmp_path: Path) -> None:
    environ = {"SUPABASE_URL": f"http://127.0.0.1:{free_port()}", "SUPABASE_SECRET_KEY": "sb_secret_x"}
    found = checked(tmp_path, environ)
    assert failures(found) == {"Supabase"}
    assert "HTTPS_PROXY" in found["Supabase"].remedy


@pytest.mark.parametrize(
    ("secret", "writes"),
    [("sb_secret_abc", True), ("sb_publishable_abc", False), ("abc", None), ("a.b.c", None), ("a.e30.c", None)],
)
def test_the_kind_of_a_key_is_told_from_the_key_alone(secret: str, writes: bool | None) -> None:
    assert kind_of_key(secret).writes is writes
