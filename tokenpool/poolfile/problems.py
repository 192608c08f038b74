"""The error of an invalid pool file, with all problems and their lines and fixes."""

from __future__ import annotations

from collections.abc import Iterable

from tokenpool.yaml_nodes import Problem


class PoolFileError(ValueError):
    """A pool file is invalid. ``problems`` has all errors in the order of lines."""

    def __init__(self, name: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(problem.render(name) for problem in self.problems))
