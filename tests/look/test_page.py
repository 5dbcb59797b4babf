"""The page of a look, run by Streamlit's own test driver without a browser."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import supabase_bridge.look
from supabase_bridge.releases.manual import activate_manually
from supabase_bridge.storage.directory import DirectoryStore
from tests.look.conftest import STAGING
from tests.look.releases import ITEMS, PROTOCOL, lay_out, sample_files, two_towers
from tests.support.small_releases import LATEST, run_id

PAGE = Path(supabase_bridge.look.__file__).with_name("page.py")
LIMIT_SECONDS = 60.0

Open = Callable[..., AppTest]


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Open:
    """Open the page of two releases; the second call has a session of its own."""

    def open_it(now: str = "latest", candidate: str = "staging") -> AppTest:
        monkeypatch.setattr(sys, "argv", [str(PAGE), "two_tower", now, candidate])
        page = AppTest.from_file(PAGE, default_timeout=LIMIT_SECONDS).run()
        assert not page.exception
        return page

    return open_it


def glance(page: AppTest) -> dict[str, str]:
    """The numbers at the top."""
    return {metric.label: metric.value for metric in page.metric}


def table(page: AppTest, column: str) -> dict[str, list[Any]]:
    """The columns of the first table that has this one."""
    found = [frame.value for frame in page.dataframe if column in frame.value.columns]
    return {str(name): list(found[0][name]) for name in found[0].columns}


def texts(page: AppTest) -> str:
    elements = (*page.markdown, *page.caption, *page.info, *page.warning, *page.error, *page.title)
    return "\n".join(element.value for element in elements).replace("\\", "")


def test_two_releases_are_shown_side_by_side(pair: DirectoryStore, open_page: Open) -> None:
    assert pair.name
    page = open_page()
    shown = glance(page)
    assert (shown["Gate of the candidate"], shown["Metrics"]) == ("passed", "2 better, 0 worse")
    same, _, length = shown["Items in both lists"].partition(" of ")
    assert (0 < float(same) < 20, length) == (True, "20")
    metrics = table(page, "Difference")
    rows = {
        name: [metrics[column][place] for column in ("Now", "Candidate", "Difference", "", "popularity")]
        for place, name in enumerate(metrics["Metric"])
    }
    assert rows == {
        "loss": ["3.1", "2.9", "-0.2", "better", "—"],
        "recall@20": ["0.58", "0.61", "+0.03", "better", "0.22"],
        "auc": ["0.871", "0.874", "+0.003", "higher", "0.79"],
        "coverage@20": ["—", "0.44", "—", "", "—"],
        "map@20": ["0.142", "0.139", "-0.003", "lower", "0.04"],
    }
    changed = table(page, "Moved by (mean places)")
    overlaps = [int(text.partition(" ")[0]) for text in changed["In both lists"]]
    assert (overlaps == sorted(overlaps), len(overlaps)) == (True, 10)
    # The most changed user is chosen, and another one can be.
    (users,) = page.selectbox
    assert users.value == changed["User"][0]
    now, candidate = table(page, "Becomes"), table(page, "Was")
    assert now["#"] == list(range(1, 21))
    assert candidate["Was"].count("new") == now["Becomes"].count("gone") == 20 - overlaps[0]
    assert all(title.endswith(")") for title in now["Item"])
    page = users.set_value(changed["User"][5]).run()
    assert table(page, "Was")["Was"].count("new") == 20 - overlaps[5]
    assert "current in latest since 20" in texts(page)
    assert not page.button


@pytest.mark.exhaustive
def test_lists_can_be_shorter(pair: DirectoryStore, open_page: Open) -> None:
    assert pair.name
    page = open_page()
    page = page.segmented_control[0].set_value(10).run()
    assert glance(page)["Items in both lists"].partition(" of ")[2] == "10"
    assert len(table(page, "Was")["Was"]) == 10


@pytest.mark.exhaustive
def test_the_same_release_twice_changes_nothing(pair: DirectoryStore, open_page: Open) -> None:
    assert pair.name
    page = open_page("latest", str(run_id(1)))
    assert glance(page)["Items in both lists"] == "20.0 of 20"
    assert f"Both sides are the same release (latest and {run_id(1)}), so nothing differs." in texts(page)
    assert set(table(page, "Was")["Was"]) == {str(rank) for rank in range(1, 21)}


@pytest.mark.exhaustive
def test_metrics_that_cannot_be_compared_have_no_difference(store: DirectoryStore, open_page: Open) -> None:
    lay_out(store, 1, metrics={"auc": 0.8}, evaluation_protocol=PROTOCOL)
    lay_out(store, 2, metrics={"auc": 0.9})
    page = open_page(str(run_id(1)), str(run_id(2)))
    assert table(page, "Difference")["Difference"] == ["—"]
    assert glance(page)["Metrics"] == "not comparable"
    assert "The metrics cannot be compared: it has no evaluation protocol" in texts(page)


def test_releases_without_metrics_and_lists_say_how_to_get_them(store: DirectoryStore, open_page: Open) -> None:
    for number in (1, 2):
        lay_out(store, number)
    page = open_page(str(run_id(1)), str(run_id(2)))
    assert glance(page) == {
        "Gate of the candidate": "none",
        "Metrics": "—",
        "Items in both lists": "—",
        "Change of the median score": "—",
    }
    shown = texts(page)
    assert "Neither release has metrics. Log them before the model is registered: docs/training.md." in shown
    assert "Load an embedding set for each release (`supabase-bridge embeddings load`), or log a sample" in shown


def test_a_switch_while_the_page_is_open_is_reported(pair: DirectoryStore, open_page: Open) -> None:
    page = open_page()
    assert not page.warning
    activate_manually(pair, LATEST, run_id(2), now=datetime.now(timezone.utc))
    page.run()
    moved = f"two_tower@latest names {run_id(2)} by now. This page shows {run_id(1)}; reload it to compare"
    assert moved in texts(page)
    assert glance(page)["Items in both lists"] != "20.0 of 20"


def test_a_release_that_cannot_be_read_is_an_error_that_says_what_to_do(store: DirectoryStore, open_page: Open) -> None:
    lay_out(store, 1)
    page = open_page(str(run_id(1)), "staging")
    (error,) = page.error
    assert "The releases cannot be compared." in error.value
    assert "two_tower has no channel 'staging'" in error.value.replace("\\", "")
    lay_out(store, 2)
    activate_manually(store, STAGING, run_id(2), now=datetime.now(timezone.utc))
    # The next run of the same page tries again.
    assert not page.run().error


def test_foreign_text_is_shown_as_it_is(store: DirectoryStore, open_page: Open) -> None:
    evil = "**bold** [x](http://h/x) :red[y] $z$ <b>"
    titles = {f"item-{number}": f"{evil}\u202e{number}" for number in range(ITEMS)}
    files = {**sample_files(), "features/titles.json": json.dumps(titles).encode()}
    gate = {"threshold_criteria": [{"criterion": "auc >= 1", "passed": False, "finding": evil}]}
    for number in (1, 2):
        lay_out(store, number, onnx_bytes=two_towers(number), files=files, metrics={evil: 1.0}, **gate)
    page = open_page(str(run_id(1)), str(run_id(2)))
    assert glance(page)["Gate of the candidate"] == "failed"
    (finding,) = [caption.value for caption in page.caption if "bold" in caption.value]
    assert "\\*\\*bold\\*\\* \\[x\\]\\(http\\:\\/\\/h\\/x\\) \\:red\\[y\\] \\$z\\$ \\<b\\>" in finding
    # A table shows text; characters that change the direction of text are escaped.
    assert evil in table(page, "Difference")["Metric"]
    assert all(title.startswith(f"{evil}\\u202e") for title in table(page, "Was")["Item"])
