"""Listing a bucket of Supabase Storage, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from storage3.types import SearchV2Object, SearchV2Options

from supabase_bridge.errors import UnexpectedAnswerError
from supabase_bridge.object_store import ObjectInfo
from supabase_bridge.object_store.supabase_errors import Request
from supabase_bridge.object_store.supabase_transport import Transport
from supabase_bridge.object_store.supabase_upload import plain_etag

PAGE = 1000
"""As many objects as the server lists, or deletes, at once."""


def listed(transport: Transport, prefix: str) -> Iterator[ObjectInfo]:
    """Every object whose key begins with `prefix`, in the order of their bytes; none where the bucket is missing."""
    request = transport.request(f"listing {prefix!r}")
    bucket = transport.storage().from_(transport.bucket)
    options: SearchV2Options = {"prefix": prefix, "limit": PAGE, "with_delimiter": False}
    last = ""
    while True:
        page = transport.run(request, partial(bucket.list_v2, options))
        for item in page.objects:
            if item.name <= last or not item.name.startswith(prefix):
                raise UnexpectedAnswerError(transport.name, request.operation, f"{item.name!r} out of order")
            last = item.name
            yield _info(transport, request, item)
        if not page.hasNext:
            return
        if not page.objects or not page.nextCursor:
            raise UnexpectedAnswerError(transport.name, request.operation, "a page that says more follow, but not how")
        options = {**options, "cursor": page.nextCursor}


def _info(transport: Transport, request: Request, item: SearchV2Object) -> ObjectInfo:
    facts = item.metadata or {}
    if not isinstance(facts.get("size"), int):
        raise UnexpectedAnswerError(transport.name, request.operation, f"{item.name!r} without its size")
    etag = plain_etag(facts.get("eTag"))
    return ObjectInfo(key=item.name, size_bytes=facts["size"], modified_at=item.updated_at, etag=etag)
