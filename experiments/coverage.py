"""How often a 95 % interval of loadgen contains the truth: requests of a queue whose distribution is known.

``python -m experiments coverage`` simulates many runs of several lengths at several loads, and gives each to
`loadgen.intervals`. It prints, for each number, the share of the runs whose interval contains the truth. An
unknown bound counts as infinite. In brackets are the share of the runs that bound the number on both sides,
and the coverage of these intervals alone. ``--method`` chooses other intervals for comparison.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from loadgen.intervals import Series
from loadgen.statistics import Estimate, percentile, rank_interval
from toolbox.queue import sojourns, true_mean, true_percentile

LOADS = (0.0, 0.5, 0.8, 0.9)
LENGTHS = (100, 300, 1000, 3000, 10_000, 30_000)
SHARES = (0.5, 0.9, 0.99)
BLOCKS = 16
RESAMPLES = 199
"""The resamples of a bootstrap, which is slow."""
Interval = tuple[float, float]
Method = Callable[[Sequence[float], random.Random], list[Interval]]
"""The intervals of ``SHARES`` and of the mean. Unknown bounds are infinite."""


@dataclass
class Count:
    """The runs of one load, length and number."""

    runs: int = 0
    hits: int = 0
    bounded: int = 0
    """Runs with a bound on both sides."""
    bounded_hits: int = 0

    def add(self, made: Interval, truth: float) -> None:
        """Count one run."""
        self.runs += 1
        is_hit, is_bounded = made[0] <= truth <= made[1], not math.isinf(made[1] - made[0])
        self.hits += is_hit
        self.bounded += is_bounded
        self.bounded_hits += is_hit and is_bounded

    @property
    def written(self) -> str:
        """The coverage of all runs; in brackets the share of runs with both bounds, and their coverage."""
        inside = f", {self.bounded_hits / self.bounded:.0%}" if 0 < self.bounded < self.runs else ""
        return f"{self.hits / self.runs:.0%} ({self.bounded / self.runs:.0%}{inside})"


def ours(values: Sequence[float], source: random.Random) -> list[Interval]:
    """The intervals of loadgen."""
    series = Series(values)
    return [_ends(made) for made in (*series.percentiles(SHARES), series.mean())]


def _ends(made: Estimate | None) -> Interval:
    low, high = (made.low, made.high) if made is not None else (None, None)
    return -math.inf if low is None else low, math.inf if high is None else high


def independent(values: Sequence[float], source: random.Random) -> list[Interval]:
    """Binomial ranks and the normal distribution, as if the requests were independent."""
    ordered, count = sorted(values), len(values)
    found = []
    for share in SHARES:
        low, high = rank_interval(count, share)
        found.append(
            (ordered[low - 1] if low else -math.inf, ordered[high - 1] if high <= count else math.inf)
        )
    mean, reach = fmean(values), 1.96 * pstdev(values) / math.sqrt(count)
    return [*found, (mean - reach, mean + reach)]


def batches(values: Sequence[float], source: random.Random) -> list[Interval]:
    """Student's distribution over the numbers of 16 batches."""
    size = len(values) // BLOCKS
    parts = [sorted(values[index * size : (index + 1) * size]) for index in range(BLOCKS)]
    found = []
    for number in _numbers(parts):
        middle, reach = fmean(number), 2.131 * pstdev(number) / math.sqrt(BLOCKS - 1)
        found.append((middle - reach, middle + reach))
    return found


def _numbers(parts: Sequence[Sequence[float]]) -> list[list[float]]:
    numbers = [[percentile(part, share) for part in parts] for share in SHARES]
    return [*numbers, [fmean(part) for part in parts]]


def bootstrap(values: Sequence[float], source: random.Random) -> list[Interval]:
    """The moving-block bootstrap with blocks of a length of the count to the power of one half."""
    count = len(values)
    length = max(math.isqrt(count), 1)
    parts = []
    for _ in range(RESAMPLES):
        drawn: list[float] = []
        while len(drawn) < count:
            start = source.randrange(count - length + 1)
            drawn += values[start : start + length]
        parts.append(sorted(drawn[:count]))
    return [_middle(sorted(number)) for number in _numbers(parts)]


def _middle(ordered: Sequence[float]) -> Interval:
    return percentile(ordered, 0.025), percentile(ordered, 0.975)


METHODS: dict[str, Method] = {
    "ours": ours,
    "independent": independent,
    "batches": batches,
    "bootstrap": bootstrap,
}


def measured(method: Method, load: float, length: int, runs: int, *, is_empty: bool = False) -> list[Count]:
    """The counts of ``SHARES`` and of the mean over simulated runs."""
    truths = [*(true_percentile(load, share) for share in SHARES), true_mean(load)]
    counts = [Count() for _ in truths]
    for run in range(runs):
        source = random.Random(f"{load} {length} {run}")
        made = method(sojourns(load, length, source, is_empty=is_empty), source)
        for count, interval, truth in zip(counts, made, truths, strict=True):
            count.add(interval, truth)
    return counts


def table(rows: Sequence[tuple[float, int, list[Count]]]) -> str:
    """The counts as Markdown."""
    lines = ["| load | requests | P50 | P90 | P99 | mean |", "| --- | --- | --- | --- | --- | --- |"]
    for load, length, counts in rows:
        cells = " | ".join(each.written for each in counts)
        lines.append(f"| {'none' if load == 0 else f'{load:.0%}'} | {length:,} | {cells} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments coverage", description=__doc__)
    parser.add_argument("--runs", type=int, default=400, help="simulated runs of each load and length")
    parser.add_argument("--method", choices=METHODS, default="ours")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="the most requests of a run")
    parser.add_argument("--empty", action="store_true", help="runs begin with an empty queue")
    arguments = parser.parse_args(argv)
    method = METHODS[arguments.method]
    lengths = [length for length in LENGTHS if length <= arguments.longest]
    rows = [
        (load, length, measured(method, load, length, arguments.runs, is_empty=arguments.empty))
        for load in LOADS
        for length in lengths
    ]
    print(table(rows))
    return 0
