"""The search for the highest rate that meets the goals. Pure.

The rate doubles while the goals are met, or halves while they are not. Then the interval between the highest
rate that meets them and the lowest that does not is halved on a logarithmic scale. A rate is repeated with
another seed while the 95 % interval of a goal includes its bound, up to a number of runs. If it still does,
the rate is undecided: the search goes on below it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

_MOST_FACTOR = 2.0**20
"""The search leaves the first rate by at most this factor."""


class Verdict(StrEnum):
    """All runs of one rate against the goals."""

    MET = "met"
    """All goals are met, and no interval includes a bound."""
    MISSED = "missed"
    """A goal is missed, and its interval does not include the bound; or the server does not keep up."""
    UNCLEAR = "undecided"
    """An interval includes the bound."""
    UNRELIABLE = "unreliable"
    """The generator did not keep up, so the rate says nothing about the server."""


@dataclass(slots=True)
class Search:
    """A search in progress: ask for the ``next_rate``, run it, and ``note`` the verdict of all its runs."""

    first: float
    resolution: float
    """The search ends when the two rates differ by less than this share."""
    most_runs: int
    """The most runs of one rate."""
    verdicts: dict[float, Verdict] = field(default_factory=dict)
    runs: dict[float, int] = field(default_factory=dict)
    _current: float | None = None

    def note(self, rate: float, verdict: Verdict) -> None:
        """Take the verdict about a rate, after one more run of it."""
        self.verdicts[rate] = verdict
        self.runs[rate] = self.runs.get(rate, 0) + 1
        self._current = rate

    @property
    def met(self) -> float | None:
        """The highest rate that meets the goals, below all that do not."""
        above = self.above
        return max((r for r, v in self.verdicts.items() if v is Verdict.MET and r < above), default=None)

    @property
    def above(self) -> float:
        """The lowest rate that does not certainly meet the goals; infinite if there is none."""
        return min((r for r, v in self.verdicts.items() if v is not Verdict.MET), default=math.inf)

    @property
    def missed(self) -> float | None:
        """The lowest rate that certainly misses a goal."""
        return min((r for r, v in self.verdicts.items() if v is Verdict.MISSED), default=None)

    def next_rate(self) -> float | None:
        """The rate of the next run; ``None`` if the search is over."""
        current = self._current
        if current is None:
            return self.first
        if self.verdicts[current] is Verdict.UNCLEAR and self.runs[current] < self.most_runs:
            return current
        low, high = self.met, self.above
        if low is None:
            lower = high / 2
            return lower if lower * _MOST_FACTOR >= self.first else None
        if math.isinf(high):
            return low * 2 if low * 2 <= self.first * _MOST_FACTOR else None
        return math.sqrt(low * high) if high / low > (1 + self.resolution) * (1 + 1e-9) else None
