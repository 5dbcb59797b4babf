"""Periodic background tasks of one worker, each in its own thread."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta

from supabase_bridge.core.errors import BridgeError

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.1
_JITTER = (0.8, 1.0)
_JOIN_SECONDS = 5.0
_LOCK_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class PeriodicTask:
    """A task that a running worker repeats beside its events.

    Attributes:
        name: The thread's name, and the task's name in logs.
        every: The pause between the end of one run and the start of the next. Jitter shortens it, so that the workers
            of a registry do not run in step.
        act: Runs the task once. It returns soon after the event is set, and the next run continues from there.
        alone: False for a task that runs beside the other ones: it may take as long as the worker runs.
    """

    name: str
    every: timedelta
    act: Callable[[threading.Event], None]
    alone: bool = True


@contextmanager
def run_periodic_tasks(tasks: Sequence[PeriodicTask], background: threading.Lock) -> Iterator[None]:
    """Run tasks in the background while the block runs; the first run of each starts after a tenth of its interval.

    Args:
        background: Held while a task runs that runs alone.
    """
    stop = threading.Event()
    with ExitStack() as stack:
        for task in tasks:
            # A daemon thread: a task that waits for the network does not keep a stopped worker from exiting.
            held = background if task.alone else threading.Lock()
            thread = threading.Thread(target=_repeat, args=(task, stop, held), name=task.name, daemon=True)
            thread.start()
            stack.callback(thread.join, _JOIN_SECONDS)
        stack.callback(stop.set)
        yield


def _repeat(task: PeriodicTask, stop: threading.Event, background: threading.Lock) -> None:
    pause_seconds = task.every.total_seconds() * _FIRST_PAUSE
    while not stop.wait(pause_seconds):
        if not background.acquire(timeout=_LOCK_SECONDS):
            pause_seconds = 0.0
            continue
        try:
            task.act(stop)
        except BridgeError as error:
            logger.warning("a periodic task failed", extra={"task": task.name, "reason": str(error)})
        except Exception:
            logger.exception("a periodic task failed unexpectedly", extra={"task": task.name})
        finally:
            background.release()
        pause_seconds = task.every.total_seconds() * random.uniform(*_JITTER)  # noqa: S311 - jitter, not secrecy
