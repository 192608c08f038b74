"""A breadth-first search of all states that a world can reach.

It ends because a world has finitely many states. A state that breaks an invariant ends the search, and the
events that lead to it are the shortest such sequence.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

State = TypeVar("State", bound=Hashable)
Event = Hashable


class World(Protocol[State]):
    """A transition system with invariants."""

    def start(self) -> State:
        """The first state."""

    def events(self, state: State) -> Iterator[tuple[Event, State, str]]:
        """All events that can happen next: the event, the state after it, and the invariant that the event
        breaks; empty if it breaks none."""

    def problem(self, state: State) -> str:
        """The invariant that does not hold in this state; empty if all hold."""

    def steps_to_progress(self, state: State) -> int:
        """The time steps without faults after which every wait has ended and new requests are served.

        -1 if that does not happen.
        """

    def told(self, path: Sequence[tuple[State, Event]], problem: str) -> tuple[Sequence[str], str]:
        """A line for each event of a path, and the problem after it. Each event has the state before it."""


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search."""

    states: int
    transitions: int
    depth: int
    """The most events on a shortest way to a state."""
    seconds: float
    most_steps: int
    """The longest time to progress over all states, in time steps."""
    problem: str = ""
    """The invariant that does not hold; empty if all hold in all states."""
    trace: Sequence[str] = ()
    """The events that lead to the problem."""
    is_complete: bool = True
    """Whether all states were visited."""

    def __str__(self) -> str:
        counts = (
            f"{self.states:>10,} states {self.transitions:>11,} transitions, depth {self.depth:>3},"
            f" progress in {self.most_steps} steps, {self.seconds:.1f} s"
        )
        if self.problem:
            steps = "\n".join(f"    {number}. {line}" for number, line in enumerate(self.trace, 1))
            return f"{counts}\n  broken: {self.problem}\n{steps}"
        return counts if self.is_complete else f"{counts} (stopped early)"


class Search(Generic[State]):
    """One search of one world."""

    def __init__(self, world: World[State], *, most_states: int = 0) -> None:
        """``most_states`` stops the search early; 0 never does."""
        self._world = world
        self._most_states = most_states
        self._parents: list[int] = []
        self._events: list[Event] = []
        self._seen: dict[State, int] = {}

    def run(self) -> Found:
        """Visit every state."""
        began = time.perf_counter()
        world, parents, events = self._world, self._parents, self._events
        start = world.start()
        seen = self._seen
        seen[start] = 0
        parents.append(-1)
        events.append(None)
        level, depth, transitions, most_steps = [(0, start)], 0, 0, 0

        def result(
            problem: str = "", path: Sequence[tuple[State, Event]] = (), *, is_complete: bool = True
        ) -> Found:
            seconds = time.perf_counter() - began
            trace, told = world.told(path, problem)
            return Found(len(seen), transitions, depth, seconds, most_steps, told, trace, is_complete)

        if problem := world.problem(start):
            return result(problem)
        while level:
            following: list[tuple[int, State]] = []
            for number, state in level:
                steps = world.steps_to_progress(state)
                if steps < 0:
                    return result("no progress is possible any more without faults", self._path(number))
                most_steps = max(most_steps, steps)
                for event, after, broken in world.events(state):
                    transitions += 1
                    if broken:
                        return result(broken, [*self._path(number), (state, event)])
                    if after in seen:
                        continue
                    index = seen[after] = len(seen)
                    parents.append(number)
                    events.append(event)
                    if problem := world.problem(after):
                        return result(problem, self._path(index))
                    following.append((index, after))
                if self._most_states and len(seen) >= self._most_states:
                    return result(is_complete=False)
            level = following
            depth += bool(level)
        return result()

    def _path(self, number: int) -> list[tuple[State, Event]]:
        """The events that lead to a state, each with the state before it."""
        states = list(self._seen)
        path = []
        while number > 0:
            parent = self._parents[number]
            path.append((states[parent], self._events[number]))
            number = parent
        return path[::-1]
