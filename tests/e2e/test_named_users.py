"""With MLflow's basic-auth app the page, the log and the history name the user who promoted, and a freeze says why."""

from __future__ import annotations

import base64
import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.browser import chromium, registry_pages
from tests.support.commands import invoke
from tests.support.databases import copy_server_database
from tests.support.served import Served, serve, until
from tests.support.simulators.storage import StorageSimulator

pytestmark = pytest.mark.exhaustive

MODEL = "two_tower"
ADMIN = ("admin", "the-operators-own-1")
ALICE = ("alice", "alices-password-1")


def call(served: Served, user: tuple[str, str], method: str, path: str, /, **body: object) -> None:
    """Call MLflow's REST interface as a user, who also claims to be another one."""
    credentials = base64.b64encode(":".join(user).encode()).decode()
    headers = {
        "Content-Type": "application/json",
        "Authorization": f"Basic {credentials}",
        "X-Forwarded-User": "mallory",
    }
    address = f"{served.url}/api/2.0/mlflow/{path}"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def cause_of(served: Served, *, version: int) -> str | None:
    """Whom the manifest names, if it is that of this version."""
    manifest = served.latest(MODEL)
    if manifest is None or manifest.cause is None or manifest.current.model_version != version:
        return None
    return manifest.cause.by


@pytest.fixture
def served(empty_database: Path, tmp_path: Path) -> Iterator[Served]:
    """A server with MLflow's basic-auth app, and alice."""
    home = tmp_path / "home"
    home.mkdir()
    copy_server_database(empty_database, home / "mlflow.db")
    config = tmp_path / "basic_auth.ini"
    config.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path / 'users.db'}\n"
        f"admin_username = {ADMIN[0]}\nadmin_password = {ADMIN[1]}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    more = {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": "for the tests"}
    with StorageSimulator() as simulator, serve(home, simulator, "--app-name", "basic-auth", environment=more) as found:
        call(found, ADMIN, "POST", "users/create", username=ALICE[0], password=ALICE[1])
        call(found, ADMIN, "PATCH", "users/update-admin", username=ALICE[0], is_admin=True)
        yield found


def test_a_promotion_by_a_named_user_says_the_name_on_the_page_and_in_the_history(
    served: Served, tmp_path: Path
) -> None:
    as_admin = replace(served, url=served.url.replace("://", f"://{':'.join(ADMIN)}@"))
    as_admin.train(MODEL, versions=2)
    environment = {"SUPABASE_URL": served.simulator.url, "SUPABASE_SECRET_KEY": served.simulator.service_key}
    here = ("--home", served.directory)
    with (
        chromium(tmp_path) as browser,
        registry_pages(
            browser, served.url, failures=tmp_path, user={"username": ALICE[0], "password": ALICE[1]}
        ) as registry,
    ):
        registry.open_with_stages(MODEL, 1)
        registry.transition("Production", archive=False)
        until(lambda: served.latest(MODEL) is not None, "the manifest", limit_seconds=60)
        registry.reload(1)
        registry.expect_tag("supabase.channel.latest", re.compile(r"^current since \S+ by alice$"))
        until_iso = ("--until", "2999-12-27T08:00Z")
        frozen = invoke("freeze", MODEL, "--reason", "holiday sale", *until_iso, *here, environment=environment)
        assert frozen.code == 0
        registry.open_with_stages(MODEL, 2)
        registry.transition("Production", archive=False)
        registry.expect_notice("two_tower is frozen until 2999-12-27T08:00:00Z by ")
        registry.expect_notice("holiday sale")
        registry.expect_stage("None")
    assert cause_of(served, version=1) == "alice"
    said = invoke("history", f"{MODEL}@latest", "--json", *here, environment=environment)
    rows = json.loads(said.out)
    assert [(row["kind"], row["by"]) for row in rows][1:] == [("promoted", "alice")]
    assert (rows[0]["kind"], rows[0]["reason"], rows[0]["until"]) == ("frozen", "holiday sale", "2999-12-27T08:00:00Z")
    assert invoke("thaw", MODEL, *here, environment=environment).code == 0
    body = {"name": MODEL, "version": "2", "stage": "Production", "archive_existing_versions": False}
    call(served, ALICE, "POST", "model-versions/transition-stage", **body)
    until(lambda: cause_of(served, version=2) is not None, "version 2 in the manifest", limit_seconds=60)
    assert cause_of(served, version=2) == "alice"
