"""A message as text for people: for Slack as Block Kit, for Apprise as a title and a body.

Sources: https://docs.slack.dev/messaging/formatting-message-text ("Escaping text") and
https://docs.slack.dev/reference/block-kit/blocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from supabase_bridge.core.announcement import AnnouncementKind
from supabase_bridge.core.comparison import MetricChange
from supabase_bridge.core.comparison_text import metric_line
from supabase_bridge.core.text import for_terminal

_HEADER_LIMIT, _FIELD_LIMIT, _TEXT_LIMIT = 150, 2_000, 3_000
"""Slack's limits, in characters after escaping."""

_FIELDS = 10
_METRICS = _FIELDS - 2
_NOTES_LIMIT = 500


def slack_message(body: str) -> dict[str, Any]:
    """Return the message for an incoming webhook of Slack's, in which every text is escaped.

    Args:
        body: The JSON text of an announcement.
    """
    message = json.loads(body)
    kind, data = AnnouncementKind(message["type"]), message["data"]
    title = _title(kind, data)
    fields = [_field(name, value) for name, value in _facts(kind, data)][:_FIELDS]
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": escaped(title, _HEADER_LIMIT), "emoji": False}},
        *([{"type": "section", "fields": fields}] if fields else []),
    ]
    if remarks := _remarks(kind, data):
        text = escaped(remarks, _TEXT_LIMIT)
        blocks.append({"type": "context", "elements": [{"type": "plain_text", "text": text, "emoji": False}]})
    return {"text": escaped(title, _TEXT_LIMIT), "blocks": blocks}


def plain_message(body: str) -> tuple[str, str]:
    """Return the title and the text for any other service, in which foreign text mentions no user."""
    message = json.loads(body)
    kind, data = AnnouncementKind(message["type"]), message["data"]
    lines = [f"{name}: {value}" for name, value in _facts(kind, data)]
    text = "\n".join([*lines, *filter(None, [_remarks(kind, data)])]) or _title(kind, data)
    return _inert(_title(kind, data)), _inert(text)


def escaped(text: str, limit: int) -> str:
    """Return a text with Slack's three control characters escaped, in at most `limit` characters."""
    pieces = [_ESCAPES.get(character, character) for character in text[: limit + 1]]
    length = sum(map(len, pieces))
    if length <= limit:
        return "".join(pieces)
    while length >= limit:
        length -= len(pieces.pop())
    return "".join(pieces) + "…"


_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def _inert(text: str) -> str:
    """A text without the characters with which services mention people and mark up."""
    return text.replace("@", "@\u200b").replace("<", "‹").replace(">", "›")


def _title(kind: AnnouncementKind, data: Mapping[str, Any]) -> str:
    model = for_terminal(str(data.get("model", "")))
    version = f" version {data['model_version']}" if data.get("model_version") is not None else ""
    if kind is AnnouncementKind.ACTIVATED:
        before = data.get("previous")
        was = "" if before is None else f", was {_release(before)}"
        return f"{model}: {data['channel']} is {_release(data['current'])}{was}"
    if kind is AnnouncementKind.MIRRORED:
        return f"{model}{version} is mirrored as {data.get('run_id', '')}"
    if kind is AnnouncementKind.LEFT:
        return f"{model}{version} left {for_terminal(str(data['left']))}, and {data['channel']} still points to it"
    if kind is AnnouncementKind.TEST:
        return f"A test of the destination {data['destination']}"
    return f"{model}{version} was {'rejected' if kind is AnnouncementKind.REJECTED else 'given up'}"


def _facts(kind: AnnouncementKind, data: Mapping[str, Any]) -> list[tuple[str, str]]:
    if kind is not AnnouncementKind.ACTIVATED:
        reason = data.get("reason")
        return [("reason", for_terminal(str(reason)))] if reason else []
    before = data.get("previous")
    facts = [("now", _release(data["current"])), ("before", "none" if before is None else _release(before))]
    comparable = "metrics_not_comparable" not in data
    for name, values in list(data.get("metrics", {}).items())[:_METRICS]:
        change = MetricChange(name=name, before=values.get("before"), after=values.get("after"))
        facts.append(("metric", for_terminal(metric_line(change, comparable=comparable)).replace("->", "→")))
    return facts


def _remarks(kind: AnnouncementKind, data: Mapping[str, Any]) -> str:
    if kind is not AnnouncementKind.ACTIVATED:
        return ""
    notes = for_terminal(str(data.get("release_notes", ""))[:_NOTES_LIMIT])
    how = "rolled back" if data.get("rollback") else "activated"
    by_hand = " manually" if data.get("by_hand") else ""
    by_hand += f" by {for_terminal(str(data['by']))}" if data.get("by") else ""
    back = f"supabase-bridge rollback {data['model']} --channel {data['channel']}"
    return f"{notes} · {how}{by_hand} · to go back: {back}"


def _release(release: Mapping[str, Any]) -> str:
    version = release.get("model_version")
    return str(release["run_id"]) + ("" if version is None else f" (v{version})")


def _field(name: str, value: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": escaped(f"{name}: {value}", _FIELD_LIMIT), "emoji": False}
