"""Whether a run's latencies can be trusted: the generator's own delays beside the latencies it reports. Pure.

A latency contains the delay of its sending, and the delay with which the event loop read its token. Neither
belongs to the server. A figure is doubtful if one of both, at the same percentile, is more than ``SHARE`` of
it and more than ``FLOOR_S``. Short stalls reach no percentile of time, so they are judged by themselves.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from loadgen import words
from loadgen.records import Attempt, LoopDelay, Meta, Sample, Stall
from loadgen.statistics import percentile

LATE_S = 0.05
"""The generator could not keep up if the p99 of the delays of attempts exceeds this, s ..."""
BUSY = 0.9
"""... or if it used more than this share of its core ..."""
WAITED = 0.03
"""... or if it had to wait for a core for more than this share of the run, and for more than ..."""
WAITED_OF_CPU = 0.75
"""... this part of the time for which it ran. Both are near 0 if it has a core of its own."""
SHARE = 0.1
"""The part of a figure that may be the generator's own delay."""
FLOOR_S = 0.004
"""Delays up to this make no figure doubtful. Runs beside few other programs have 1 to 4 ms at p99:
timers count milliseconds, and the tokens of one step of an engine arrive together."""
STALLED = 0.001
"""The share of a phase that stalls may last. A 40 ms stall in 40 s."""
TOUCHED = 0.005
"""The share of requests that stalls may touch, so that the p99 is of requests without a stall."""
_AFTER_S = 0.005
"""What waited for the end of a stall is done within this time after it, s."""
MOST = 4
"""The most phases that are named."""
_ADVICE = "give the generator a core of its own, or send less"
_MORE = "use more --processes, or send less"


@dataclass(frozen=True, slots=True)
class Figure:
    """A latency of a report."""

    phase: str
    tenant: str
    name: str
    """As in the report's columns."""
    share: float
    """0.5 or 0.99."""
    value_s: float
    with_sending: bool
    """Whether it counts from the due time. The time between tokens does not."""


@dataclass(frozen=True, slots=True)
class Period:
    """A phase, or the whole run, and its attempts by their due time."""

    name: str
    from_s: float
    to_s: float
    attempts: Sequence[Attempt]


def complaints(lag_p99_s: float, cpu: float) -> list[str]:
    """The reasons why the generator could not keep up with the scenario."""
    found = []
    if lag_p99_s > LATE_S:
        found.append(
            f"could not keep up: 1 % of the attempts were sent more than {lag_p99_s * 1000:.0f} ms late; "
            f"{_MORE}"
        )
    if cpu > BUSY:
        found.append(
            f"could not keep up: the generator used {cpu:.0%} of a core, which adds to every latency; {_MORE}"
        )
    return found


def worst(delays: Iterable[LoopDelay]) -> list[LoopDelay]:
    """The largest delays of each phase, of several processes or runs."""
    phases: dict[str, list[LoopDelay]] = {}
    for delay in delays:
        phases.setdefault(delay.phase, []).append(delay)
    return [
        LoopDelay(
            phase,
            max(each.p50_s for each in group),
            max(each.p99_s for each in group),
            max(each.max_s for each in group),
        )
        for phase, group in phases.items()
    ]


def _shared(meta: Meta) -> list[str]:
    if meta.waited <= WAITED or meta.waited <= WAITED_OF_CPU * meta.ran:
        return []
    return [
        f"shared its core: the generator waited for a core for {meta.waited:.0%} of the time, and ran for "
        f"{meta.ran:.0%}; give it a core of its own"
    ]


def doubts(
    meta: Meta, figures: Iterable[Figure], periods: Sequence[Period], samples: Iterable[Sample]
) -> list[str]:
    """The reasons why latencies of a run are not trustworthy. The whole run is the first period."""
    made = list(figures)
    phases: dict[str, list[Figure]] = {}
    for figure in made:
        phases.setdefault(figure.phase, []).append(figure)
    found = {
        period.name: reason
        for period in periods
        if (reason := _doubt(period, phases.get(period.name, []), meta.loop))
    }
    stalled = {
        period.name: reason
        for period in periods
        if (reason := _stalled(period, phases.get(period.name, []), meta.stalls, meta.processes))
    }
    gaps = [figure for figure in made if not figure.with_sending]
    return [
        *_shared(meta),
        *_named(periods, found),
        *_named(periods, stalled),
        *simulator_doubts(samples, gaps),
    ]


def _named(periods: Sequence[Period], found: Mapping[str, str]) -> list[str]:
    """The reasons of phases, or else that of the whole run, with a bounded number."""
    inner = [found[period.name] for period in periods[1:] if period.name in found]
    kept = inner or [found[period.name] for period in periods[:1] if period.name in found]
    more = [f"has the same problem in {len(kept) - MOST} more phases"] if len(kept) > MOST else []
    return kept[:MOST] + more


def _doubt(period: Period, figures: Sequence[Figure], loop: Sequence[LoopDelay]) -> str:
    """The worst figure of a phase; empty if all can be trusted."""
    delay = next((each for each in loop if each.phase == period.name), LoopDelay(period.name, 0.0, 0.0, 0.0))
    late = sorted(max(attempt.sent_s - attempt.due_s, 0.0) for attempt in period.attempts) or [0.0]
    worst, worst_share, worst_own = None, SHARE, 0.0
    for figure in figures:
        own = delay.p50_s if figure.share <= 0.5 else delay.p99_s
        if figure.with_sending:
            own = max(own, percentile(late, figure.share))
        part = own / max(figure.value_s, 1e-9)
        if own > FLOOR_S and part > worst_share:
            worst, worst_share, worst_own = figure, part, own
    if worst is None:
        return ""
    return (
        f"is not trustworthy in '{period.name}': the generator's own delay was {words.seconds(worst_own)}, "
        f"{min(worst_share, 1):.0%} of {worst.name} of '{worst.tenant}' ({words.seconds(worst.value_s)}); "
        f"{_ADVICE}"
    )


def _stalled(period: Period, figures: Sequence[Figure], stalls: Sequence[Stall], processes: int) -> str:
    """What the stalls of a phase mean for its tails; empty if they are few or short.

    A stall of one process of several delays that part of the requests only.
    """
    inside = [stall for stall in stalls if period.from_s <= stall.at_s < period.to_s]
    tails = [figure.value_s for figure in figures if figure.share > 0.5]
    if not inside or not tails:
        return ""
    longest, total = max(inside, key=lambda stall: stall.seconds), sum(stall.seconds for stall in inside)
    is_rare = total <= STALLED * (period.to_s - period.from_s) * processes
    if longest.seconds <= SHARE * min(tails) or (is_rare and not _reaches(period.attempts, inside)):
        return ""
    others = f", the longest of {len(inside)} stalls" if len(inside) > 1 else ""
    return (
        f"is not trustworthy in '{period.name}': the generator was blocked for "
        f"{words.seconds(longest.seconds)} at {longest.at_s:.1f} s{others}, which adds to the latencies of "
        f"that time and to the P99; {_ADVICE}"
    )


def _reaches(attempts: Sequence[Attempt], stalls: Sequence[Stall]) -> bool:
    """Whether stalls touch enough requests to be in their p99."""
    ends = [stall.until_s + _AFTER_S for stall in stalls]

    def is_touched(at_s: float | None) -> bool:
        if at_s is None or (index := bisect_left(ends, at_s)) == len(ends):
            return False
        return stalls[index].at_s <= at_s

    touched = sum(is_touched(a.sent_s) or is_touched(a.first_s) or is_touched(a.end_s) for a in attempts)
    return touched > TOUCHED * len(attempts)


def simulator_doubts(samples: Iterable[Sample], gaps: Sequence[Figure]) -> list[str]:
    """What a simulated engine says of itself on its metrics page, beside the time between tokens."""
    seen: dict[str, list[Mapping[str, float]]] = {}
    for sample in samples:
        if "steps" in sample.engine:
            seen.setdefault(sample.source, []).append(sample.engine)
    gap = min((figure.value_s for figure in gaps if figure.share <= 0.5), default=0.0)
    found = (_simulator(source, pages, gap) for source, pages in seen.items())
    return [reason for reason in found if reason]


def _simulator(source: str, pages: Sequence[Mapping[str, float]], gap_s: float) -> str:
    steps, delayed, lost = (_grown(pages, name) for name in ("steps", "step_delay_s", "lost_s"))
    mean = delayed / steps if steps > 0 else 0.0
    if lost <= 0 and (mean <= FLOOR_S or mean <= SHARE * gap_s):
        return ""
    pauses = f", and it lost {words.seconds(lost)} in pauses" if lost > 0 else ""
    return (
        f"used a simulator that could not keep up: the tokens of a step of {source} came "
        f"{words.seconds(mean)} late on average{pauses}; give it a core of its own, or send less"
    )


def _grown(pages: Sequence[Mapping[str, float]], name: str) -> float:
    """How much a counter grew. It begins at 0 again after a restart."""
    values = [page.get(name, 0.0) for page in pages]
    return sum(after - before if after >= before else after for before, after in pairwise(values))
