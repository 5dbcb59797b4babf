"""Loads the same set again and again, each time in a process that kills itself at one step. Run as a program:

    python -m tests.embeddings.killed_loader URL

It reads the number of a step from each line of its input, and answers with the word `killed`, or `done` where the load
has fewer steps. A step is the beginning or the end of a statement, or one of the rows in the middle of a COPY.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import psycopg

from supabase_bridge.embeddings.rows import Embeddings
from supabase_bridge.embeddings.sets import EmbeddingSets
from tests.support.embedding_sets import release, rows


class Steps:
    """Counts the steps of this process, and kills it at one of them."""

    def __init__(self, fatal: int) -> None:
        self._left = fatal

    def take(self) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1


class FatalIds(list[str]):
    """Ids, one of which is a step where they are copied."""

    def __init__(self, ids: list[str], steps: Steps) -> None:
        super().__init__(ids)
        self._steps = steps
        self._uses = 0

    def __iter__(self) -> Iterator[str]:
        self._uses += 1
        for place, name in enumerate(super().__iter__()):
            if place == len(self) // 2:
                self._steps.take()
            yield name


def load(url: str, fatal: int) -> None:
    """Load the set until the fatal step."""
    steps = Steps(fatal)

    class Cursor(psycopg.Cursor[Any]):
        # psycopg declares overloads, one of them for Python 3.14 only.
        def execute(self, *args: Any, **options: Any) -> psycopg.Cursor[Any]:  # type: ignore[override]
            steps.take()
            result = super().execute(*args, **options)
            steps.take()
            return result

    connection = psycopg.connect(url, autocommit=True, cursor_factory=Cursor)
    items, users = rows(200), rows(20, prefix="user")
    fatal_items = Embeddings(ids=FatalIds(list(items.ids), steps), matrix=items.matrix)
    EmbeddingSets(connection).load(release(1), items=fatal_items, users=users)


def main(url: str) -> None:
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            load(url, int(line))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.stdout.write("killed\n" if os.WIFSIGNALED(status) else "done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
