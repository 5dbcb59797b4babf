"""Copying an object from another bucket of the project, so that none of its bytes come to us."""

from __future__ import annotations

import re

from supabase_bridge.errors import ObjectNotFoundError, StoreUnavailableError
from supabase_bridge.object_store import ObjectInfo, PutOptions
from supabase_bridge.object_store.supabase_transport import Transport
from supabase_bridge.object_store.supabase_upload import (
    cache_control,
    compare,
    metadata_header,
    stored_at,
    user_metadata,
)

_MD5 = re.compile("[0-9a-f]{32}")


def copy_between(
    transport: Transport, bucket: str, info: ObjectInfo, temporary: str, options: PutOptions, *, token: str
) -> None:
    """Copy an object of another bucket to a temporary key, and compare what came with what it should be.

    A version names one content for ever. So where the source has the same one after the copy as before, that content
    is what was copied, whatever its ETag is made of.

    Raises:
        StoreUnavailableError: the source was deleted or replaced since `info`.
        CorruptObjectError: the copy has another size or ETag than the source.
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
    try:
        # The key is ours alone, so that a second copy does no harm.
        transport.run(transport.request(operation, info.key), lambda: _post(transport, url, body, headers))
        found = stored_at(source, info.key).info
    except ObjectNotFoundError as error:
        raise StoreUnavailableError(source.name, operation, "it was deleted meanwhile") from error
    if info.version is None or found.version != info.version:
        raise StoreUnavailableError(source.name, operation, "it was replaced meanwhile")
    copied = stored_at(transport, temporary).info
    compare(transport, temporary, f"{info.size_bytes} bytes", f"{copied.size_bytes} bytes")
    expected = info.etag or ""
    # The ETag of a multipart upload is of another form than that of its copy, and says nothing about it.
    if _MD5.fullmatch(expected) and _MD5.fullmatch(copied.etag or ""):
        compare(transport, temporary, f"MD5 {expected}", f"MD5 {copied.etag}")


def _post(transport: Transport, url: str, body: object, headers: dict[str, str]) -> None:
    transport.http().post(url, json=body, headers=headers)
