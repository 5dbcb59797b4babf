"""A message as people read it, in Slack and through Apprise."""

from __future__ import annotations

import json
from typing import Any

import pytest

from supabase_bridge.announce.texts import escaped, plain_message, slack_message

SWITCH: dict[str, Any] = {
    "type": "release.activated",
    "timestamp": "2025-11-01T02:40:10Z",
    "data": {
        "model": "two_tower",
        "channel": "latest",
        "current": {"run_id": "20251031T093831Z", "model_version": 7},
        "previous": {"run_id": "20251015T112233Z", "model_version": 6},
        "metrics": {"recall@20": {"before": 0.68, "after": 0.7}, "auc": {"after": 0.9}},
        "release_notes": "More data.",
        "by": "ann",
        "by_hand": False,
        "rollback": False,
    },
}


def with_data(**changes: Any) -> str:
    return json.dumps({**SWITCH, "data": {**SWITCH["data"], **changes}})


def texts(value: Any) -> list[str]:
    """Every text of a message to Slack."""
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in texts(item)]


def test_slack_gets_a_header_what_changed_and_how_to_go_back() -> None:
    message = slack_message(json.dumps(SWITCH))
    title = "two_tower: latest is 20251031T093831Z (v7), was 20251015T112233Z (v6)"
    header, section, context = message["blocks"]
    assert (message["text"], header["text"]["text"]) == (title, title)
    assert [field["text"] for field in section["fields"]] == [
        "now: 20251031T093831Z (v7)",
        "before: 20251015T112233Z (v6)",
        "metric: recall@20 0.68 → 0.7 (+0.02)",
        "metric: auc none → 0.9",
    ]
    assert context["elements"][0]["text"] == (
        "More data. · activated by ann · to go back: supabase-bridge rollback two_tower --channel latest"
    )


def test_slack_s_limits_hold_for_the_longest_texts() -> None:
    long = "&" * 5_000
    metrics = {f"{number}{long}": {"after": 1.0} for number in range(20)}
    message = slack_message(with_data(model=long, release_notes=long, metrics=metrics))
    header, section, context = message["blocks"]
    assert len(header["text"]["text"]) <= 150
    assert len(section["fields"]) == 10
    assert max(len(field["text"]) for field in section["fields"]) <= 2_000
    assert len(context["elements"][0]["text"]) <= 3_000


@pytest.mark.parametrize(
    ("text", "limit", "shown"), [("a<b", 9, "a&lt;b"), ("a<b>", 6, "a&lt;…"), ("a<b>", 5, "a…"), ("ab", 2, "ab")]
)
def test_an_escaped_text_is_cut_between_characters(text: str, limit: int, shown: str) -> None:
    assert escaped(text, limit) == shown


@pytest.mark.parametrize(
    ("kind", "data", "title"),
    [
        ("release.failed", {"model_version": 3, "reason": "no"}, "two_tower version 3 was given up"),
        ("release.rejected", {"model_version": 3, "reason": "no"}, "two_tower version 3 was rejected"),
        ("release.mirrored", {"model_version": 3, "run_id": "X"}, "two_tower version 3 is mirrored as X"),
        (
            "release.left",
            {"model_version": 3, "left": "stage Production", "channel": "latest"},
            "two_tower version 3 left stage Production, and latest still points to it",
        ),
    ],
)
def test_every_kind_has_a_title(kind: str, data: dict[str, Any], title: str) -> None:
    body = json.dumps({"type": kind, "timestamp": "", "data": {"model": "two_tower", **data}})
    assert slack_message(body)["text"] == title
    assert plain_message(body)[0] == title


def test_a_text_for_any_other_service_mentions_no_user() -> None:
    title, text = plain_message(with_data(release_notes="@everyone <@U1> <b>"))
    assert title.startswith("two_tower: latest is 20251031T093831Z")
    assert "@everyone" not in text
    assert "<" not in text
