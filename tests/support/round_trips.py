"""Count the round trips of a client that wait for each other."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.simulators.storage import Call


def serial(calls: Sequence[Call]) -> list[Call]:
    """The longest chain of requests of which each began after the one before was answered."""
    chain: list[Call] = []
    for call in sorted(calls, key=lambda call: call.ended):
        if not chain or call.started >= chain[-1].ended:
            chain.append(call)
    return chain


def until_published(calls: Sequence[Call], channel: str = "latest") -> list[Call]:
    """The chain of requests up to the one that made a new manifest readable."""
    published = [call for call in calls if call.method == "POST" and call.path.endswith(f"/{channel}/manifest.json")]
    return serial([call for call in calls if call.ended <= published[0].ended])


def until_complete(calls: Sequence[Call]) -> list[Call]:
    """The chain of requests up to the last move, which made the commit record of a new release readable."""
    moves = [call for call in calls if call.method == "POST" and call.path.endswith("/object/move")]
    return serial([call for call in calls if call.ended <= moves[-1].ended])
