"""The head of a channel's log, and two reads that do not depend on each other, made one by one or at the same time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from supabase_bridge.core.documents import Manifest

First = TypeVar("First")
Second = TypeVar("Second")


class AtOnce(Protocol):
    """Makes two reads that do not depend on each other, and returns both results."""

    def __call__(self, first: Callable[[], First], second: Callable[[], Second], /) -> tuple[First, Second]:
        """Return the results of both."""
        ...


def one_by_one(first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
    """Make two reads in their order."""
    return first(), second()


def in_parallel(first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
    """Make two reads at the same time: over a network both take one round trip."""
    with ThreadPoolExecutor(1, thread_name_prefix="reading") as pool:
        started = pool.submit(first)
        found = second()
        return started.result(), found


@dataclass(frozen=True, kw_only=True)
class HeadState:
    """The newest entry of a log, and the manifest beside it.

    Attributes:
        head: The newest entry; None: the log is empty.
        manifest_bytes: The content of `manifest.json`; None: it does not exist, or is too large for a manifest.
    """

    head: Manifest | None
    manifest_bytes: bytes | None

    @property
    def manifest_is_current(self) -> bool:
        """True where readers of `manifest.json` see the newest entry."""
        return self.manifest_bytes == (None if self.head is None else self.head.to_bytes())

    @classmethod
    def published(cls, entry: Manifest) -> HeadState:
        """Return the state of a log whose newest entry is published."""
        return cls(head=entry, manifest_bytes=entry.to_bytes())
