"""Moving an object to a key that must be free, through lost answers."""

from __future__ import annotations

import httpx

from supabase_bridge.errors import ObjectExistsError, ObjectNotFoundError, StoreUnavailableError
from supabase_bridge.object_store.supabase_arrival import await_arrival
from supabase_bridge.object_store.supabase_errors import FAILURES, diagnose
from supabase_bridge.object_store.supabase_transport import TRIES, Transport

_OPEN_OUTCOMES = (StoreUnavailableError, ObjectExistsError, ObjectNotFoundError)
"""What a move may fail with although it, or an earlier try of it, was made."""


def move_to_free(transport: Transport, temporary: str, key: str, token: str, *, size_bytes: int) -> None:
    """Move a temporary object to `key`, if and only if nothing is there.

    An answer that does not come leaves the outcome open. The upload's random token, which is in the object's user
    metadata and moves with it, settles that: the destination carries our token only if our move was made; with another
    token (or none) there, ours can never be made; with nothing there the move is tried again, which is harmless even
    if the first one is still under way: one of the two finds the temporary key gone, and looks again. So after every
    failed move the destination is read; nothing is concluded from the failure. The server copies what it moves: where
    it does not answer in time, the destination is read for as long as so many bytes may take.

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
        except FAILURES as failure:
            trouble = diagnose(failure, request)
            if not isinstance(trouble.error, _OPEN_OUTCOMES):
                raise trouble.error from failure
            late = isinstance(failure, httpx.TimeoutException)
            found = await_arrival(transport, request, key, trouble, size_bytes=size_bytes if late else 0)
            if found is not None and found.token == token:
                return
            if found is not None:
                raise ObjectExistsError(transport.name, key) from failure
            if tried == TRIES or late:
                raise trouble.error from failure
        transport.wait(request, trouble, tried=tried)
