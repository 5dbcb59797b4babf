"""Every order in which the operations of some writers can happen: an explicit-state search over one channel's objects.

A state is what lies in the channel, what is still on its way there, and where each writer stands. Searched breadth
first, each state once. A writer that crashed is one that does nothing more, so every state is also the one that the
crash of any of its writers leaves; nothing has to be added for that. Reading an entry that is there gives the same
whenever it is done, since entries never change: it happens at once, and no order is lost by that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from tests.releases.replayed_writer import (
    ABSENT,
    BEGINNING,
    DONE,
    EXISTS,
    LOST,
    TAKEN,
    Answer,
    Ended,
    Operation,
    ReplayedWriter,
)

_WRITES = {"create", "overwrite", "move", "delete"}

Objects: TypeAlias = "tuple[tuple[str, bytes], ...]"
"""Keys and what they hold, sorted."""


class State(NamedTuple):
    """One state.

    Attributes:
        objects: The channel's keys and bytes, sorted.
        on_the_way: Writes whose writer gave up waiting; each may still happen, or never.
        steps: Where each writer stands; see `ReplayedWriter.next`.
        losses: How many answers may still be lost.
        undone_late: The newest entry is not what is published, by a write that happened after its writer gave up.
    """

    objects: Objects
    on_the_way: tuple[Operation, ...]
    steps: tuple[int, ...]
    losses: int
    undone_late: bool


@dataclass(frozen=True)
class Action:
    """What leads from one state to the next: a writer's operation is answered, or a write arrives that was given up.

    Attributes:
        writer: Its number; None: `operation` was on its way, and arrives.
        answer: LOST: it did not come, and the write is on its way.
    """

    writer: int | None
    operation: Operation
    answer: Answer


@dataclass(frozen=True, kw_only=True)
class Participant:
    """A writer in a search.

    Attributes:
        event: The event it works on; None: a person does.
        attempt: Which attempt at the event, from 1. From when it begins, the earlier ones hold the event no more.
    """

    writer: ReplayedWriter
    event: int | None = None
    attempt: int = 1


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched.

    Args:
        objects: What lies in the channel at first.
        losses: How many writes may lose their answer, and arrive later or never.
        is_entry: Whether a key is a log entry's.
        in_step: Whether some objects show consumers the newest entry.
    """

    participants: Sequence[Participant]
    objects: Mapping[str, bytes]
    losses: int
    is_entry: Callable[[str], bool]
    in_step: Callable[[Objects], bool]
    came_from: dict[State, tuple[State, Action] | None] = field(default_factory=dict)

    def states(self) -> Iterator[tuple[State, Sequence[tuple[Action, State]]]]:
        """Every state that can come up, with what can happen in it, those after fewer actions first."""
        steps = (BEGINNING,) * len(self.participants)
        first = self._settled(State(tuple(sorted(self.objects.items())), (), steps, self.losses, False))
        self.came_from[first] = None
        level = [first]
        while level:
            following: list[State] = []
            for state in level:
                moves = list(self._moves(state))
                yield state, moves
                for action, after in moves:
                    if after not in self.came_from:
                        self.came_from[after] = (state, action)
                        following.append(after)
            level = following

    def next_of(self, state: State, number: int) -> Operation | Ended:
        """What a writer asks for in a state, or how it ended."""
        return self.participants[number].writer.next[state.steps[number]]

    def schedule(self, state: State) -> list[Action]:
        """A shortest sequence of actions that leads to a state."""
        actions: list[Action] = []
        while (step := self.came_from[state]) is not None:
            state = step[0]
            actions.append(step[1])
        return actions[::-1]

    def _moves(self, state: State) -> Iterator[tuple[Action, State]]:
        for number in range(len(state.steps)):
            operation = self.next_of(state, number)
            if isinstance(operation, Ended) or not self._may_begin(state, number):
                continue
            answer, objects = self._answer(state, number, operation)
            yield Action(number, operation, answer), self._moved(state, number, answer, objects)
            if state.losses and operation.name in _WRITES:
                waiting = tuple(sorted((*state.on_the_way, operation), key=repr))
                after = self._moved(state, number, LOST, state.objects)
                yield Action(number, operation, LOST), after._replace(on_the_way=waiting, losses=state.losses - 1)
        for operation in dict.fromkeys(state.on_the_way):
            left = list(state.on_the_way)
            left.remove(operation)
            answer, objects = _written(state.objects, operation)
            after = state._replace(objects=objects, on_the_way=tuple(left))
            undone = not self.in_step(after.objects) and (state.undone_late or after.objects != state.objects)
            yield Action(None, operation, answer), after._replace(undone_late=undone)

    def _moved(self, state: State, number: int, answer: Answer, objects: Objects) -> State:
        step = self.participants[number].writer.after(state.steps[number], answer)
        steps = (*state.steps[:number], step, *state.steps[number + 1 :])
        undone = state.undone_late and not self.in_step(objects)
        return self._settled(state._replace(objects=objects, steps=steps, undone_late=undone))

    def _settled(self, state: State) -> State:
        """The same with every read of an entry that is there done."""
        there: dict[str, bytes] | None = None
        steps = list(state.steps)
        for number, item in enumerate(self.participants):
            asked = item.writer.next[steps[number]]
            while isinstance(asked, Operation) and asked.name == "read" and self.is_entry(asked.key):
                there = dict(state.objects) if there is None else there
                if asked.key not in there:
                    break
                steps[number] = item.writer.after(steps[number], there[asked.key])
                asked = item.writer.next[steps[number]]
        return state._replace(steps=tuple(steps))

    def _answer(self, state: State, number: int, operation: Operation) -> tuple[Answer, Objects]:
        objects = dict(state.objects)
        if operation.name == "held":
            return (DONE if self._holds(state, number) else TAKEN), state.objects
        if operation.name == "read":
            return objects.get(operation.key, ABSENT), state.objects
        if operation.name == "list":
            return tuple(key for key in objects if key.startswith(operation.key)), state.objects
        return _written(state.objects, operation)

    def _begun(self, state: State, number: int) -> bool:
        return state.steps[number] != BEGINNING

    def _attempts(self, event: int) -> list[int]:
        return [number for number, item in enumerate(self.participants) if item.event == event]

    def _holds(self, state: State, number: int) -> bool:
        own = self.participants[number]
        later = [n for n in self._attempts(own.event or 0) if self.participants[n].attempt > own.attempt]
        return not any(self._begun(state, n) for n in later)

    def _may_begin(self, state: State, number: int) -> bool:
        """An event is handed out once the one before is finished by whoever held it last; a retry after its attempt."""
        own = self.participants[number]
        if own.event is None or self._begun(state, number):
            return True
        before = {item.event for item in self.participants if item.event is not None and item.event < own.event}
        return (
            all(self._finished(state, event) for event in before)
            and not self._finished(state, own.event)
            and all(
                self._begun(state, n) for n in self._attempts(own.event) if self.participants[n].attempt < own.attempt
            )
        )

    def _finished(self, state: State, event: int) -> bool:
        for number in sorted(self._attempts(event), key=lambda n: -self.participants[n].attempt):
            if self._begun(state, number):
                end = self.next_of(state, number)
                return isinstance(end, Ended) and end.error is None
        return False


def _written(objects: Objects, operation: Operation) -> tuple[Answer, Objects]:
    """What is answered to a write, and what is there afterwards."""
    found = dict(objects)
    if operation.name == "create" and operation.key in found:
        return EXISTS, objects
    if operation.name == "delete":
        found.pop(operation.key, None)
    elif operation.name == "move":
        if operation.key not in found:
            return ABSENT, objects
        if operation.data.decode() in found:
            return EXISTS, objects
        found[operation.data.decode()] = found.pop(operation.key)
    else:
        found[operation.key] = operation.data
    return DONE, tuple(sorted(found.items()))
