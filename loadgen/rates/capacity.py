"""``loadgen capacity``: the highest rate that meets the goals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from loadgen import goals
from loadgen.conditions import OPERATORS
from loadgen.fields import ScenarioError
from loadgen.goals import Goal, GoalResult
from loadgen.measures import shown
from loadgen.rates.outcome import Result, Tell, write
from loadgen.rates.points import Point, rate_text
from loadgen.rates.search import Search, Verdict
from loadgen.rates.steps import Steps, own_rate
from loadgen.records import TenantMeta

HEAD = ("rate", "runs", "goal", "tenant", "measured", "result")


class Limits(Protocol):
    """The options of a capacity search."""

    resolution: float
    most_runs: int
    """Of one rate."""
    most_time: float
    """Seconds for all runs."""
    first: float | None
    """The first rate; ``None`` is the scenario's own."""


@dataclass(slots=True)
class _Judged:
    """The goals at each rate, by all of its runs."""

    asked: Sequence[Goal]
    tenants: Sequence[TenantMeta]
    results: dict[float, list[GoalResult]] = field(default_factory=dict)

    def verdict(self, made: Point) -> Verdict:
        """Judge a rate."""
        results = goals.judge(self.asked, made.summary, self.tenants)
        self.results[made.rate] = results
        return verdict(made, results)

    def rows(self, search: Search) -> list[tuple[str, ...]]:
        """A line for each rate and goal."""
        return [
            (
                f"{rate:.4g}",
                str(search.runs[rate]),
                r.goal,
                r.tenant,
                shown(r.measured, r.kind),
                str(decided(r)),
            )
            for rate, results in sorted(self.results.items())
            for r in results
        ]


def verdict(made: Point, results: Sequence[GoalResult]) -> Verdict:
    """A rate by its goals. A rate that the server does not keep up with is not its capacity."""
    if not made.is_reliable:
        return Verdict.UNRELIABLE
    if not made.keeps_up:
        return Verdict.MISSED
    return max((decided(result) for result in results), key=_ORDER.index)


_ORDER = (Verdict.MET, Verdict.LIKELY_MET, Verdict.LIKELY_MISSED, Verdict.MISSED)
"""From the best to the worst. The worst goal decides."""


def decided(result: GoalResult) -> Verdict:
    """One goal by the interval of its measurement. A number that has no interval decides by itself."""
    measured, holds = result.measured, OPERATORS[result.operator]
    if measured is None:
        return Verdict.MISSED
    if measured.low is None and measured.high is None and not measured.reason:
        return Verdict.MET if result.is_met else Verdict.MISSED
    best, worst = measured.low, measured.high
    if not result.operator.startswith("<"):
        best, worst = worst, best
    if worst is not None and holds(worst, result.bound):
        return Verdict.MET
    if best is not None and not holds(best, result.bound):
        return Verdict.MISSED
    return Verdict.LIKELY_MET if result.is_met else Verdict.LIKELY_MISSED


def capacity(steps: Steps, asked: Sequence[Goal], limits: Limits, tell: Tell) -> Result:
    """Search for the highest rate that meets the goals, and write the report. Raises ``ScenarioError``."""
    scenario = steps.order.scenario
    if not steps.has_time(limits.most_time):
        raise ScenarioError(
            f"a run of {scenario.name} takes {scenario.duration_s:g} s, which is more than --most-time; "
            "give a longer time, or a shorter --duration"
        )
    search = Search(limits.first or own_rate(scenario), limits.resolution, limits.most_runs)
    tenants = [TenantMeta.of(tenant) for tenant in scenario.tenants]
    judged = _Judged(asked, tenants)
    is_out_of_time = False
    while (rate := search.next_rate()) is not None:
        if not steps.has_time(limits.most_time):
            is_out_of_time = True
            break
        tell(f"run {steps.count + 1}: {rate_text(rate)}")
        made = steps.step(rate)
        if made is None:
            break
        found = judged.verdict(made)
        search.note(rate, found)
        tell(f"  goals {found}{f' ({made.obstacle})' if made.obstacle else ''}")
    result = Result(
        "capacity",
        told(search, steps.points, judged.results, is_out_of_time=is_out_of_time),
        _numbers(search, is_out_of_time=is_out_of_time),
        [("capacity", search.met)] if search.met is not None else [],
        "capacity",
        (HEAD, *judged.rows(search)),
    )
    write(steps, result)
    return result


def _numbers(search: Search, *, is_out_of_time: bool) -> dict[str, object]:
    above = search.above
    return {
        "met_at": search.met,
        "likely_met_at": search.likely,
        "not_met_at": None if math.isinf(above) else above,
        "missed_at": search.missed,
        "resolution": _resolution(search),
        "is_out_of_time": is_out_of_time,
        "confidence": 0.95,
        "rates": [
            {"rate": rate, "runs": search.runs[rate], "verdict": str(found)}
            for rate, found in sorted(search.verdicts.items())
        ],
    }


def _resolution(search: Search) -> float | None:
    """The relative gap between the reported rate and the next that was tried."""
    low = search.met or search.likely
    return search.above / low - 1 if low is not None and not math.isinf(search.above) else None


def told(
    search: Search,
    points: dict[float, Point],
    results: dict[float, list[GoalResult]],
    *,
    is_out_of_time: bool,
) -> list[str]:
    """The result in sentences."""
    lines = [_headline(search)]
    if not math.isinf(search.above):
        lines.append(_why(search, points, results))
    if search.met is not None and search.likely is not None and search.likely > search.met:
        lines.append(f"By its measured values, {rate_text(search.likely)} meets the goals, too.")
    if search.missed is not None and search.missed > search.above:
        lines.append(f"The lowest rate that certainly misses a goal is {rate_text(search.missed)}.")
    if (resolution := _resolution(search)) is not None:
        lines.append(f"Resolution: {resolution:.1%}. Each rate is judged alone.")
    if is_out_of_time:
        lines.append("The time limit ended the search early. Give a longer --most-time for a finer result.")
    return lines


def _headline(search: Search) -> str:
    if search.met is not None:
        runs = search.runs[search.met]
        at = f"{rate_text(search.met)}, the highest rate that meets all goals at 95 % confidence"
        return f"Capacity: {at} ({runs} run{'s' if runs > 1 else ''})."
    if search.likely is not None:
        return (
            f"Capacity: probably {rate_text(search.likely)}. The runs are too short for certainty; "
            "give a longer --duration, or more --most-runs."
        )
    if search.verdicts:
        return f"Capacity: none found; the goals are not met at {rate_text(min(search.verdicts))}."
    return "No run was completed."


def _why(search: Search, points: dict[float, Point], results: dict[float, list[GoalResult]]) -> str:
    """The reason why the next higher rate does not count."""
    rate = search.above
    at, obstacle = f"At {rate_text(rate)}", points[rate].obstacle
    if search.verdicts[rate] is Verdict.UNRELIABLE:
        return f"{at} {obstacle}, so higher rates say nothing about the server. Use more --processes."
    if obstacle:
        return f"{at} the server does not keep up: {obstacle}."
    open_ = [(result, decided(result)) for result in results[rate]]
    found = [
        f"{r.goal} of {r.tenant}, measured {shown(r.measured, r.kind)}, is {said}"
        for r, said in open_
        if said is not Verdict.MET
    ]
    return f"{at}, {'; '.join(found)}."
