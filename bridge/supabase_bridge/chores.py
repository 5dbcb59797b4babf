"""Chores: what a running worker does besides its events, now and then, without keeping them waiting."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta

from supabase_bridge.errors import BridgeError

logger = logging.getLogger(__name__)

_FIRST_PART = 0.1
_JOIN_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Chore:
    """Something to do every so often.

    Attributes:
        every: From the end of one time to the next, less at random, so that workers keep out of step.
        act: Does it; to return soon when the event is set, at a place from which the next time goes on.
    """

    name: str
    every: timedelta
    act: Callable[[threading.Event], None]


@contextmanager
def doing_chores(chores: Sequence[Chore]) -> Iterator[None]:
    """Do chores for the length of a block, each in a thread of its own, first after a tenth of its interval."""
    over = threading.Event()
    with ExitStack() as stack:
        for chore in chores:
            # A daemon: a chore that waits for the network does not keep a stopped worker from ending.
            thread = threading.Thread(target=_repeat, args=(chore, over), name=chore.name, daemon=True)
            thread.start()
            stack.callback(thread.join, _JOIN_SECONDS)
        stack.callback(over.set)
        yield


def _repeat(chore: Chore, over: threading.Event) -> None:
    pause_seconds = chore.every.total_seconds() * _FIRST_PART
    while not over.wait(pause_seconds):
        try:
            chore.act(over)
        except BridgeError as error:
            logger.warning("a chore was not done", extra={"chore": chore.name, "reason": str(error)})
        except Exception:
            logger.exception("a chore failed unexpectedly", extra={"chore": chore.name})
        pause_seconds = chore.every.total_seconds() * random.uniform(0.8, 1.0)  # noqa: S311 - jitter, not secrecy
