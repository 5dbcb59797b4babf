"""Text from elsewhere in a Markdown document: shown as it is, and nothing else. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_CONTROLS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_MARKUP = re.compile(r"[\\`*<>\[\]|&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|!(?=\[)|^[#+=~-](?=\s|$|[#=~+-])")
_TEXT_LIMIT = 10_000
_ITEM_LIMIT = 500
_ITEMS_LIMIT = 500


def literal(text: str) -> str:
    """One line of Markdown that shows this text: no markup, no line breaks, no control characters.

    Underscores within words mean nothing (CommonMark 0.31, section 6.2) and stay readable.
    """
    line = "".join(" " if unicodedata.category(c) in _CONTROLS else c for c in text)
    return _MARKUP.sub(r"\\\g<0>", line)


def listed(items: Sequence[str]) -> list[str]:
    """Markdown's list of texts that are shown as they are; what is too much for a reader is cut, or counted."""
    cut = [item if len(item) <= _ITEM_LIMIT else item[:_ITEM_LIMIT] + "…" for item in items[:_ITEMS_LIMIT]]
    lines = [f"- {literal(item)}" for item in cut]
    return lines if len(items) <= _ITEMS_LIMIT else [*lines, f"- and {len(items) - _ITEMS_LIMIT} more"]


def plain_markdown(text: str) -> str:
    """Somebody's own Markdown, cut to a page, that shows text and links only: no HTML, no image, no control characters.

    A reader's browser fetches an image unasked; a link only when a person follows it.
    """
    kept = "".join(c for c in text[:_TEXT_LIMIT] if c in "\n\t" or unicodedata.category(c) not in _CONTROLS)
    return kept.replace("<", "\\<").replace("![", "!\\[")
