"""MLflow's pages in a headless Chromium, used as a person uses them."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, ConsoleMessage, Error, Locator, Page, TimeoutError, expect, sync_playwright

from tests.requirements_on_machine import program

logger = logging.getLogger(__name__)

_LIMIT_MS = 60_000
_STALL_MS = 5_000
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# What MLflow puts over the page at a first visit: an invitation (2.22) and its assistant (3.x).
_NOT_THE_FIRST_VISIT = """
    localStorage.setItem("_mlflow_model_registry_promo_modal_dismissed", "true");
    localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
    localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""


@contextmanager
def chromium(home: Path) -> Iterator[Browser]:
    """A running browser; skips, or fails in CI, where Chromium is not installed."""
    executable = program("chromium", install="chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=_ARGUMENTS, env={**os.environ, "HOME": str(home)}, timeout=_LIMIT_MS
        )
        try:
            yield browser
        finally:
            browser.close()


class RegistryPages:
    """The model registry of an MLflow server, in one tab.

    Attributes:
        errors: What the pages have written to the console as errors, each with the address that it is about.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.errors: list[str] = []
        self._page = page
        self._url = url
        page.on("console", self._keep_error)
        page.on("pageerror", self._keep_exception)

    def open(self, model: str, version: int) -> None:
        """Show a version as a reader who wants stages sees it: with "New model registry UI" switched off."""
        self._page.goto(f"{self._url}/#/models/{model}/versions/{version}")
        title = self._page.get_by_role("heading", name=f"Version {version}", exact=True)
        expect(title).to_be_visible(timeout=_LIMIT_MS)
        switch = self._page.get_by_role("switch", name="New model registry UI")
        expect(switch).to_be_visible(timeout=_LIMIT_MS)
        if switch.is_checked():
            switch.click()
            self._page.get_by_role("dialog").get_by_role("button", name="Disable").click()
        expect(self._stage).to_be_visible(timeout=_LIMIT_MS)

    def transition(self, stage: str, *, archive: bool) -> float:
        """Move the version shown to a stage; returns when OK was clicked, by the monotonic clock."""
        self._choose(stage)
        dialog = self._page.get_by_role("dialog").filter(has_text="Stage transition")
        archiving = dialog.get_by_role("checkbox")
        expect(archiving).not_to_be_checked()
        if archive:
            archiving.check()
        confirm = dialog.get_by_role("button", name="OK")
        # The dialog's entrance is not part of what the caller measures.
        confirm.click(trial=True)
        clicked = time.monotonic()
        confirm.click()
        return clicked

    def _choose(self, stage: str) -> None:
        """Open the menu of stages and click on one.

        On a busy machine Chromium may stop drawing in the middle of the menu's entrance, and a click waits for the
        menu to stand still. A picture makes it draw; then the click is tried again.
        """
        item = self._page.get_by_role("menuitem").filter(has_text=stage)
        deadline = time.monotonic() + _LIMIT_MS / 1000
        while True:
            try:
                if not item.is_visible():
                    self._stage.click(timeout=_STALL_MS)
                item.click(timeout=_STALL_MS)
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise
                self._page.screenshot()
            else:
                return

    def expect_notice(self, text: str) -> None:
        """Wait until the page says something in a notice over the page."""
        notice = self._page.locator("[class*=notification-notice]").filter(has_text=text)
        expect(notice.first).to_be_visible(timeout=_LIMIT_MS)

    def expect_stage(self, stage: str) -> None:
        """Wait until the page says that the version is in this stage."""
        expect(self._stage).to_have_text(stage, timeout=_LIMIT_MS)

    def expect_tag(self, name: str, value: str | re.Pattern[str]) -> None:
        """Wait until the page shows a tag with a value that is `value`, or that the pattern is found in."""
        row = self._page.get_by_role("row").filter(has=self._page.get_by_role("cell", name=name, exact=True))
        expect(row.get_by_role("cell").nth(1)).to_have_text(value, timeout=_LIMIT_MS)

    @property
    def _stage(self) -> Locator:
        return self._page.locator("[class*=stage-transition-dropdown]")

    def _keep_error(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} {message.location['url']}")

    def _keep_exception(self, error: Error) -> None:
        self.errors.append(f"{error} {self._url}")


@contextmanager
def registry_pages(browser: Browser, url: str, failures: Path) -> Iterator[RegistryPages]:
    """A tab of its own, of a person who has been there before; what it shows when the test fails is kept as a picture.

    Args:
        browser: Where.
        url: The MLflow server.
        failures: An existing directory for the picture.
    """
    with browser.new_context(viewport={"width": 1400, "height": 1000}, locale="en-US") as context:
        context.add_init_script(_NOT_THE_FIRST_VISIT)
        context.set_default_timeout(_LIMIT_MS)
        page = context.new_page()
        try:
            yield RegistryPages(page, url)
        except BaseException:
            picture = failures / "page.png"
            page.screenshot(path=picture)
            logger.exception("what the page showed: %s", picture)
            raise
