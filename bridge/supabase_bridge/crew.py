"""A crew of threads: so many jobs at once, each to its end."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType


class Crew:
    """Does jobs at once, for one thread that hands them out; as a context manager it waits for those in hand.

    A crew of one does its jobs in the calling thread.

    Args:
        size: How many jobs at once.
        on_done: Called after each job, by the thread that did it.
    """

    def __init__(self, size: int, *, on_done: Callable[[], None] | None = None) -> None:
        self._size = size
        self._on_done = on_done
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="crew") if size > 1 else None
        self._in_hand: set[Future[object]] = set()

    def has_room(self) -> bool:
        """Whether a job would begin at once.

        Raises:
            Exception: what a job that has ended raised.
        """
        self._collect({future for future in self._in_hand if future.done()})
        return len(self._in_hand) < self._size

    def do(self, job: Callable[[], object]) -> None:
        """Begin a job.

        Raises:
            Exception: in a crew of one, what the job raises.
        """
        if self._pool is None:
            job()
            return
        future = self._pool.submit(job)
        self._in_hand.add(future)
        if self._on_done is not None:
            on_done = self._on_done
            future.add_done_callback(lambda _: on_done())

    def wait_for_one(self) -> bool:
        """Wait until one of the jobs in hand has ended; False where none is in hand.

        Raises:
            Exception: what the job raised.
        """
        if not self._in_hand:
            return False
        self._collect(wait(self._in_hand, return_when=FIRST_COMPLETED).done)
        return True

    def _collect(self, done: set[Future[object]]) -> None:
        self._in_hand -= done
        for future in done:
            future.result()

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
