"""The error of an invalid pool file, with all problems and their lines and fixes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tokenpool.yaml_nodes import Problem


@dataclass(frozen=True, slots=True)
class Sources:
    """The files of a pool file in several parts. Lines are counted through all of them."""

    names: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()
    """The number of the last line of each."""

    @classmethod
    def of(cls, documents: Sequence[tuple[str, str]]) -> Sources:
        """The sources of these names and texts."""
        ends: list[int] = []
        for _, text in documents:
            ends.append((ends[-1] if ends else 0) + text.count("\n") + 1)
        return cls(tuple(name for name, _ in documents), tuple(ends))

    def before(self, index: int) -> int:
        """The lines before a file."""
        return self.ends[index - 1] if index else 0

    def where(self, line: int) -> str:
        """The place of a line: ``line 12``, or ``b.yaml:12`` with several files."""
        if len(self.names) < 2:
            return f"line {line}"
        index = bisect_left(self.ends, line)
        return f"{self.names[index]}:{line - self.before(index)}"

    def located(self, problem: Problem) -> Problem:
        """A problem with its file and the line in it."""
        if len(self.names) < 2:
            return problem
        index = bisect_left(self.ends, problem.line)
        return replace(problem, line=problem.line - self.before(index), file=self.names[index])


class PoolFileError(ValueError):
    """A pool file is invalid. ``problems`` has all errors in the order of files and lines."""

    def __init__(self, name: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problem.render(name) for problem in self.problems))
