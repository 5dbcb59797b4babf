"""Text from elsewhere as a terminal may have it: what would steer it is shown, not sent."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

LINE_LIMIT = 4_000
"""Characters of one line; what names and messages bring beyond that is left out."""

_STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of control, format, surrogate, line and paragraph characters: escapes, line breaks, and what
turns the direction of writing."""


def shown(text: str) -> str:
    """One line of text with everything that would steer a terminal written as Python writes it, `\\x1b` say."""
    line = text[: LINE_LIMIT + 1]
    if not line.isprintable():
        line = "".join(repr(character)[1:-1] if _steers(character) else character for character in line)
    return line if len(line) <= LINE_LIMIT else line[:LINE_LIMIT] + "…"


def shown_lines(text: str) -> str:
    """The same for a text of our own that has several lines, a traceback say."""
    return "\n".join(map(shown, text.split("\n")))


def shown_json(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON in which such characters are JSON's own escapes, so that it reads back as it was."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(json.dumps(c)[1:-1] if c != "\n" and _steers(c) else c for c in text)


def _steers(character: str) -> bool:
    return unicodedata.category(character) in _STEERING
