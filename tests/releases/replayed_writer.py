"""A writer of a channel as a function: from what its store has answered so far to the operation it asks for next.

The real code is run from its start over a store that gives the recorded answers and stops at the first operation that
has none yet. So a writer's whole state is the list of answers it got, which can be compared, hashed and forked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from traceback import walk_tb
from typing import NoReturn, TypeAlias

from supabase_bridge.outbox.errors import LeaseLostError
from supabase_bridge.releases.channel import Activation
from supabase_bridge.releases.errors import ReleaseTakenError
from supabase_bridge.storage.base import Body, ObjectInfo, ObjectStore, Progress, PutOptions
from supabase_bridge.storage.errors import ObjectExistsError, ObjectNotFoundError, StoreUnavailableError

NAME = "scripted"
ABSENT, EXISTS, DONE, LOST, TAKEN = "absent", "exists", "done", "lost", "taken"
"""What is answered beside contents and listings; LOST: no answer came; TAKEN: the event is another worker's."""

Answer: TypeAlias = "bytes | str | tuple[str, ...]"
Act: TypeAlias = Callable[[ObjectStore, Callable[[], None]], "Activation | bytes | None"]
"""What a writer does over a store; the second argument raises LeaseLostError where its event is another worker's.

None: it found out that it is not wanted any more.
"""

BEGINNING = 0
"""The state of a writer that has asked for nothing yet."""

_ADDRESS = re.compile(r" at 0x[0-9a-f]+|\b[0-9a-f]{32}\b")
"""Addresses of objects, and random names: they differ in each replay."""
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Operation:
    """What a writer asks: "read", "list", "create", "overwrite", "move", "delete", or whether its event is "held"."""

    name: str
    key: str
    data: bytes = b""  # What it writes, or the key that it moves to.


@dataclass(frozen=True)
class Ended:
    """A writer that has nothing more to ask: the entry or commit record that it made or found, or its error's name."""

    entry: bytes | None
    error: str | None = None


class _Asked(BaseException):  # So that no `except Exception` of the code takes it for a failure of the store.
    def __init__(self, operation: Operation) -> None:
        super().__init__(operation)
        self.operation = operation


class _ScriptedStore:
    """The part of an object store that writers of a channel use. What `given` has is there, always, unasked."""

    name = NAME

    def __init__(self, answers: Sequence[Answer], given: ObjectStore, prefix: str | tuple[str, ...]) -> None:
        self._answers = iter(answers)
        self._given = given
        self._prefix = prefix
        self._own: dict[str, bytes] = {}
        self._asked: _Asked | None = None

    def read(self, key: str, *, limit_bytes: int) -> bytes:
        if not key.startswith(self._prefix):
            return self._given.read(key, limit_bytes=limit_bytes)
        answer = self._ask(Operation("read", key))
        if answer == ABSENT:
            raise ObjectNotFoundError(NAME, key)
        assert isinstance(answer, bytes)
        return answer

    def list(self, prefix: str, *, bucket_exists: bool = False) -> Iterator[ObjectInfo]:  # noqa: ARG002 - it does
        if not prefix.startswith(self._prefix):
            yield from self._given.list(prefix)
            return
        for key in self._ask(Operation("list", prefix)):
            yield ObjectInfo(key=str(key), size_bytes=0, modified_at=_EPOCH)

    def create(self, key: str, body: bytes, _options: PutOptions) -> None:
        if self._ask(Operation("create", key, body)) == EXISTS:
            raise ObjectExistsError(NAME, key)

    def overwrite(self, key: str, body: Body, _options: PutOptions, _progress: Progress | None = None) -> None:
        assert isinstance(body, bytes)
        if not key.startswith(self._prefix):
            self._own[key] = body  # No other writer reads or writes it.
            return
        self._ask(Operation("overwrite", key, body))

    def still_held(self) -> None:
        if self._ask(Operation("held", "")) == TAKEN:
            raise LeaseLostError(0)

    def stat(self, key: str) -> ObjectInfo:
        if key in self._own:
            return ObjectInfo(key=key, size_bytes=0, modified_at=_EPOCH)
        if not key.startswith(self._prefix):
            return self._given.stat(key)
        if self._ask(Operation("read", key)) == ABSENT:
            raise ObjectNotFoundError(NAME, key)
        return ObjectInfo(key=key, size_bytes=0, modified_at=_EPOCH)

    def stream(self, key: str, *, fresh: bool = False) -> Iterator[bytes]:
        return self._given.stream(key, fresh=fresh)

    def ensure_bucket(self) -> None:
        """It is there."""

    def copy_in(self, bucket: str, info: ObjectInfo, key: str, options: PutOptions) -> NoReturn:
        raise NotImplementedError(f"copying {info.key} of {bucket} to {key} with {options}")

    def read_part(self, info: ObjectInfo, *, start: int, size_bytes: int) -> bytes:
        return self._given.read_part(info, start=start, size_bytes=size_bytes)

    def move(self, key: str, target: str) -> None:
        if key in self._own:
            # To the others, the move of an object that only this writer has is a creation.
            self.create(target, self._own[key], PutOptions())
            del self._own[key]
            return
        answer = self._ask(Operation("move", key, target.encode()))
        if answer == ABSENT:
            raise ObjectNotFoundError(NAME, key)
        if answer == EXISTS:
            raise ObjectExistsError(NAME, target)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            if self._own.pop(key, None) is None:
                self._ask(Operation("delete", key))

    def close(self) -> None:
        """Nothing is held open."""

    def _ask(self, operation: Operation) -> Answer:
        # What the code does on its way out, such as a `finally`, comes after the operation that stopped it.
        if self._asked is not None:
            raise self._asked
        answer = next(self._answers, None)
        if answer is None:
            self._asked = _Asked(operation)
            raise self._asked
        if answer == LOST:
            raise StoreUnavailableError(NAME, operation.name, "no answer")
        return answer


class ReplayedWriter:
    """One writer; every state that it can come to is computed once.

    Two lists of answers that leave the code at the same line of the same functions, with the same values in all their
    variables, are one state: what it does from there on cannot differ.

    Args:
        act: The real code.
        given: Where everything outside `prefix` is read from.
        prefix: Prefixes of the keys whose operations others can come between.

    Attributes:
        next: By the number of a state, from BEGINNING on, what the writer asks for there or how it ended.
    """

    def __init__(self, act: Act, given: ObjectStore, prefix: str | tuple[str, ...]) -> None:
        self._act = act
        self._given = given
        self._prefix = prefix
        self._answers: list[tuple[Answer, ...]] = []
        self._numbers: dict[object, int] = {}
        self._after: dict[tuple[int, Answer], int] = {}
        self.next: list[Operation | Ended] = []
        self._number(())

    def after(self, number: int, answer: Answer) -> int:
        """The state that it comes to from state `number` once the operation it asked for there was answered."""
        found = self._after.get((number, answer))
        if found is None:
            found = self._after[number, answer] = self._number((*self._answers[number], answer))
        return found

    def _number(self, answers: tuple[Answer, ...]) -> int:
        place, found = self._replayed(answers)
        number = self._numbers.setdefault(place, len(self.next))
        if number == len(self.next):
            self.next.append(found)
            self._answers.append(answers)
        return number

    def _replayed(self, answers: tuple[Answer, ...]) -> tuple[object, Operation | Ended]:
        """Where in the code the writer is after these answers, and what it does there."""
        store = _ScriptedStore(answers, self._given, self._prefix)
        try:
            switch = self._act(store, store.still_held)
            ended = Ended(switch.entry.to_bytes() if isinstance(switch, Activation) else switch)
        except _Asked as asked:
            return (asked.operation, *_variables(asked)), asked.operation
        except (StoreUnavailableError, LeaseLostError, ReleaseTakenError) as error:
            ended = Ended(None, type(error).__name__)
        return ended, ended


def _variables(asked: _Asked) -> list[tuple[str, int, str]]:
    """The functions that were under way, each with its line and its variables; objects are told apart by their type."""
    frames = [(frame.f_code.co_name, line, frame.f_locals) for frame, line in walk_tb(asked.__traceback__)]
    # The store itself is on top, and the counter of a loop that only others end is none of its state.
    return [
        (name, line, _ADDRESS.sub("", repr({key: value for key, value in found.items() if key != "_"})))
        for name, line, found in frames[1:]
        if "_ask" not in name
    ]
