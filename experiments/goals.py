"""The goals of an experiment: printed, and as an exit status."""

from __future__ import annotations

from collections.abc import Sequence


def report(goals: Sequence[tuple[str, bool]]) -> int:
    """Print each goal and whether it was reached. Returns the exit status: 0 if all were, else 1."""
    for goal, is_reached in goals:
        print(f"{'reached' if is_reached else 'MISSED '}  {goal}")
    return 0 if all(is_reached for _, is_reached in goals) else 1
