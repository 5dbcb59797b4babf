"""A promotion by mouse, in MLflow's own user interface: the manifest moves, and the page says so."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
from playwright.sync_api import Browser

from supabase_bridge.config import FILE_NAME
from tests.e2e.browser import RegistryPages, chromium, registry_pages
from tests.e2e.served import BUCKET, Served, serve, until
from tests.simulators.storage import StorageSimulator

logger = logging.getLogger(__name__)

MODEL = "two_tower"
LIMIT_SECONDS = 2.0
# What MLflow 3 asks every server for, and only one with MLflow's basic-auth app has.
NOT_OURS = "/ajax-api/2.0/mlflow/users/current"


GATED = "two_tower_gated"
GATE = f'[gates.{GATED}]\ncriteria = ["recall@20 >= 1.5"]\n'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("served")
    (home / FILE_NAME).write_text(GATE)
    with StorageSimulator() as simulator, serve(home, simulator) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running


def promote(registry: RegistryPages, served: Served, model: str, version: int, *, archive: bool = False) -> float:
    """Move a version to Production by mouse; the seconds from the click on OK to the manifest that names it."""

    def named() -> bool:
        manifest = served.latest(model)
        return manifest is not None and manifest.current.model_version == version

    registry.open(model, version)
    clicked = registry.transition("Production", archive=archive)
    return until(named, f"the manifest to name version {version}", limit_seconds=60) - clicked


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
        registry.open(MODEL, 2)
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
    served.train(GATED, versions=1)
    with registry_pages(browser, served.url, failures=tmp_path) as registry:
        registry.open(GATED, 1)
        registry.transition("Production", archive=True)
        registry.expect_notice(f"{GATED} v1 cannot go to Production: recall@20 ")
        registry.expect_notice(" < 1.5")
        registry.expect_stage("None")
        registry.expect_tag("supabase.verdict", re.compile("^failed: recall@20 .* < 1.5$"))
        registry.open(GATED, 1)
        registry.expect_stage("None")
    assert served.latest(GATED) is None
