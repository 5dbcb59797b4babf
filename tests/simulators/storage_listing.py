"""The two listings of Supabase Storage, which differ in folders, case, order of pages."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.simulators import storage_errors as errors
from tests.simulators.storage_rendering import folder_row, object_row
from tests.simulators.storage_state import StoredObject

MAX_PAGE = 1000
_SORTABLE = {
    "name": lambda row: row["name"],
    "created_at": lambda row: (row["created_at"] or "", row["name"]),
    "updated_at": lambda row: (row["updated_at"] or "", row["name"]),
    "last_accessed_at": lambda row: (row["last_accessed_at"] or "", row["name"]),
}


@dataclass(frozen=True, kw_only=True)
class FolderQuery:
    """What list v1 is asked: one folder, ignoring case."""

    prefix: str
    search: str = ""
    limit: int = 100
    offset: int = 0
    column: str = "name"
    descending: bool = False


@dataclass(frozen=True, kw_only=True)
class PrefixQuery:
    """What list-v2 is asked: a literal, case-sensitive prefix, a page at a time."""

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
    rows = sorted(_prefix_rows(objects, query), key=lambda row: str(row["name"]), reverse=order == "desc")
    if after is not None:
        rows = [row for row in rows if (row["name"] < after if order == "desc" else row["name"] > after)]
    limit = min(query.limit, MAX_PAGE)
    page, more = rows[:limit], len(rows) > limit
    answer: dict[str, Any] = {"hasNext": more}
    if more:
        answer["nextCursor"] = _encode(page[-1]["name"], order)
        answer["nextCursorKey"] = page[-1]["name"]
    answer["folders"] = [row for row in page if row["id"] is None]
    answer["objects"] = [row for row in page if row["id"] is not None]
    return answer


def _prefix_rows(objects: Sequence[StoredObject], query: PrefixQuery) -> list[dict[str, Any]]:
    matching = [stored for stored in objects if stored.key.startswith(query.prefix)]
    if not query.with_delimiter:
        return [object_row(stored, stored.key) for stored in matching]
    rows: dict[str, dict[str, Any]] = {}
    for stored in matching:
        rest, slash, _ = stored.key[len(query.prefix) :].partition("/")
        name = query.prefix + rest + slash
        key = name.rstrip("/").rpartition("/")[2]
        rows.setdefault(name, {"key": key, **(folder_row(name) if slash else object_row(stored, name))})
    return list(rows.values())


def _encode(last_key: str, order: str | None) -> str:
    lines = [f"l:{last_key}"] + ([f"o:{order}"] if order else [])
    return base64.b64encode("\n".join(lines).encode()).decode()


def _decode(cursor: str | None, order: str | None) -> tuple[str | None, str | None]:
    """The key to go on after and the order; a cursor settles the order of the pages that follow it."""
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
