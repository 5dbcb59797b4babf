"""What a consumer reads through: small objects whole, large ones in pieces, both within a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """A moment of the monotonic clock, and how many seconds there were until then."""

    seconds: float
    at: float

    @classmethod
    def after(cls, time_given: timedelta) -> Deadline:
        """So much time from now."""
        seconds = time_given.total_seconds()
        return cls(seconds=seconds, at=time.monotonic() + seconds)

    @property
    def remaining(self) -> float:
        """Seconds left; 0 when it is over."""
        return max(0.0, self.at - time.monotonic())


@dataclass(frozen=True, kw_only=True)
class Content:
    """A small object as it was read, and its ETag where it has one."""

    data: bytes
    etag: str | None


class Reader(Protocol):
    """One bucket to read from. Thread-safe. Every method ends by its deadline, whatever the other side does.

    Every method may raise, besides what it names: DeadlineExceededError, ReadDeniedError, StoreUnavailableError,
    RedirectRefusedError, UnexpectedAnswerError, InvalidObjectKeyError, LocalFileError.
    """

    @property
    def name(self) -> str:
        """What a person calls this bucket, without any secret; equal for equal buckets."""
        ...

    def read(self, key: str, *, limit_bytes: int, known_etag: str | None, deadline: Deadline) -> Content | None:
        """A small object as it is now; None where it still has the ETag `known_etag`.

        Raises:
            ObjectNotFoundError: there is none, or it is hidden from this consumer.
            ObjectTooLargeError: it is larger than `limit_bytes`; no more than that was read.
        """
        ...

    def stream(self, key: str, *, size_bytes: int, deadline: Deadline) -> Iterator[bytes]:
        """An object in pieces, in constant memory; the iterator ends only when every byte has come.

        Raises:
            ObjectNotFoundError: there is none, or it is hidden from this consumer.
            CorruptObjectError: it is not `size_bytes` long; no more than that was read.
        """
        ...

    def close(self) -> None:
        """Give back connections; the reader is not used afterwards."""
        ...
