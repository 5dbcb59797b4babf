"""`supabase-bridge look` in a headless Chromium: charts are painted, in light and dark, and no other host is asked."""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.request
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.releases.manual import activate_manually
from supabase_bridge.storage.directory import DirectoryStore
from tests.e2e.browser import chromium
from tests.look.releases import lay_out_pair
from tests.support.machine import free_port
from tests.support.processes import started, surroundings
from tests.support.served import until
from tests.support.small_releases import run_id

pytestmark = pytest.mark.exhaustive

LIMIT_MS = 60_000


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(f"{url}/_stcore/health", timeout=5).read() == b"ok")
    except (urllib.error.URLError, ConnectionError):
        return False


def brightness(page: Page) -> int:
    """The mean of red, green and blue of the background."""
    colour = page.locator("[data-testid=stApp]").evaluate("element => getComputedStyle(element).backgroundColor")
    parts = [int(part) for part in colour.strip("rgba()").split(",")[:3]]
    return sum(parts) // 3


def look_at(page: Page, url: str, *, light: bool) -> set[str | None]:
    """Use the page; returns the hosts that it asked."""
    hosts: set[str | None] = set()
    errors: list[str] = []
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    page.on("websocket", lambda socket: hosts.add(urlsplit(socket.url).hostname))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    expect(page.get_by_text("To undo the switch")).to_be_visible(timeout=LIMIT_MS)
    charts = page.get_by_test_id("stVegaLiteChart")
    # They are painted seconds after the text.
    for number, label in enumerate(("Users by the number of items", "Scores of both releases")):
        expect(charts.nth(number)).to_have_attribute("aria-label", re.compile(label), timeout=LIMIT_MS)
        expect(charts.nth(number).locator("svg path").first).to_be_attached(timeout=LIMIT_MS)
    assert (brightness(page) > 200) is light
    expect(page.get_by_text("2 better, 0 worse")).to_be_visible()
    tables = page.get_by_test_id("stDataFrame")
    expect(tables).to_have_count(4, timeout=LIMIT_MS)
    page.get_by_role("combobox").click()
    page.get_by_role("option").nth(3).click()
    expect(tables).to_have_count(4)
    # Only the length of the lists can be pressed: nothing moves a pointer.
    names = [
        name.strip()
        for name in page.locator("[data-testid=stButton], [data-testid=stFormSubmitButton]").all_inner_texts()
    ]
    assert (names, errors) == ([], [])
    return hosts


def test_a_browser_shows_both_releases_in_light_and_dark(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "supabase" / "models")
    store.ensure_bucket()
    lay_out_pair(store)
    for name, number in (("latest", 1), ("staging", 2)):
        channel = ChannelPaths(model_key="two_tower", channel=name)
        activate_manually(store, channel, run_id(number), now=datetime.now(timezone.utc))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "supabase_bridge.cli", "look", "two_tower", "--no-browser", "--port", str(port)]
    environment = surroundings(tmp_path, SUPABASE_BRIDGE_HOME=str(tmp_path))
    with started(command, cwd=tmp_path, env=environment) as process, chromium(tmp_path / "chromium") as browser:
        until(lambda: answers(url) or process.poll() is not None, "the page", limit_seconds=60)
        for light in (True, False):
            with browser.new_context(
                color_scheme="light" if light else "dark", viewport={"width": 1400, "height": 2900}
            ) as context:
                assert look_at(context.new_page(), url, light=light) == {"127.0.0.1"}
