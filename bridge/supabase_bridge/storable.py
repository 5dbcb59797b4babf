"""Text from elsewhere as every database takes it: an error may quote a file name that is no text. Pure."""

from __future__ import annotations


def storable(text: str, *, limit: int) -> str:
    """The text's first characters, with what a database refuses written as Python shows it.

    SQLite's driver and others refuse half a surrogate pair (in a file name, a byte that is no UTF-8), PostgreSQL a NUL.

    Args:
        limit: Characters of the result at most.
    """
    encodable = text[:limit].encode("utf-8", "backslashreplace").decode()
    return encodable.replace("\x00", "\\x00")[:limit]
