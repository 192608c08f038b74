"""The error of an invalid pool file: it carries all problems, each with its line and fix."""

from __future__ import annotations

from collections.abc import Iterable

from tokenpool.yaml_nodes import Problem


class PoolFileError(ValueError):
    """A pool file with errors, all of which it carries, in the order of lines."""

    def __init__(self, name: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(problem.render(name) for problem in self.problems))
