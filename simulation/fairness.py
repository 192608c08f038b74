"""Fairness of a simulated pool in scarcity: Jain's index and deviations from the fair share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from simulation.figures import Figures
from simulation.setup import Setup
from toolbox.fairness import deviation, jain_by_weight


@dataclass(frozen=True, slots=True)
class Fairness:
    """Fairness of weighted service after a loss of capacity."""

    first: float
    """Jain's index over the first 20 s; 1 if every tenant has its share."""
    later: float
    """The lowest index over any later 60 s."""
    deviation: float
    """The largest deviation from a fair share over any 60 s after the first 20 s."""


@dataclass(frozen=True, slots=True)
class Convergence:
    """The fairness of many mixes, and its goals."""

    runs: Sequence[Fairness]

    @property
    def holds(self) -> bool:
        """Whether the goals are reached: medians, and the worst deviation."""
        return (
            median(run.first for run in self.runs) >= 0.98
            and median(run.later for run in self.runs) >= 0.99
            and median(run.deviation for run in self.runs) <= 0.05
            and max(run.deviation for run in self.runs) <= 0.10
        )

    def __str__(self) -> str:
        first, later, deviation = zip(*((r.first, r.later, r.deviation) for r in self.runs), strict=True)
        return (
            f"Jain first 20 s {median(first):.3f} (worst {min(first):.3f}), any later 60 s"
            f" {median(later):.3f} ({min(later):.3f}), deviation {median(deviation):.1%}"
            f" ({max(deviation):.1%})"
        )


def fairness_of(setup: Setup, figures: Figures) -> Fairness:
    """The fairness of service by weight, in windows after the loss of engines."""
    weights = {t.entitlement.name: t.entitlement.weight for t in setup.tenants}
    cut = setup.cut_at
    first = _service(figures, weights, cut, cut + 20)
    starts = range(int(cut) + 20, int(setup.seconds) - 64, 5)
    windows = [_service(figures, weights, start, start + 60) for start in starts]
    return Fairness(
        jain_by_weight(first, weights),
        min(jain_by_weight(window, weights) for window in windows),
        max(deviation(window, weights) for window in windows),
    )


def _service(figures: Figures, names: Iterable[str], start: float, end: float) -> dict[str, float]:
    """Tokens of each tenant in a window. A request counts by the part of its time inside the window."""
    totals = dict.fromkeys(names, 0.0)
    for began, ended, name, tokens in figures.served:
        inside = min(ended, end) - max(began, start)
        if inside > 0:
            totals[name] += tokens * inside / (ended - began)
    return totals
