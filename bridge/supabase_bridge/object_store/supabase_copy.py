"""Copying an object from another bucket of the project, so that none of its bytes come to us."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from supabase_bridge.errors import ObjectNotFoundError, StoreUnavailableError
from supabase_bridge.object_store import Digests, ObjectInfo, PutOptions
from supabase_bridge.object_store.supabase_arrival import await_arrival
from supabase_bridge.object_store.supabase_errors import Request, Trouble
from supabase_bridge.object_store.supabase_transport import Transport
from supabase_bridge.object_store.supabase_upload import (
    cache_control,
    metadata_header,
    stored_at,
    user_metadata,
    verify,
)


def copy_between(
    transport: Transport, bucket: str, info: ObjectInfo, temporary: str, options: PutOptions, *, token: str
) -> None:
    """Copy an object of another bucket to a temporary key, and compare what came with what it should be.

    A version names one content for ever. So where the source has the same one after the copy as before, that content
    is what was copied. Whether it is the content that the caller's digests are of, the copy's own ETag tells, even
    where the source's is that of a multipart upload; where it is no MD5 the copy is read (see `verify`).

    Raises:
        StoreUnavailableError: the source was deleted or replaced since `info`.
        CorruptObjectError: the copy has another size or digest than `info` and `options` say.
    """
    source = transport.beside(bucket)
    operation = f"copying {info.key} from bucket {bucket}"
    body = {
        "bucketId": bucket,
        "sourceKey": info.key,
        "destinationBucket": transport.bucket,
        "destinationKey": temporary,
        "copyMetadata": False,
        "metadata": {"mimetype": options.content_type, "cacheControl": cache_control(options) or "no-cache"},
    }
    described = user_metadata(transport, options, token, size_bytes=info.size_bytes)
    headers = {"x-upsert": "true", "x-metadata": metadata_header(described)}
    url = transport.url("object", "copy")
    request = transport.request(operation, info.key)
    try:
        _ask(transport, request, lambda: _post(transport, url, body, headers), temporary, size_bytes=info.size_bytes)
        found = stored_at(source, info.key).info
    except ObjectNotFoundError as error:
        raise StoreUnavailableError(source.name, operation, "it was deleted meanwhile") from error
    if info.version is None or found.version != info.version:
        raise StoreUnavailableError(source.name, operation, "it was replaced meanwhile")
    # A digest that is not given equals none.
    wanted = Digests(size_bytes=info.size_bytes, md5=options.md5 or "", sha256=options.sha256 or "")
    verify(transport, temporary, wanted, stored_at(transport, temporary))


def _ask(transport: Transport, request: Request, post: Callable[[], None], temporary: str, *, size_bytes: int) -> None:
    """Have the copy made, and wait for it where the answer comes late."""
    try:
        # The key is ours alone, so that a second copy does no harm, and nothing else can arrive there.
        transport.run(request, post)
    except StoreUnavailableError as error:
        late = isinstance(error.__cause__, httpx.TimeoutException)
        trouble = Trouble(error=error, again=True)
        if not late or await_arrival(transport, request, temporary, trouble, size_bytes=size_bytes) is None:
            raise


def _post(transport: Transport, url: str, body: object, headers: dict[str, str]) -> None:
    transport.http().post(url, json=body, headers=headers)
