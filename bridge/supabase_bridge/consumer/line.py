"""One GET over a line, over by its deadline even where the head trickles byte by byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx

from supabase_bridge.consumer.reading import Deadline
from supabase_bridge.object_store.line import Line


@contextmanager
def get(line: Line, url: str, headers: Mapping[str, str], *, deadline: Deadline) -> Iterator[httpx.Response]:
    """Ask for a URL; the response's head has come, its `stream` has the body as it was sent.

    Raises:
        httpx.HTTPError: the exchange failed; by the deadline where the line's `cut` is true then.
    """
    request = httpx.Request(
        "GET",
        url,
        # Compressed on the way, a few bytes could become any number of them.
        headers={"accept-encoding": "identity", "user-agent": "supabase-bridge", **headers},
        extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), max(deadline.remaining, 0.001))},
    )
    with line.watched(lambda: deadline.remaining):
        response = line.send(request)
        try:
            yield response
        finally:
            response.close()
