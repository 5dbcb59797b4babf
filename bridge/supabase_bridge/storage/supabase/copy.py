"""Copy an object on the server, and move a temporary object to a free key."""

from __future__ import annotations

from datetime import timedelta

import httpx

from supabase_bridge.storage.base import Digests, ObjectInfo, PutOptions
from supabase_bridge.storage.errors import ObjectExistsError, ObjectNotFoundError, StoreUnavailableError
from supabase_bridge.storage.supabase.client import Transport
from supabase_bridge.storage.supabase.responses import FAILURES, TRIES, Failure, Operation, classify
from supabase_bridge.storage.supabase.upload import Stored, cache_control, found_at, metadata_header, stored_at, verify
from supabase_bridge.storage.time_budget import TimeBudget

_COPY_RATE = 10_000_000
"""Bytes per second: a slower copy on the server times out. A move is a copy, too."""

_OPEN_OUTCOMES = (StoreUnavailableError, ObjectExistsError, ObjectNotFoundError)
"""Errors of a move that this or an earlier attempt may have made all the same."""


def wait_until_visible(
    transport: Transport, request: Operation, key: str, failure: Failure, *, size_bytes: int
) -> Stored | None:
    """Poll until an object is at `key`; None if none appears in the time that a copy of so many bytes may take.

    The server shows a copy only when it is complete.

    Args:
        failure: Why the response of `request` did not come.
        size_bytes: 0: read once, without waiting.
    """
    budget = TimeBudget(timedelta(0), minimum_rate=_COPY_RATE)
    budget.extend(size_bytes)
    tried = 0
    while (found := found_at(transport, key)) is None and budget.left() > 0:
        tried = min(tried + 1, TRIES)
        transport.wait(request, failure, tried=tried)
    return found


def copy_between(
    transport: Transport, bucket: str, info: ObjectInfo, key: str, options: PutOptions, *, token: str
) -> ObjectInfo:
    """Copy an object of another bucket to a key, verify the copy, and return it.

    A version identifies one content for ever. If the source has the same version after the copy as before, that content
    was copied. The copy's own ETag shows whether the caller's digests are of this content, also where the source's ETag
    is that of a multipart upload. If it is no MD5, the copy is read (see `verify`). After a missing response, the
    random token in its user metadata shows whether the object at `key` is this copy.

    Raises:
        ObjectExistsError: another object is at `key`.
        StoreUnavailableError: the source was deleted or replaced since `info`.
        CorruptObjectError: size or digest of the copy differ from `info` and `options`.
    """
    source = transport.beside(bucket)
    operation = f"copying {info.key} from bucket {bucket}"
    body = {
        "bucketId": bucket,
        "sourceKey": info.key,
        "destinationBucket": transport.bucket,
        "destinationKey": key,
        "copyMetadata": False,
        "metadata": {"mimetype": options.content_type, "cacheControl": cache_control(options) or "no-cache"},
    }
    metadata = metadata_header(transport, options, token, size_bytes=info.size_bytes)
    headers = {"x-upsert": "false", "x-metadata": metadata}
    request = transport.request(operation, info.key)

    def post() -> None:
        transport.http().post(transport.url("object", "copy"), json=body, headers=headers)

    try:
        try:
            transport.run(request, post)
        except ObjectExistsError as error:
            present = found_at(transport, key)
            if present is None or present.token != token:
                raise ObjectExistsError(transport.name, key) from error
        except StoreUnavailableError as error:
            late, failure = isinstance(error.__cause__, httpx.TimeoutException), Failure(error=error, again=True)
            if not (late and wait_until_visible(transport, request, key, failure, size_bytes=info.size_bytes)):
                raise
        found = stored_at(source, info.key).info
    except ObjectNotFoundError as error:
        raise StoreUnavailableError(source.name, operation, "it was deleted meanwhile") from error
    if info.version is None or found.version != info.version:
        raise StoreUnavailableError(source.name, operation, "it was replaced meanwhile")
    # A missing digest equals none.
    wanted = Digests(size_bytes=info.size_bytes, md5=options.md5 or "", sha256=options.sha256 or "")
    copied = stored_at(transport, key)
    verify(transport, key, wanted, copied)
    return copied.info


def move_to_free(transport: Transport, temporary: str, key: str, token: str, *, size_bytes: int) -> None:
    """Move a temporary object to `key`, if and only if nothing is there.

    A missing response leaves the outcome open. The upload's random token, which moves with the object's user metadata,
    decides it. If the object at `key` has our token, the move was made. If it has another token or none, our move can
    never be made. If there is no object, the move is retried. This is harmless even if the first move is still running:
    one of the two finds the temporary key gone, and reads `key` again. So `key` is read after every failed move, and
    the failure itself decides nothing. A move is a copy on the server: after a timeout, `key` is read for as long as a
    copy of so many bytes may take.

    Raises:
        ObjectExistsError: another object is there; both are untouched.
        ObjectNotFoundError: the temporary object is gone, and not at `key` either.
        StoreUnavailableError: the outcome is not known.
    """
    bucket = transport.storage().from_(transport.bucket)
    request = transport.request(f"creating {key}", key)
    for tried in range(1, TRIES + 1):
        try:
            bucket.move(temporary, key)
            return
        except FAILURES as error:
            failure = classify(error, request)
            if not isinstance(failure.error, _OPEN_OUTCOMES):
                raise failure.error from error
            late = isinstance(error, httpx.TimeoutException)
            found = wait_until_visible(transport, request, key, failure, size_bytes=size_bytes if late else 0)
            if found is not None and found.token == token:
                return
            if found is not None:
                raise ObjectExistsError(transport.name, key) from error
            if tried == TRIES or late:
                raise failure.error from error
        transport.wait(request, failure, tried=tried)
