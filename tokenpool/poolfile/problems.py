"""Problems of a pool file: each names its line, the thing and the fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong (or, as a warning, doubtful)."""

    line: int
    message: str
    fix: str

    def render(self, name: str) -> str:
        """As ``pool.yaml:12: what is wrong; what to do``."""
        return f"{name}:{self.line}: {self.message}; {self.fix}"


class PoolFileError(ValueError):
    """A pool file with errors, all of which it carries, in the order of lines."""

    def __init__(self, name: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(problem.render(name) for problem in self.problems))
