"""MLflow's pages in a headless Chromium, used as a person uses them."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Error,
    HttpCredentials,
    Locator,
    Page,
    TimeoutError,
    ViewportSize,
    expect,
    sync_playwright,
)

from tests.support.machine import program

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
        """Show a version in MLflow's default UI."""
        self._page.goto(f"{self._url}/#/models/{model}/versions/{version}")
        self.expect_version(version)

    def reload(self, version: int) -> None:
        """Load the page of the version shown again: a page that was loaded before a version's first tag folds them."""
        self._page.reload()
        self.expect_version(version)

    def expect_version(self, version: int) -> None:
        """Wait until the page shows a version with this number."""
        title = self._page.get_by_role("heading", name=f"Version {version}", exact=True)
        expect(title).to_be_visible(timeout=_LIMIT_MS)

    def set_alias(self, alias: str) -> float:
        """Give the version shown its first alias; returns when Save was clicked, by the monotonic clock."""
        self._page.get_by_role("button", name="Add").first.click()
        dialog = self._page.get_by_role("dialog").filter(has_text="alias")
        entry = dialog.get_by_role("combobox")
        entry.fill(alias)
        entry.press("Enter")
        save = dialog.get_by_role("button", name="Save aliases")
        # The dialog's entrance is not part of what the caller measures.
        save.click(trial=True)
        clicked = time.monotonic()
        save.click()
        return clicked

    def expect_alert(self, text: str) -> None:
        """Wait until the dialog over the page shows an error."""
        alert = self._page.get_by_role("dialog").get_by_role("alert")
        expect(alert).to_contain_text(text, timeout=_LIMIT_MS)

    def expect_alias(self, alias: str) -> None:
        """Wait until the page shows that the version has an alias."""
        shown = self._page.get_by_text(f"@ {alias}", exact=True).or_(self._page.get_by_text(alias, exact=True))
        expect(shown.first).to_be_visible(timeout=_LIMIT_MS)

    def promote_into(self, model: str) -> None:
        """Copy the version shown into another registered model by "Promote model"."""
        self._page.get_by_role("button", name="Promote model").click()
        dialog = self._page.get_by_role("dialog").filter(has_text="Copy to model")
        dialog.get_by_role("combobox").fill(model)
        self._page.locator("[class*=select-item-option]").filter(has_text=model).first.click()
        dialog.get_by_role("button", name="Promote", exact=True).click()

    def open_with_stages(self, model: str, version: int) -> None:
        """Show a version as a reader who wants stages sees it: with "New model registry UI" switched off."""
        self.open(model, version)
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
def registry_pages(
    browser: Browser, url: str, failures: Path, *, first_visit: bool = False, user: HttpCredentials | None = None
) -> Iterator[RegistryPages]:
    """A tab of its own; what it shows when the test fails is kept as a picture.

    Args:
        first_visit: A person who has never been there, instead of one who has dismissed what greets newcomers.
        user: Who answers the server's question for a name and a password.
        browser: Where.
        url: The MLflow server.
        failures: An existing directory for the picture.
    """
    size: ViewportSize = {"width": 1400, "height": 1000}
    with browser.new_context(viewport=size, locale="en-US", http_credentials=user) as context:
        if not first_visit:
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
