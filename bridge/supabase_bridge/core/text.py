"""Escape untrusted text for databases, Markdown and terminals."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

_LATEST_MS = 253_370_764_800_000
"""The beginning of the year 9999."""


def time_from_ms(milliseconds: float | None) -> datetime | None:
    """Convert milliseconds since 1970, as a client of MLflow wrote them; None for a time before 1970 or after 9998."""
    if milliseconds is None or not 0 <= milliseconds < _LATEST_MS:
        return None
    return datetime.fromtimestamp(milliseconds / 1_000, tz=timezone.utc)


def format_time(time: datetime) -> str:
    """Return a time in RFC 3339 form, in UTC with a 'Z', with as few digits of a second as are needed."""
    whole, point, fraction = time.astimezone(timezone.utc).replace(tzinfo=None).isoformat().partition(".")
    return f"{whole}{point}{fraction.rstrip('0')}Z"


def for_database(text: str, *, limit: int) -> str:
    """Return the first `limit` characters, with Python's escapes for those that a database refuses.

    SQLite's driver refuses half a surrogate pair (a byte of a file name that is not UTF-8), PostgreSQL a NUL.
    """
    encodable = text[:limit].encode("utf-8", "backslashreplace").decode()
    return encodable.replace("\x00", "\\x00")[:limit]


_CONTROLS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of control, format (such as text direction), surrogate, line and paragraph characters."""

_MARKUP = re.compile(r"[\\`*<>\[\]|&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|!(?=\[)|^[#+=~-](?=\s|$|[#=~+-])")

_CODE_ENDS = re.compile(r"[`|\\]")

_PUNCTUATION = re.compile(r"[^\w\s]|_", re.ASCII)

_TEXT_LIMIT = 10_000

_ITEM_LIMIT = 500

_ITEMS_LIMIT = 500


def for_markdown(text: str) -> str:
    """Return one line of Markdown that shows this text without markup, line breaks and control characters.

    Underscores inside words have no meaning (CommonMark 0.31, section 6.2) and stay.
    """
    line = "".join(" " if _is_control(c) else c for c in text)
    return _MARKUP.sub(r"\\\g<0>", line)


def code_for_markdown(text: str) -> str:
    """Return one line of Markdown that shows this text as code, in a table too.

    In code, GitHub makes no link, image, issue reference or mention. A text that could end the code span becomes an
    HTML element with character references, which cannot be markup (CommonMark 0.31, section 2.5).
    """
    line = " ".join("".join(" " if _is_control(c) else c for c in text).split())
    if not line:
        return ""
    if not _CODE_ENDS.search(line):
        return f"`{line}`"
    return f"<code>{_PUNCTUATION.sub(lambda found: f'&#{ord(found[0])};', line)}</code>"


def markdown_list(items: Sequence[str]) -> list[str]:
    """Return the lines of a Markdown list of texts; long items are cut, and surplus items are counted."""
    cut = [item if len(item) <= _ITEM_LIMIT else item[:_ITEM_LIMIT] + "…" for item in items[:_ITEMS_LIMIT]]
    lines = [f"- {for_markdown(item)}" for item in cut]
    return lines if len(items) <= _ITEMS_LIMIT else [*lines, f"- and {len(items) - _ITEMS_LIMIT} more"]


def plain_markdown(text: str) -> str:
    """Return foreign Markdown without HTML, images and control characters, cut to a page.

    A browser fetches an image at once, but a link only after a click.
    """
    kept = "".join(c for c in text[:_TEXT_LIMIT] if c in "\n\t" or unicodedata.category(c) not in _CONTROLS)
    return kept.replace("<", "\\<").replace("![", "!\\[")


LINE_LIMIT = 4_000
"""The largest number of characters in one line."""


def for_terminal(text: str) -> str:
    """Return one line of text in which control characters are Python's escapes, such as `\\x1b`."""
    line = text[: LINE_LIMIT + 1]
    if not line.isprintable():
        line = "".join(repr(character)[1:-1] if _is_control(character) else character for character in line)
    return line if len(line) <= LINE_LIMIT else line[:LINE_LIMIT] + "…"


def shown_lines(text: str) -> str:
    """Return a text of several lines, such as a traceback, with each line as `for_terminal` returns it."""
    return "\n".join(map(for_terminal, text.split("\n")))


def shown_json(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON in which control characters are JSON's escapes, so that the value stays the same."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(json.dumps(c)[1:-1] if c != "\n" and _is_control(c) else c for c in text)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in _CONTROLS
