"""The faults a test can order from a simulator."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True)
class Respond:
    """Answer this instead of handling the request; its body is read first, so the connection stays usable."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Delay:
    """Wait, at most until `over` is set where it is given, then handle the request as usual."""

    seconds: float
    over: threading.Event | None = None


@dataclass(frozen=True)
class CutBeforeHandling:
    """Close the connection with nothing done."""


@dataclass(frozen=True)
class CutAfterHandling:
    """Do the work, then close without an answer: the client cannot know that it was done."""


@dataclass(frozen=True)
class CutRequestAfter:
    """Read this many bytes of the request's body, then close without an answer.

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
    """Never answer: the connection stays open until the client closes it or the simulator stops."""


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
    """What goes wrong, for which requests.

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
        """Whether the fault is meant for such a request."""
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
    """The faults in force, with their counters; safe to use from many threads."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._armed: list[_Armed] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Arm a fault, after those already there."""
        with self._lock:
            self._armed.append(_Armed(fault))

    def clear(self) -> None:
        """Disarm everything."""
        with self._lock:
            self._armed.clear()

    def struck(self) -> list[tuple[Fault, int]]:
        """The faults in force, each with how often it struck."""
        with self._lock:
            return [(armed.fault, armed.struck) for armed in self._armed]

    def strike(self, method: str, path: str) -> Action | None:
        """The action for this request, of the first fault that wants it; every fault that matches counts it as seen."""
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
