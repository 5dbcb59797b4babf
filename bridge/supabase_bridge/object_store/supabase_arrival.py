"""Waiting for what the server still makes of an object after it was asked to, and did not answer in time."""

from __future__ import annotations

from datetime import timedelta

from supabase_bridge.object_store.patience import Patience
from supabase_bridge.object_store.supabase_errors import Request, Trouble
from supabase_bridge.object_store.supabase_transport import TRIES, Transport
from supabase_bridge.object_store.supabase_upload import Stored, found_at

_COPY_RATE = 10_000_000
"""Bytes in a second: what the server copies slower than this is given up. It copies to move, too."""


def await_arrival(
    transport: Transport, request: Request, key: str, trouble: Trouble, *, size_bytes: int
) -> Stored | None:
    """What is at `key` as soon as anything is; None if nothing came while the server may have copied so many bytes.

    The server shows a copy when all of it is there.

    Args:
        request: What was asked.
        trouble: What came instead of an answer.
        size_bytes: 0: one look.
    """
    patience = Patience(timedelta(0), minimum_rate=_COPY_RATE)
    patience.lend(size_bytes)
    tried = 0
    while (found := found_at(transport, key)) is None and patience.left() > 0:
        tried = min(tried + 1, TRIES)
        transport.wait(request, trouble, tried=tried)
    return found
