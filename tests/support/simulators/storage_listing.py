"""The two listings of Supabase Storage, which differ in folders, case, order of pages."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.simulators import storage_errors as errors
from tests.support.simulators.storage_rendering import folder_row, object_row
from tests.support.simulators.storage_state import StoredObject

MAX_PAGE = 1000
_SORTABLE = {
    "name": lambda row: row["name"],
    "created_at": lambda row: (row["created_at"] or "", row["name"]),
    "updated_at": lambda row: (row["updated_at"] or "", row["name"]),
    "last_accessed_at": lambda row: (row["last_accessed_at"] or "", row["name"]),
}


@dataclass(frozen=True, kw_only=True)
class FolderQuery:
    """A query of list v1: one folder, case-insensitive."""

    prefix: str
    search: str = ""
    limit: int = 100
    offset: int = 0
    column: str = "name"
    descending: bool = False


@dataclass(frozen=True, kw_only=True)
class PrefixQuery:
    """A query of list-v2: a literal, case-sensitive prefix, page by page."""

    prefix: str = ""
    limit: int = MAX_PAGE
    cursor: str | None = None
    with_delimiter: bool = False
    order: str | None = None


def list_folder(objects: Sequence[StoredObject], query: FolderQuery) -> list[dict[str, Any]]:
    """Answer list v1: the folder's own objects, and its subfolders as rows without an id."""
    folder = query.prefix if not query.prefix or query.prefix.endswith("/") else query.prefix + "/"
    wanted = (folder + query.search).lower()
    rows: dict[str, dict[str, Any]] = {}
    for stored in objects:
        if stored.key.lower().startswith(wanted):
            name, slash, _ = stored.key[len(folder) :].partition("/")
            row = folder_row(name) if slash else object_row(stored, name)
            rows.setdefault(name + slash, row)
    ordered = sorted(rows.values(), key=_SORTABLE[query.column], reverse=query.descending)
    return ordered[query.offset : query.offset + query.limit]


def list_prefix(objects: Sequence[StoredObject], query: PrefixQuery) -> dict[str, Any]:
    """Answer list-v2."""
    after, order = _decode(query.cursor, query.order)
    found = _found(objects, query)
    names = sorted(found, reverse=order == "desc")
    if after is not None:
        names = [name for name in names if (name < after if order == "desc" else name > after)]
    limit = min(query.limit, MAX_PAGE)
    page, more = [_prefix_row(name, found[name], query) for name in names[:limit]], len(names) > limit
    answer: dict[str, Any] = {"hasNext": more}
    if more:
        answer["nextCursor"] = _encode(page[-1]["name"], order)
        answer["nextCursorKey"] = page[-1]["name"]
    answer["folders"] = [row for row in page if row["id"] is None]
    answer["objects"] = [row for row in page if row["id"] is not None]
    return answer


def _found(objects: Sequence[StoredObject], query: PrefixQuery) -> dict[str, StoredObject | None]:
    """Return what a query finds by its name: objects, and None for a subfolder."""
    matching = [stored for stored in objects if stored.key.startswith(query.prefix)]
    if not query.with_delimiter:
        return {stored.key: stored for stored in matching}
    found: dict[str, StoredObject | None] = {}
    for stored in matching:
        rest, slash, _ = stored.key[len(query.prefix) :].partition("/")
        found.setdefault(query.prefix + rest + slash, None if slash else stored)
    return found


def _prefix_row(name: str, stored: StoredObject | None, query: PrefixQuery) -> dict[str, Any]:
    row = folder_row(name) if stored is None else object_row(stored, name)
    return {"key": name.rstrip("/").rpartition("/")[2], **row} if query.with_delimiter else row


def _encode(last_key: str, order: str | None) -> str:
    lines = [f"l:{last_key}"] + ([f"o:{order}"] if order else [])
    return base64.b64encode("\n".join(lines).encode()).decode()


def _decode(cursor: str | None, order: str | None) -> tuple[str | None, str | None]:
    """Return the last key of the page before, and the order, which a cursor fixes for all later pages."""
    if cursor is None:
        return None, order
    try:
        text = base64.b64decode(cursor, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise errors.invalid_parameter("Invalid Parameter continuation token") from error
    parts = dict(line.split(":", 1) for line in text.split("\n") if line[1:2] == ":")
    if "l" not in parts:
        raise errors.invalid_parameter("Invalid Parameter continuation token")
    return parts["l"], parts.get("o", "asc")
