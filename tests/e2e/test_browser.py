"""A promotion by mouse in MLflow's own interface moves the manifest, and the page says so. No test writes a setting."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
from mlflow import MlflowClient
from playwright.sync_api import Browser

from tests.e2e.browser import RegistryPages, chromium, registry_pages
from tests.support.databases import copy_server_database
from tests.support.served import BUCKET, Served, serve, until
from tests.support.simulators.storage import StorageSimulator

logger = logging.getLogger(__name__)

pytestmark = pytest.mark.exhaustive

MODEL = "two_tower"
LIMIT_SECONDS = 2.0
# What MLflow 3 asks every server for, and only one with MLflow's basic-auth app has.
NOT_OURS = "/ajax-api/2.0/mlflow/users/current"


GATED = "two_tower_gated"


@pytest.fixture(scope="module")
def served(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("served")
    copy_server_database(empty_database, home / "mlflow.db")
    with StorageSimulator() as simulator, serve(home, simulator) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running


def until_named(served: Served, model: str, version: int) -> float:
    """Wait until the manifest names a version; returns when it does, by the monotonic clock."""

    def named() -> bool:
        manifest = served.latest(model)
        return manifest is not None and manifest.current.model_version == version

    return until(named, f"the manifest to name version {version}", limit_seconds=60)


def promote(registry: RegistryPages, served: Served, model: str, version: int, *, archive: bool = False) -> float:
    """Move a version to Production by mouse; the seconds from the click on OK to the manifest that names it."""
    registry.open_with_stages(model, version)
    clicked = registry.transition("Production", archive=archive)
    return until_named(served, model, version) - clicked


def train_gated(served: Served, model: str) -> None:
    """A version that fails the gate which the model's own tags set."""
    client = MlflowClient(tracking_uri=served.url, registry_uri=served.url)
    client.create_registered_model(model, tags={"supabase.gate.recall_at_20": ">= 1.5"})
    served.train(model, versions=1)


def test_an_alias_set_by_mouse_in_the_default_ui_is_in_the_manifest_within_two_seconds(
    browser: Browser, served: Served, tmp_path: Path
) -> None:
    model = "two_tower_by_alias"
    releases = served.train(model, versions=2)
    with registry_pages(browser, served.url, failures=tmp_path, first_visit=True) as registry:
        taken: list[float] = []
        for version in (1, 2):
            registry.open(model, version)
            clicked = registry.set_alias("champion")
            taken.append(until_named(served, model, version) - clicked)
            logger.info("version %d was in the manifest %.3f seconds after the click", version, taken[-1])
            # Nobody reloads the page.
            registry.expect_alias("champion")
            registry.expect_tag("supabase.status", "active")
            registry.expect_tag("supabase.channel.latest", re.compile("^current since "))
        registry.open(model, 1)
        registry.expect_tag("supabase.channel.latest", f"superseded by {releases[1].run_id}")
        registry.set_alias("prod")
        note = "alias `prod` moves no channel; see docs/settings.md, Stages and aliases"
        registry.expect_tag("supabase.note.unmapped", note)
    assert min(taken) < LIMIT_SECONDS, taken
    assert not list(served.directory.glob("*.toml"))


def test_an_alias_of_a_failing_version_is_refused_with_the_reason_in_the_default_ui(
    browser: Browser, served: Served, tmp_path: Path
) -> None:
    model = f"{GATED}_by_alias"
    train_gated(served, model)
    with registry_pages(browser, served.url, failures=tmp_path, first_visit=True) as registry:
        registry.open(model, 1)
        registry.set_alias("champion")
        registry.expect_alert(f"{model} v1 cannot be @champion: recall@20 ")
        registry.expect_alert(" < 1.5")
        registry.open(model, 1)
        registry.expect_tag("supabase.verdict", re.compile("^failed: recall@20 .* < 1.5$"))
    assert served.latest(model) is None


def test_a_model_promoted_by_mouse_into_another_one_is_released_there_by_its_alias(
    browser: Browser, served: Served, tmp_path: Path
) -> None:
    dev, prod = "retrieval_dev", "retrieval_prod"
    MlflowClient(tracking_uri=served.url, registry_uri=served.url).create_registered_model(prod)
    releases = served.train(dev, versions=1)
    with registry_pages(browser, served.url, failures=tmp_path) as registry:
        registry.open(dev, 1)
        registry.promote_into(prod)
        wanted = releases[0].meta.replace(dev, prod)
        until(lambda: wanted in served.simulator.object_keys(BUCKET), "the copy to be mirrored", limit_seconds=60)
        registry.open(prod, 1)
        registry.reload(1)
        registry.expect_tag("supabase.copy_of", f"models:/{dev}/1")
        registry.expect_tag("supabase.status", "mirrored")
        registry.set_alias("champion")
        until_named(served, prod, 1)
        registry.expect_tag("supabase.status", "active")
    assert served.latest(dev) is None


def test_a_promotion_by_mouse_is_in_the_manifest_within_two_seconds_and_then_on_the_page(
    browser: Browser, served: Served, tmp_path: Path
) -> None:
    releases = served.train(MODEL, versions=2)
    with registry_pages(browser, served.url, failures=tmp_path) as registry:
        taken: list[float] = []
        for version, archive in ((1, False), (2, True), (1, True)):
            taken.append(promote(registry, served, MODEL, version, archive=archive))
            logger.info("version %d was in the manifest %.3f seconds after the click", version, taken[-1])
            manifest, release = served.latest(MODEL), releases[version - 1]
            assert manifest is not None
            assert (manifest.current.run_id, manifest.current.onnx_path) == (str(release.run_id), release.onnx)
            assert release.onnx in served.simulator.object_keys(BUCKET, release.prefix)
            # Nobody reloads the page.
            registry.expect_stage("Production")
            registry.expect_tag("supabase.status", "active")
            registry.expect_tag("supabase.run_id", str(release.run_id))
            registry.expect_tag("supabase.channel.latest", re.compile("^current since "))
        registry.open_with_stages(MODEL, 2)
        registry.expect_stage("Archived")
        registry.expect_tag("supabase.status", "superseded")
        registry.expect_tag("supabase.channel.latest", f"superseded by {releases[0].run_id}")
    # A machine that stands still for a moment does so for one of them.
    assert median(taken) < LIMIT_SECONDS, taken


def test_the_pages_of_a_promotion_find_no_fault_with_the_server(
    browser: Browser, served: Served, tmp_path: Path
) -> None:
    model = "two_tower_watched"
    served.train(model, versions=1)
    with registry_pages(browser, served.url, failures=tmp_path) as registry:
        promote(registry, served, model, 1)
        registry.expect_tag("supabase.status", "active")
        errors = [error for error in registry.errors if served.url in error and NOT_OURS not in error]
    assert errors == []


def test_a_refused_promotion_says_why_on_the_page_and_changes_nothing(
    browser: Browser, served: Served, tmp_path: Path
) -> None:
    train_gated(served, GATED)
    with registry_pages(browser, served.url, failures=tmp_path) as registry:
        registry.open_with_stages(GATED, 1)
        registry.transition("Production", archive=True)
        registry.expect_notice(f"{GATED} v1 cannot go to Production: recall@20 ")
        registry.expect_notice(" < 1.5")
        registry.expect_stage("None")
        registry.expect_tag("supabase.verdict", re.compile("^failed: recall@20 .* < 1.5$"))
        registry.open_with_stages(GATED, 1)
        registry.expect_stage("None")
    assert served.latest(GATED) is None
