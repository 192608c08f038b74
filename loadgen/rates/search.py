"""The search for the highest rate that meets the goals. Pure.

The rate doubles until a goal is not met, or halves until all of them are. Then the gap between the highest
rate that certainly meets the goals and the next one is halved on a logarithmic scale. A rate is repeated with
another seed while the 95 % interval of a goal includes its bound, or while no run of it is reliable, up to a
number of runs. If it still does, the rate does not count as met. Where no rate is certain, as with few
requests, the measured values decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

_MOST_UP, _MOST_DOWN = 2.0**20, 2.0**10
"""The search leaves the first rate by at most these factors."""


class Verdict(StrEnum):
    """All runs of one rate against the goals."""

    MET = "met"
    """All goals are met, and no interval includes a bound."""
    LIKELY_MET = "met, but an interval includes the goal"
    LIKELY_MISSED = "missed, but an interval includes the goal"
    MISSED = "missed"
    """A goal is missed, and its interval does not include the bound; or the server does not keep up."""
    UNRELIABLE = "unreliable"
    """The generator did not keep up, so the rate says nothing about the server."""

    @property
    def is_certain(self) -> bool:
        """Whether another run would not change it, at 95 % confidence."""
        return self in (Verdict.MET, Verdict.MISSED)


_HARD = (Verdict.LIKELY_MISSED, Verdict.MISSED, Verdict.UNRELIABLE)
_CERTAINLY_NOT = (Verdict.MISSED, Verdict.UNRELIABLE)


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

    def note(self, rate: float, verdict: Verdict) -> None:
        """Take the verdict about a rate, after one more run of it."""
        self.verdicts[rate] = verdict
        self.runs[rate] = self.runs.get(rate, 0) + 1

    @property
    def met(self) -> float | None:
        """The highest rate that certainly meets the goals, below all that certainly do not."""
        limit = self._lowest(_CERTAINLY_NOT)
        return max((r for r, v in self.verdicts.items() if v is Verdict.MET and r < limit), default=None)

    @property
    def likely(self) -> float | None:
        """The highest rate that meets the goals by its measured values, below all that do not."""
        limit, kinds = self._lowest(_HARD), (Verdict.MET, Verdict.LIKELY_MET)
        return max((r for r, v in self.verdicts.items() if v in kinds and r < limit), default=None)

    @property
    def above(self) -> float:
        """The lowest rate above ``met`` that does not certainly meet the goals; infinite if there is none.

        Without ``met``, the lowest rate above ``likely``.
        """
        met = self.met
        if met is None:
            return self._lowest(_HARD)
        return min(
            (r for r, v in self.verdicts.items() if v is not Verdict.MET and r > met), default=math.inf
        )

    @property
    def missed(self) -> float | None:
        """The lowest rate that certainly misses a goal."""
        found = self._lowest((Verdict.MISSED,))
        return None if math.isinf(found) else found

    def next_rate(self) -> float | None:
        """The rate of the next run; ``None`` if the search is over."""
        if not self.verdicts:
            return self.first
        if math.isinf(self._lowest(_HARD)):
            higher = max(self.verdicts) * 2
            return higher if higher <= self.first * _MOST_UP else None
        low, high = self.met or self.likely, self.above
        if self._is_open(high):
            return high
        if low is None:
            lower = high / 2
            return lower if lower >= self.first / _MOST_DOWN else None
        if high / low > (1 + self.resolution) * (1 + 1e-9):
            return math.sqrt(low * high)
        return low if self._is_open(low) else None

    def _lowest(self, kinds: tuple[Verdict, ...]) -> float:
        return min((rate for rate, verdict in self.verdicts.items() if verdict in kinds), default=math.inf)

    def _is_open(self, rate: float) -> bool:
        """Whether another run of a rate may decide it."""
        found = self.verdicts.get(rate)
        return found is not None and not found.is_certain and self.runs[rate] < self.most_runs
