"""Faults that a test can inject into a simulator."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True)
class Respond:
    """Send this response instead of handling the request; its body is read first, so the connection stays usable."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Delay:
    """Wait, at most until `over` is set, then handle the request as usual."""

    seconds: float
    over: threading.Event | None = None


@dataclass(frozen=True)
class CutBeforeHandling:
    """Close the connection without handling the request."""


@dataclass(frozen=True)
class CutAfterHandling:
    """Handle the request, then close without a response: the client cannot know the outcome."""


@dataclass(frozen=True)
class CutRequestAfter:
    """Read this many bytes of the request's body, then close without a response.

    What a handler keeps of a broken body (a TUS PATCH keeps all it got) is kept. A body that is not longer is handled
    whole.
    """

    bytes: int


@dataclass(frozen=True)
class CutResponseAfter:
    """Send the head and this many bytes of the response's body, then close."""

    bytes: int


@dataclass(frozen=True)
class Hang:
    """Never respond: the connection stays open until the client closes it or the simulator stops."""


@dataclass(frozen=True)
class CorruptResponse:
    """Flip the lowest bit of one byte of a GET's response body; `offset` counts in the body as sent."""

    offset: int


@dataclass(frozen=True)
class CorruptRequest:
    """Flip the lowest bit of one byte of an upload's body (POST, PUT, PATCH); `offset` counts in the body as sent."""

    offset: int


Action: TypeAlias = (
    "Respond | Delay | CutBeforeHandling | CutAfterHandling | CutRequestAfter | CutResponseAfter | Hang"
    " | CorruptResponse | CorruptRequest"
)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault, and the requests that it affects.

    Args:
        action: What happens to a request the fault strikes.
        method: Strike only this HTTP method; None for any.
        path_contains: Strike only paths (percent-decoded, without query) that contain this; None for any.
        times: Strike so often, then never again; None for always.
        skip: Let so many matching requests through first.
        probability: Chance that a matching request is struck, drawn from the simulator's seeded generator.
    """

    action: Action
    method: str | None = None
    path_contains: str | None = None
    times: int | None = None
    skip: int = 0
    probability: float = 1.0

    def matches(self, method: str, path: str) -> bool:
        """Return True if the fault affects such a request."""
        if isinstance(self.action, CorruptResponse) and method != "GET":
            return False
        if isinstance(self.action, CorruptRequest) and method not in {"POST", "PUT", "PATCH"}:
            return False
        return self.method in (None, method) and (self.path_contains is None or self.path_contains in path)


@dataclass
class _Armed:
    fault: Fault
    seen: int = 0
    struck: int = 0


class FaultPlan:
    """The active faults, with their counters; thread-safe."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._armed: list[_Armed] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Add a fault after the active ones."""
        with self._lock:
            self._armed.append(_Armed(fault))

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._armed.clear()

    def struck(self) -> list[tuple[Fault, int]]:
        """Return the active faults, each with its number of uses."""
        with self._lock:
            return [(armed.fault, armed.struck) for armed in self._armed]

    def strike(self, method: str, path: str) -> Action | None:
        """Return the action of the first fault that matches this request; each matching fault counts it."""
        chosen: Action | None = None
        with self._lock:
            for armed in self._armed:
                if armed.fault.matches(method, path) and self._wants(armed) and chosen is None:
                    armed.struck += 1
                    chosen = armed.fault.action
        return chosen

    def _wants(self, armed: _Armed) -> bool:
        armed.seen += 1
        fault = armed.fault
        if armed.seen <= fault.skip or (fault.times is not None and armed.struck >= fault.times):
            return False
        return fault.probability >= 1.0 or self._random.random() < fault.probability
